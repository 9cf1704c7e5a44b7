//! How fast a shape will be: what a step reads and computes on each rank, how long that takes at the speeds the rank's worker has
//! ([`super::pace`]), and what the ranks tell each other.

use foggara_proto::shape::Shape;

use super::facts::{Link, Links, ModelFacts, WorkerFacts};
use super::layout::RankPart;
use super::memory::RankNeeds;
use super::pace::{RankStep, seconds};

/// Bytes of an activation between ranks: f32.
const ELEMENT: f64 = 4.0;

/// What is predicted of one replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    /// Tokens per second of one sequence alone.
    pub one_stream: f64,
    /// Tokens per second of as many sequences as fit.
    pub saturated: f64,
    /// How many that are.
    pub sequences: u64,
}

impl Prediction {
    /// What shapes are compared by: neither alone nor together may be bad.
    pub(super) fn score(&self) -> f64 {
        (self.one_stream * self.saturated).sqrt()
    }
}

/// A rank on its worker.
pub(super) struct Seat<'a> {
    pub worker: &'a WorkerFacts,
    pub part: &'a RankPart,
    pub needs: RankNeeds,
}

/// A group to be.
pub(super) struct Group<'a> {
    pub model: &'a ModelFacts,
    pub shape: Shape,
    pub links: &'a Links,
    /// In rank order.
    pub seats: Vec<Seat<'a>>,
}

