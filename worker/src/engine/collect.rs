//! What ranks count for operators (tokens of each expert, where their time goes), told to the leader now and then.

use std::time::{Duration, Instant};

use foggara_proto::step::{ExpertCount, RankUse, StepTiming};

use super::{Engine, EngineError};
use crate::decoder::DispatchStats;

/// Where the time of one step went on this rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepTimes {
    /// All of it.
    pub total: Duration,
    /// Of it, inside collectives.
    pub collective: Duration,
    /// Of it, sampling.
    pub sample: Duration,
}

impl StepTimes {
    /// As a report tells it of a step with so many rows.
    pub fn timing(&self, rows: usize) -> StepTiming {
        StepTiming {
            rows: word(rows),
            wait_us: 0,
            compute_us: micros(self.total.saturating_sub(self.sample)),
            collective_us: micros(self.collective),
            sample_us: micros(self.sample),
        }
    }
}

/// Takes the times of a step.
#[derive(Debug)]
pub struct StepWatch {
    began: Instant,
    /// What collectives had taken by then, in nanoseconds.
    collective: u64,
    sample: Duration,
}

impl StepWatch {
    /// A step begins; collectives have taken so many nanoseconds before it.
    pub fn begin(collective_nanos: u64) -> Self {
        Self { began: Instant::now(), collective: collective_nanos, sample: Duration::ZERO }
    }

    /// When it began.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// A row is sampled.
    pub fn sample(&mut self, sample: impl FnOnce()) {
        let began = Instant::now();
        sample();
        self.sample += began.elapsed();
    }

    /// The step is done; collectives have taken so many nanoseconds by now.
    pub fn end(&self, collective_nanos: u64) -> StepTimes {
        StepTimes {
            total: self.began.elapsed(),
            collective: Duration::from_nanos(collective_nanos - self.collective),
            sample: self.sample,
        }
    }
}

/// What this rank has done since it last told the leader.
#[derive(Debug, Default)]
pub struct OwnUse {
    steps: u64,
    wait: Duration,
    times: StepTimes,
    /// What had been sent by then.
    dispatched: DispatchStats,
}

impl OwnUse {
    /// Starts to count with what has been sent already.
    pub fn since(dispatched: DispatchStats) -> Self {
        Self { dispatched, ..Self::default() }
    }

    /// This rank has waited for the next step.
    pub fn waited(&mut self, wait: Duration) {
        self.wait += wait;
    }

    /// This rank has run a step.
    pub fn step(&mut self, times: &StepTimes) {
        self.steps += 1;
        self.times.total += times.total;
        self.times.collective += times.collective;
        self.times.sample += times.sample;
    }

    /// What the leader is told, with the tokens that each layer's experts were given: numbers that collectives carry.
    pub fn message(&self, experts: &[Vec<u64>], dispatched: DispatchStats) -> Vec<f32> {
        // Exact in f32: a few hundred milliseconds have fewer tokens than 2^24.
        let counts = experts.iter().flatten().map(|count| *count as f32);
        counts.chain(self.numbers(dispatched).into_iter().flat_map(halves)).collect()
    }

    /// In the order of [`rank_use`].
    fn numbers(&self, dispatched: DispatchStats) -> [u64; NUMBERS] {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let StepTimes { total, collective, sample } = self.times;
        let rows = |d: &DispatchStats| d.routed_rows + d.returned_rows;
        [
            self.steps,
            micros(self.wait),
            micros(total.saturating_sub(collective + sample)),
            micros(collective),
            micros(sample),
            rows(&dispatched) - rows(&self.dispatched),
            dispatched.bytes - self.dispatched.bytes,
        ]
    }
}

/// Numbers of each rank beside those of experts.
const NUMBERS: usize = 7;

fn rank_use(rank: usize, numbers: [u64; NUMBERS]) -> RankUse {
    let [steps, wait_us, compute_us, collective_us, sample_us, dispatched_rows, dispatched_bytes] = numbers;
    RankUse {
        rank: word(rank),
        steps,
        wait_us,
        compute_us,
        collective_us,
        sample_us,
        dispatched_rows,
        dispatched_bytes,
    }
}

/// What ranks have told the leader and no report has named yet.
#[derive(Debug, Default)]
pub struct Told {
    experts: Vec<Vec<u64>>,
    ranks: Vec<RankUse>,
}

