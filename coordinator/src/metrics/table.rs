//! Makes families with our prefix, registers them, and remembers how they were declared.

use std::cell::RefCell;

use prometheus::{
    Counter, CounterVec, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use super::catalogue::{Family, Kind};

/// Declares families.
pub(super) struct Table<'a> {
    registry: &'a Registry,
    families: RefCell<Vec<Family>>,
}

impl<'a> Table<'a> {
    pub(super) fn new(registry: &'a Registry) -> Self {
        Self { registry, families: RefCell::default() }
    }

    /// All that were declared.
    pub(super) fn families(self) -> Vec<Family> {
        self.families.into_inner()
    }

    fn add<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        kind: Kind,
        (name, help, labels): (&str, &str, &[&str]),
        family: prometheus::Result<C>,
    ) -> C {
        let family = family.expect("the table's names and labels are valid");
        self.registry.register(Box::new(family.clone())).expect("the table names each family once");
        self.families.borrow_mut().push(Family {
            name: format!("foggara_{name}"),
            kind,
            help: help.to_owned(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        });
        family
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(Kind::Counter, (name, help, labels), IntCounterVec::new(options(name, help), labels))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(Kind::Gauge, (name, help, labels), IntGaugeVec::new(options(name, help), labels))
    }

    pub(super) fn ratios(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(Kind::Gauge, (name, help, labels), GaugeVec::new(options(name, help), labels))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(Kind::Gauge, (name, help, &[]), IntGauge::with_opts(options(name, help)))
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(Kind::Counter, (name, help, &[]), IntCounter::with_opts(options(name, help)))
    }

    pub(super) fn seconds(&self, name: &str, help: &str) -> Counter {
        self.add(Kind::Counter, (name, help, &[]), Counter::with_opts(options(name, help)))
    }

    pub(super) fn seconds_by(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.add(Kind::Counter, (name, help, labels), CounterVec::new(options(name, help), labels))
    }

    pub(super) fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let kind = Kind::Histogram { buckets: buckets.len() };
        let options = HistogramOpts { common_opts: options(name, help), buckets: buckets.to_vec() };
        self.add(kind, (name, help, labels), HistogramVec::new(options, labels))
    }
}

fn options(name: &str, help: &str) -> Opts {
    Opts::new(format!("foggara_{name}"), help)
}