impl Group<'_> {
    /// Tokens per second when each data-parallel part has a cache of `kv_tokens`, and each sequence `tokens` in it.
    pub(super) fn predict(&self, kv_tokens: u64, tokens: u64) -> Prediction {
        let dp = u64::from(self.shape.dp);
        let tokens = tokens.min(self.model.context).max(1);
        let fitting = (kv_tokens / tokens).max(1) * dp;
        let sequences = fitting.min(u64::from(crate::driver::MAX_SEQUENCES));
        let one_stream = 1.0 / self.step_seconds(1.0, tokens);
        let saturated = sequences as f64 / self.step_seconds(sequences as f64, tokens);
        // Batches that gain nothing are not made.
        Prediction { one_stream, saturated: saturated.max(one_stream), sequences }
    }

    /// Seconds for a step of `rows` sequences, each with `tokens` in the cache. Stages take turns: a step goes through all of
    /// them before the next one starts.
    fn step_seconds(&self, rows: f64, tokens: u64) -> f64 {
        let stage_ranks = self.shape.stage_ranks() as usize;
        let one_host = self.seats.iter().all(|seat| seat.worker.host == self.seats[0].worker.host);
        let stages = self.seats.chunks(stage_ranks).enumerate();
        stages
            .map(|(stage, seats)| {
                let local =
                    seats.iter().map(|seat| self.local_seconds(seat, rows, tokens)).fold(0.0, f64::max);
                local + self.exchange_seconds(stage, seats, rows, one_host)
            })
            .sum()
    }

    /// Reading and computing on one rank.
    fn local_seconds(&self, seat: &Seat<'_>, rows: f64, tokens: u64) -> f64 {
        let (model, part) = (self.model, seat.part);
        let own_rows = (rows / f64::from(self.shape.dp)).max(1.0);
        // Parameters read, and multiply-adds.
        let (mut read, mut work) = (0.0, 0.0);
        for layer in &model.layers[part.layers.clone()] {
            let shared = layer.attention as f64 * part.heads as f64 / model.heads.max(1) as f64
                + layer.dense as f64 * part.share;
            read += shared;
            work += shared * own_rows;
            if let Some(experts) = layer.experts {
                let owned = part.experts.min(experts.count) as f64;
                let each = experts.parameters as f64 * part.expert_share;
                let (count, top_k) = (experts.count.max(1) as f64, experts.top_k as f64);
                let busiest = busiest_part(count, top_k, rows, owned);
                read += busiest.experts * each;
                work += busiest.rows * each;
            }
        }
        let bits = model.bits.on(seat.worker.kind);
        let mut bytes = read * bits.layers / 8.0;
        if part.stage + 1 == self.shape.pp {
            let output = model.embedding as f64 * part.share;
            bytes += output * bits.embedding / 8.0;
            read += output;
            work += output * own_rows;
        }
        bytes += seat.needs.kv_per_token as f64 * own_rows * tokens as f64;
        let attended = part.heads as f64 / model.heads.max(1) as f64 * model.hidden as f64 * tokens as f64;
        let step = RankStep {
            layers: part.layers.len() as f64,
            rows: own_rows,
            width: model.hidden as f64,
            bytes,
            of: self.on_host(seat).map(|other| other.needs.read_again(tokens) as f64).sum(),
            readers: self.on_host(seat).filter(|other| other.part.stage == part.stage).count() as f64,
            products: work,
            parameters: read,
            quantized: bits.layers < 16.0,
            attention: 4.0 * own_rows * attended * part.layers.len() as f64,
        };
        seconds(seat.worker.kind, &seat.worker.speeds, &step)
    }

    /// The group's ranks on this one's host, itself included: they share the caches there.
    fn on_host(&self, seat: &Seat<'_>) -> impl Iterator<Item = &Seat<'_>> {
        self.seats.iter().filter(|other| other.worker.host == seat.worker.host)
    }

    /// What the ranks of a stage tell each other, and the next stage.
    fn exchange_seconds(&self, stage: usize, seats: &[Seat<'_>], rows: f64, one_host: bool) -> f64 {
        let (model, shape) = (self.model, self.shape);
        let own_rows = (rows / f64::from(shape.dp)).max(1.0);
        let row = model.hidden as f64 * ELEMENT;
        // Tensor-parallel ranks are neighbours; the slowest of these sets holds all up.
        let tensor = seats.chunks(shape.tp as usize).map(|ranks| self.link(ranks, one_host));
        let tensor = slowest(tensor).unwrap_or(self.links.shared_memory);
        let whole = self.link(seats, one_host);
        let reduce = all_reduce(tensor, shape.tp, own_rows * row);
        let mut seconds = 0.0;
        let Some(first) = seats.first() else { return 0.0 };
        for layer in &model.layers[first.part.layers.clone()] {
            seconds += reduce;
            seconds += match layer.experts {
                Some(experts) if shape.dp > 1 => {
                    // Rows go to the ranks of their experts and come back; shared experts are summed over tp.
                    let parts = f64::from(shape.stage_ranks());
                    let sent =
                        own_rows / f64::from(shape.tp) * experts.top_k as f64 * row * (1.0 - 1.0 / parts);
                    2.0 * whole.seconds(sent, 1.0) + if layer.dense > 0 { reduce } else { 0.0 }
                }
                _ => reduce,
            };
        }
        if stage == 0 {
            seconds += reduce;
        }
        if stage + 1 == shape.pp as usize {
            // The leader gets everyone's logits.
            let logits =
                own_rows * model.vocab as f64 * ELEMENT * (1.0 - 1.0 / f64::from(shape.stage_ranks()));
            seconds += if shape.stage_ranks() > 1 { whole.seconds(logits, 1.0) } else { 0.0 };
        } else {
            let next = &self.seats[(stage + 1) * seats.len()..(stage + 2) * seats.len()];
            let ends: Vec<&WorkerFacts> = seats.iter().chain(next).map(|seat| seat.worker).collect();
            let hop = self.links.among(&ends, one_host);
            seconds += hop.seconds(own_rows * row / f64::from(shape.tp), 1.0);
        }
        seconds
    }

    fn link(&self, seats: &[Seat<'_>], one_host: bool) -> Link {
        let workers: Vec<&WorkerFacts> = seats.iter().map(|seat| seat.worker).collect();
        self.links.among(&workers, one_host)
    }
}

/// The slowest for a small message.
fn slowest(links: impl Iterator<Item = Link>) -> Option<Link> {
    links.max_by(|a, b| {
        let small = |link: &Link| link.seconds(16_384.0, 1.0);
        small(a).total_cmp(&small(b))
    })
}

/// Reduce-scatter and all-gather: everyone sends and receives all but their own part, twice.
fn all_reduce(link: Link, ranks: u32, bytes: f64) -> f64 {
    if ranks < 2 {
        return 0.0;
    }
    let others = 1.0 - 1.0 / f64::from(ranks);
    link.seconds(2.0 * bytes * others, 2.0)
}

/// What the part of a layer's experts with the most to do has to do.
struct Busiest {
    /// Experts that see a row.
    experts: f64,
    /// Rows, counted once for each expert that sees them.
    rows: f64,
}

/// Routing is taken to be even: `rows` rows choose `top_k` of `count` experts each; a part owns `owned` of them. How many of
/// the chosen experts a part owns follows a hypergeometric distribution, how many rows it is given nearly a Poisson one; the
/// busiest of several parts is taken to be the largest of as many normal variables of that mean and deviation.
fn busiest_part(count: f64, top_k: f64, rows: f64, owned: f64) -> Busiest {
    let distinct = count * (1.0 - (1.0 - (top_k / count).min(1.0)).powf(rows));
    if owned <= 0.0 {
        return Busiest { experts: 0.0, rows: 0.0 };
    }
    let share = owned / count;
    let above = largest_of(1.0 / share);
    let (mean, given) = (distinct * share, rows * top_k * share);
    let others = ((count - distinct) / (count - 1.0).max(1.0)).max(0.0);
    let experts = mean + above * (mean * (1.0 - share) * others).sqrt();
    Busiest {
        experts: experts.min(distinct).min(owned),
        rows: (given + above * (given * (1.0 - share)).sqrt()).min(rows * owned.min(top_k)),
    }
}

/// The mean of the largest of `n` standard normal variables, by Blom's formula (Statistical Estimates and Transformed
/// Beta-Variables, 1958): the quantile at (n − 3/8) / (n + 1/4), that one as Hastings approximates it (Abramowitz and
/// Stegun, 26.2.23).
fn largest_of(n: f64) -> f64 {
    if n <= 1.0 {
        return 0.0;
    }
    let upper = 1.0 - (n - 0.375) / (n + 0.25);
    let t = (-2.0 * upper.ln()).sqrt();
    let above = 2.515_517 + 0.802_853 * t + 0.010_328 * t * t;
    let below = 1.0 + 1.432_788 * t + 0.189_269 * t * t + 0.001_308 * t * t * t;
    (t - above / below).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_part_has_no_less_than_its_share_and_no_more_than_there_is() {
        for (count, top_k, rows, owned) in [
            (8.0, 2.0, 1.0, 8.0),
            (8.0, 2.0, 1.0, 2.0),
            (8.0, 2.0, 64.0, 1.0),
            (256.0, 8.0, 1.0, 16.0),
            (256.0, 8.0, 64.0, 16.0),
        ] {
            let busiest = busiest_part(count, top_k, rows, owned);
            let distinct = count * (1.0 - (1.0 - top_k / count).powf(rows));
            assert!(busiest.experts >= distinct * owned / count - 1e-9 && busiest.experts <= owned + 1e-9);
            assert!(
                busiest.rows >= rows * top_k * owned / count - 1e-9 && busiest.rows <= rows * top_k + 1e-9
            );
        }
        // Of two experts of eight, the half of them that has more has 1 + 3/7 on the mean.
        let half = busiest_part(8.0, 2.0, 1.0, 4.0);
        assert!((half.experts - 10.0 / 7.0).abs() < 0.06, "{}", half.experts);
        let alone = busiest_part(8.0, 2.0, 1.0, 8.0);
        assert!((alone.experts - 2.0).abs() < 1e-9, "one token touches its two experts");
    }

    #[test]
    fn the_largest_of_more_is_larger() {
        // Exact: 1/√π, and 1.0294, 1.7660 (Harter, 1961).
        for (n, exact) in [(1.0, 0.0), (2.0, 0.5642), (4.0, 1.0294), (16.0, 1.7660)] {
            assert!((largest_of(n) - exact).abs() < 0.03, "{n}: {}", largest_of(n));
        }
    }

    #[test]
    fn collectives_cost_nothing_alone_and_more_with_every_rank() {
        let link = Links::ASSUMED.network;
        assert_eq!(all_reduce(link, 1, 1e6), 0.0);
        assert!(all_reduce(link, 2, 1e6) < all_reduce(link, 4, 1e6));
    }
}