impl Told {
    /// Takes in every rank's message, of a model whose layers have so many experts.
    pub fn take_in(&mut self, messages: &[f32], experts: &[Vec<u64>]) {
        if self.experts.is_empty() {
            self.experts = experts.iter().map(|layer| vec![0; layer.len()]).collect();
        }
        let counted: usize = experts.iter().map(Vec::len).sum();
        for (rank, told) in messages.chunks_exact(counted + 2 * NUMBERS).enumerate() {
            let (counts, numbers) = told.split_at(counted);
            let sums = self.experts.iter_mut().flatten();
            sums.zip(counts).for_each(|(sum, count)| *sum += *count as u64);
            let mut halves = numbers.as_chunks::<2>().0.iter().copied().map(whole);
            let numbers = std::array::from_fn(|_| halves.next().unwrap_or_default());
            self.ranks.push(rank_use(rank, numbers));
        }
    }

    /// Tokens routed to experts, for a report: of the layers that had any, every expert's. That one got none says as much about
    /// how even they are as that another got many.
    pub fn take_experts(&mut self) -> Vec<ExpertCount> {
        let counts = std::mem::take(&mut self.experts);
        let of_layer = |(layer, counts): (usize, Vec<u64>)| {
            let named = |(expert, tokens)| ExpertCount { layer: word(layer), expert: word(expert), tokens };
            counts.into_iter().enumerate().map(named).collect::<Vec<_>>()
        };
        let used = counts.into_iter().enumerate().filter(|(_, counts)| counts.iter().any(|n| *n > 0));
        used.flat_map(of_layer).collect()
    }

    /// What each rank has done, for a report.
    pub fn take_ranks(&mut self) -> Vec<RankUse> {
        std::mem::take(&mut self.ranks)
    }
}

impl Engine {
    /// Tells rank 0 what this rank has counted; there, takes in what all have.
    pub(super) fn collect(&mut self) -> Result<(), EngineError> {
        let counts = self.decoder.take_expert_counts()?;
        let dispatched = self.decoder.dispatch_stats();
        let own = std::mem::replace(&mut self.own, OwnUse::since(dispatched)).message(&counts, dispatched);
        let (size, leads) = (self.comms.size(), self.comms.rank() == 0);
        let mut all = vec![0.0; if leads { size * own.len() } else { 0 }];
        self.comms.all().gather(&own, &vec![own.len(); size], &mut all)?;
        if leads {
            self.told.take_in(&all, &counts);
        }
        Ok(())
    }
}

/// Collectives carry f32, which holds integers of 24 bits.
const HALF_BITS: u32 = 24;

/// A number as two that collectives can carry; more than 2^48 - 1 is not told.
fn halves(number: u64) -> [f32; 2] {
    let number = number.min((1 << (2 * HALF_BITS)) - 1);
    [(number >> HALF_BITS) as f32, (number & ((1 << HALF_BITS) - 1)) as f32]
}

fn whole([high, low]: [f32; 2]) -> u64 {
    ((high as u64) << HALF_BITS) + low as u64
}

pub(super) fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

fn word(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_collectives() {
        for number in [0, 1, 7_777_777, (1 << 24) - 1, 1 << 24, (1 << 24) + 1, (1 << 48) - 1] {
            assert_eq!(whole(halves(number)), number);
        }
        assert_eq!(whole(halves(u64::MAX)), (1 << 48) - 1);
    }

    #[test]
    fn experts_that_got_nothing_are_named_beside_those_that_did() {
        let mut told = Told { experts: vec![vec![0, 5], vec![0, 0], vec![7, 0]], ranks: Vec::new() };
        let count = |layer, expert, tokens| ExpertCount { layer, expert, tokens };
        let expected = [count(0, 0, 0), count(0, 1, 5), count(2, 0, 7), count(2, 1, 0)];
        assert_eq!(told.take_experts(), expected);
        assert_eq!(told.take_experts(), [], "each token once");
    }

    #[test]
    fn times_do_not_overlap() {
        let millis = Duration::from_millis;
        let before = DispatchStats { routed_rows: 1, returned_rows: 1, bytes: 9 };
        let mut own = OwnUse::since(before);
        own.waited(millis(2));
        own.step(&StepTimes { total: millis(10), collective: millis(3), sample: millis(1) });
        own.step(&StepTimes { total: millis(5), collective: millis(1), sample: millis(0) });
        let after = DispatchStats { routed_rows: 3, returned_rows: 2, bytes: 109 };
        let told = rank_use(4, own.numbers(after));
        assert_eq!(
            told,
            RankUse {
                rank: 4,
                steps: 2,
                wait_us: 2000,
                compute_us: 10_000,
                collective_us: 4000,
                sample_us: 1000,
                dispatched_rows: 3,
                dispatched_bytes: 100
            }
        );
    }
}
