//! Weighted shares of tokens between tenants.
//!
//! Each tenant has a counter of the tokens it was given, divided by its weight; whoever is lowest is next. A tenant from
//! whom nobody waited starts again at the lowest counter of those that wait: idle time is no credit. That is start-time
//! fair queueing with tokens for time, as in "Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024): while
//! tenants have requests waiting, their counters stay within what one request and what is running can add.

use std::collections::{BTreeMap, BTreeSet};

use foggara_proto::step::SequenceId;

/// Tenants of whom nobody waits that are remembered, for what they have had above the others.
const MOST_IDLE: usize = 1_024;
/// Counters count in fractions of a token, so that weights divide well.
const TOKEN: u128 = 1 << 32;

pub(super) type TenantId = u64;
/// Order among the requests of one tenant.
type Place = (i64, u64);

#[derive(Debug)]
struct Tenant {
    name: String,
    weight: u32,
    /// Tokens it was given, over its weight.
    had: u128,
    waiting: BTreeMap<Place, SequenceId>,
}

/// Every tenant that waits or is remembered.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    by_name: BTreeMap<String, TenantId>,
    tenants: BTreeMap<TenantId, Tenant>,
    /// Those of whom somebody waits, by their counters.
    active: BTreeSet<(u128, TenantId)>,
    /// The others.
    idle: BTreeSet<(u128, TenantId)>,
    /// Where the last active tenant stood.
    floor: u128,
    registered: TenantId,
}

impl Tenants {
    /// The tenant of this name, known or new. Its weight is the last that was heard.
    pub(super) fn register(&mut self, name: &str, weight: u32) -> TenantId {
        let weight = weight.max(1);
        if let Some(id) = self.by_name.get(name) {
            if let Some(tenant) = self.tenants.get_mut(id) {
                tenant.weight = weight;
            }
            return *id;
        }
        self.forget_idle();
        self.registered += 1;
        let (id, had) = (self.registered, self.floor());
        self.by_name.insert(name.to_owned(), id);
        self.tenants.insert(id, Tenant { name: name.to_owned(), weight, had, waiting: BTreeMap::new() });
        self.idle.insert((had, id));
        id
    }

    /// Whether somebody of this tenant waits.
    pub(super) fn is_waiting(&self, name: &str) -> bool {
        let tenant = self.by_name.get(name).and_then(|id| self.tenants.get(id));
        tenant.is_some_and(|tenant| !tenant.waiting.is_empty())
    }

    /// Adds a request of a registered tenant.
    pub(super) fn push(&mut self, id: TenantId, place: Place, sequence: SequenceId) {
        let floor = self.floor();
        let Some(tenant) = self.tenants.get_mut(&id) else { return };
        if tenant.waiting.is_empty() {
            self.idle.remove(&(tenant.had, id));
            tenant.had = tenant.had.max(floor);
            self.active.insert((tenant.had, id));
        }
        tenant.waiting.insert(place, sequence);
    }

    /// Takes a request away.
    pub(super) fn remove(&mut self, id: TenantId, place: Place) {
        self.floor = self.floor();
        let Some(tenant) = self.tenants.get_mut(&id) else { return };
        if tenant.waiting.remove(&place).is_some() && tenant.waiting.is_empty() {
            self.active.remove(&(tenant.had, id));
            self.idle.insert((tenant.had, id));
            if self.active.is_empty() {
                self.floor = self.floor.max(tenant.had);
            }
        }
    }

    /// Requests of the tenant that has had least, in its order; then of the next.
    pub(super) fn candidates(&self) -> impl Iterator<Item = SequenceId> {
        let active = self.active.iter().filter_map(|(_, id)| self.tenants.get(id));
        active.flat_map(|tenant| tenant.waiting.values().copied())
    }

    /// Counts `tokens` to a tenant.
    pub(super) fn charge(&mut self, id: TenantId, tokens: u64) {
        let Some(tenant) = self.tenants.get_mut(&id) else { return };
        let set = if tenant.waiting.is_empty() { &mut self.idle } else { &mut self.active };
        set.remove(&(tenant.had, id));
        tenant.had += u128::from(tokens) * TOKEN / u128::from(tenant.weight);
        set.insert((tenant.had, id));
    }

    /// How many tenants are known.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.tenants.len()
    }

    /// Where whoever becomes active starts at the least.
    fn floor(&self) -> u128 {
        self.active.first().map_or(self.floor, |(lowest, _)| self.floor.max(*lowest))
    }

    /// Bounds what is remembered: those with the lowest counters lose least.
    fn forget_idle(&mut self) {
        while self.idle.len() >= MOST_IDLE {
            let Some((_, id)) = self.idle.pop_first() else { return };
            if let Some(tenant) = self.tenants.remove(&id) {
                self.by_name.remove(&tenant.name);
            }
        }
    }
}
