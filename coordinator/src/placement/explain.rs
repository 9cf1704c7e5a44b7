//! Why a plan is as it is, and what is missing where there is none, for people.

use foggara_models::Quantize;
use foggara_proto::shape::Shape;

use super::choose::{Candidate, least_bytes};
use super::facts::{Kind, ModelFacts, Reach, Wish, WorkerFacts};
use super::memory::{fixed, usable};

/// Bytes in units of 1000, as memory is sold.
pub fn bytes(count: u64) -> String {
    match count {
        0..1_000_000 => format!("{count} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

/// Tokens per second with as many digits as mean something.
pub fn rate(tokens: f64) -> String {
    if tokens < 10.0 { format!("{tokens:.1}") } else { format!("{tokens:.0}") }
}

/// Quantizations that are offered when a model does not fit, the most exact first. (GPUs compute with q8_0 as well: fp8 takes less, and
/// is faster.)
const fn offered(kind: Kind) -> &'static [Quantize] {
    match kind {
        Kind::Cpu => &[Quantize::Q8_0, Quantize::Q4_0],
        Kind::Gpu => &[Quantize::Fp8, Quantize::Q4_K, Quantize::Q4_0],
    }
}

/// What `worker` cannot do of what is asked for.
pub(super) fn lacking(worker: &WorkerFacts, wish: &Wish) -> Option<String> {
    let (takes, on) = (&worker.takes, worker.kind.plural());
    let kv = wish.kv.filter(|kv| !takes.kv.contains(kv));
    if let Some(kv) = kv {
        let instead = takes.kv.last().map_or("auto", |kv| kv.name());
        return Some(format!("kv_dtype: a {} KV cache is not kept on {on}; use {instead}", kv.name()));
    }
    let quantize = wish.quantize;
    if !takes.quantize.contains(&quantize) {
        let elsewhere = if quantize.needs_gpu() { ", on GPUs only; use q8_0" } else { "" };
        return Some(format!("quantize: {quantize} weights are not computed on {on}{elsewhere}"));
    }
    let split = wish.shape.dp > 1 && !takes.data_parallel;
    split.then(|| format!("dp: data-parallel attention is not computed on {on}; use tp and ep"))
}

/// Why a model goes on this kind of workers, where there are both; `refusals` of the other come before.
pub(super) fn kind(kind: Kind, refusals: &[(Kind, String)]) -> String {
    match refusals {
        [] => format!("it fits on {}: other workers are not put into a group with them", kind.plural()),
        refusals => format!("on {}, for it cannot be {}", kind.plural(), refusals_on(refusals)),
    }
}

/// What a reason says that comes of workers of several versions, whatever else it says. Coordinators of other versions know it by
/// this.
pub const VERSIONS: &str = "a group has workers of one version";

/// Why a model goes on this version of workers, where there are several; `refusals` of newer ones come before.
pub(super) fn version(version: &str, refusals: &[(&str, String)]) -> String {
    match refusals {
        [] => format!("{VERSIONS}: the newest, {version}"),
        refusals => format!("{VERSIONS}: {version}, for it cannot be {}", refusals_of(refusals)),
    }
}

/// Why it goes on no version of workers.
pub(super) fn versions(refusals: &[(&str, String)]) -> String {
    format!("{VERSIONS}, and it cannot be {}: upgrade the others, or go back", refusals_of(refusals))
}

fn refusals_of(refusals: &[(&str, String)]) -> String {
    let each = refusals.iter().map(|(version, reason)| format!("{version} ({reason})"));
    each.collect::<Vec<_>>().join(", nor ")
}

/// Why it goes on no kind of workers.
pub(super) fn refusals(refusals: &[(Kind, String)]) -> String {
    match refusals {
        [(_, reason)] => reason.clone(),
        refusals => refusals_on(refusals),
    }
}

fn refusals_on(refusals: &[(Kind, String)]) -> String {
    let each = refusals.iter().map(|(kind, reason)| format!("on {} ({reason})", kind.plural()));
    each.collect::<Vec<_>>().join(", nor ")
}

/// What is missing.
pub(super) fn shortage(
    model: &ModelFacts,
    wish: &Wish,
    kind: Kind,
    shapes: &[Shape],
    workers: &[&WorkerFacts],
) -> String {
    if wish.reach == Reach::SharedMemory {
        let most = workers.iter().map(|w| workers.iter().filter(|other| other.host == w.host).count()).max();
        if shapes.iter().all(|shape| shape.ranks() as usize > most.unwrap_or(0)) {
            return "collective shm needs all ranks on one host".into();
        }
    }
    // The most that any of the shapes could take.
    let ranks = shapes.iter().map(|shape| shape.ranks()).max().unwrap_or(1) as usize;
    let mut memory: Vec<u64> = workers.iter().map(|worker| usable(worker)).collect();
    memory.sort_unstable_by_key(|bytes| std::cmp::Reverse(*bytes));
    memory.truncate(ranks);
    let have: u64 = memory.iter().sum();
    let need = least_bytes(model, wish, shapes, kind);
    let who = match memory.len() {
        1 => "the worker has".to_owned(),
        n => format!("the {n} workers have"),
    };
    let mut text = format!("memory: needs {} on {}, {who} {}", bytes(need), kind.plural(), bytes(have));
    text += &match need.checked_sub(have) {
        Some(lacking) => {
            format!(": {} more{}", bytes(lacking.max(1)), such(model, wish, kind, lacking, &memory))
        }
        None => ", but not where the parts would have to be".into(),
    };
    let smaller =
        offered(kind).iter().map(|offer| (offer, least_bytes(&model.quantized(*offer), wish, shapes, kind)));
    let smaller: Vec<_> = smaller.filter(|(_, then)| *then < need).collect();
    if let Some((name, then)) = smaller.iter().find(|(_, then)| *then <= have) {
        text += &format!(", or --quantize {name} would need {}", bytes(*then));
    } else if let Some((name, then)) = smaller.last() {
        text += &format!("; even --quantize {name} would need {}", bytes(*then));
    }
    text
}

/// How many GPUs that is, if there may be more of them: a GPU's memory does not grow.
fn such(model: &ModelFacts, wish: &Wish, kind: Kind, lacking: u64, memory: &[u64]) -> String {
    let each = memory.first().map_or(0, |largest| largest.saturating_sub(fixed(model, kind)));
    if kind == Kind::Cpu || wish.shape.is_fixed() || each == 0 {
        return String::new();
    }
    match lacking.max(1).div_ceil(each) {
        1 => " (1 such GPU)".into(),
        count => format!(" ({count} such GPUs)"),
    }
}

/// Why `best` of `candidates`.
pub(super) fn reasons(
    model: &ModelFacts,
    wish: &Wish,
    best: &Candidate<'_>,
    candidates: &[Candidate<'_>],
    workers: usize,
) -> Vec<String> {
    let mut reasons = Vec::new();
    let given: Vec<String> = numbers(wish.shape)
        .into_iter()
        .filter(|(_, value)| *value > 0)
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    if !given.is_empty() {
        reasons.push(format!("given: {}", given.join(", ")));
    }
    let ranks = best.shape.ranks();
    let by_ranks = |wanted: &dyn Fn(u32) -> bool| {
        let others = candidates.iter().filter(|c| wanted(c.shape.ranks()));
        others.max_by(|a, b| a.prediction.score().total_cmp(&b.prediction.score()))
    };
    let told = |c: &Candidate<'_>| {
        let (one, all) = (rate(c.prediction.one_stream), rate(c.prediction.saturated));
        format!(
            "{} gives {one} tokens/s to one stream and {all} to {} together",
            c.shape, c.prediction.sequences
        )
    };
    if let Some(same) = candidates
        .iter()
        .filter(|c| c.shape.ranks() == ranks && c.shape != best.shape)
        .max_by(|a, b| a.prediction.score().total_cmp(&b.prediction.score()))
    {
        reasons.push(format!("the next best on {}: {}", workers_text(ranks), told(same)));
    }
    match by_ranks(&|other| other < ranks) {
        Some(fewer) => reasons.push(format!("on fewer workers, {}", told(fewer))),
        None if ranks > 1 && wish.shape.ranks() < ranks => {
            reasons.push(format!("it does not fit on fewer than {}", workers_text(ranks)));
        }
        None => {}
    }
    if let Some(more) = by_ranks(&|other| other > ranks) {
        let why = "twice the workers must give 1.5 times the speed";
        reasons.push(format!("more workers would not pay ({why}): {}", told(more)));
    }
    if !best.weights.is_empty() {
        let list: Vec<String> = best.weights.iter().map(u32::to_string).collect();
        reasons.push(format!("the workers are unequal: slices of {} parts", list.join(", ")));
    }
    let kept: u64 = best.parts.iter().take(best.shape.tp as usize).map(|part| part.kv_heads).sum();
    if kept > model.kv_heads && model.kv_heads == 1 {
        reasons.push("every rank keeps the whole of the one key head".into());
    } else if kept > model.kv_heads {
        let more = kept - model.kv_heads;
        reasons.push(format!("{} key heads on tp {}: {more} more are kept", model.kv_heads, best.shape.tp));
    }
    let largest = best.needs.iter().max_by_key(|needs| needs.with_kv(best.kv_tokens));
    if let Some(needs) = largest {
        reasons.push(format!(
            "the fullest rank holds {} of weights, {} of KV cache for {} tokens, and {} besides",
            bytes(needs.weights),
            bytes(needs.kv_per_token * best.kv_tokens),
            best.kv_tokens,
            bytes(needs.fixed)
        ));
    }
    let spare = workers.saturating_sub(ranks as usize);
    if spare > 0 {
        reasons.push(format!("{} left over", workers_text(u32::try_from(spare).unwrap_or(u32::MAX))));
    }
    reasons
}

fn numbers(shape: Shape) -> [(&'static str, u32); 4] {
    [("tp", shape.tp), ("dp", shape.dp), ("pp", shape.pp), ("ep", shape.ep)]
}

fn workers_text(count: u32) -> String {
    match count {
        1 => "1 worker".into(),
        count => format!("{count} workers"),
    }
}
