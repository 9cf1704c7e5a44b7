//! Where the time of a step goes when kernels begin before others have ended: made of the moments that they keep
//! (`FOGGARA_CUDA_TRACE=1`).

use std::collections::BTreeMap;
use std::fmt;

use foggara_kernels::cuda::{Moment, Stage};

/// What kernels are told apart by: the source, blocks, threads of each.
type Kernel = (&'static str, u32, u32);

/// One start of a kernel, in nanoseconds of the device's clock, as the blocks that keep moments saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    kernel: Kernel,
    /// The first block begins to wait for the kernels before.
    begins: u64,
    /// The first block has waited.
    waited: u64,
    /// The last block that says so has ended.
    ends: Option<u64>,
}

/// What starts of a kernel have in common, on average, in microseconds.
#[derive(Debug, PartialEq)]
struct Line {
    kernel: Kernel,
    starts: usize,
    /// From the kernel before having waited until this one has.
    after: f64,
    /// From having begun to wait until it has: so much earlier it was ready than it could go on.
    waits: f64,
    /// From having waited to its end.
    works: Option<f64>,
}

/// Kernels in the order in which most of them follow each other, from the most frequent one on.
pub(super) struct Timeline(Vec<Line>);

impl Timeline {
    pub(super) fn of(moments: &[Moment]) -> Self {
        let starts = starts(moments);
        let mut follow: BTreeMap<Kernel, BTreeMap<Kernel, Vec<(u64, Start)>>> = BTreeMap::new();
        for pair in starts.windows(2) {
            let after = pair[1].waited - pair[0].waited;
            let next = follow.entry(pair[0].kernel).or_default();
            next.entry(pair[1].kernel).or_default().push((after, pair[1]));
        }
        let most = follow.iter().max_by_key(|(_, next)| next.values().map(Vec::len).sum::<usize>());
        let mut at = most.map(|(kernel, _)| *kernel);
        let mut lines = Vec::new();
        while let Some(next) = at.and_then(|kernel| follow.remove(&kernel)) {
            let Some((kernel, starts)) = next.into_iter().max_by_key(|(_, starts)| starts.len()) else {
                break;
            };
            lines.push(Line::of(kernel, &starts));
            at = Some(kernel);
        }
        Self(lines)
    }
}

impl Line {
    fn of(kernel: Kernel, starts: &[(u64, Start)]) -> Self {
        let mean = |of: &dyn Fn(&(u64, Start)) -> Option<u64>| {
            let all: Vec<u64> = starts.iter().filter_map(of).collect();
            (!all.is_empty()).then(|| all.iter().sum::<u64>() as f64 / all.len() as f64 / 1e3)
        };
        Self {
            kernel,
            starts: starts.len(),
            after: mean(&|(after, _)| Some(*after)).unwrap_or_default(),
            waits: mean(&|(_, start)| Some(start.waited.saturating_sub(start.begins))).unwrap_or_default(),
            works: mean(&|(_, start)| Some(start.ends?.saturating_sub(start.waited))),
        }
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:24} {:>7} {:>8} {:>8} {:>8}",
            "µs of kernels in a row", "starts", "after", "waits", "works"
        )?;
        for line in &self.0 {
            let (file, blocks, threads) = line.kernel;
            let name = format!("{file} {blocks}×{threads}");
            write!(f, "{name:24} {:7} {:8.2} {:8.2} ", line.starts, line.after, line.waits)?;
            match line.works {
                Some(works) => writeln!(f, "{works:8.2}")?,
                None => writeln!(f, "{:>8}", "?")?,
            }
        }
        Ok(())
    }
}

/// All starts, in the order in which they had waited.
fn starts(moments: &[Moment]) -> Vec<Start> {
    let mut by_kernel: BTreeMap<Kernel, Vec<&Moment>> = BTreeMap::new();
    for moment in moments {
        by_kernel.entry((moment.file, moment.blocks, moment.threads)).or_default().push(moment);
    }
    let mut all = Vec::new();
    for (kernel, mut moments) in by_kernel {
        moments.sort_by_key(|moment| moment.at);
        all.extend(split(&moments).iter().filter_map(|start| summed_up(kernel, start)));
    }
    all.sort_by_key(|start| start.waited);
    all
}

/// The moments of each start. A start is over when it has ended somewhere and another begins; of kernels that do not say when they
/// end, when a block begins that has begun.
fn split<'a>(moments: &[&'a Moment]) -> Vec<Vec<&'a Moment>> {
    let say_ends = moments.iter().any(|moment| moment.stage == Stage::Ends);
    let mut starts: Vec<Vec<&Moment>> = Vec::new();
    for moment in moments {
        let is_next = moment.stage == Stage::BeginsToWait
            && starts.last().is_none_or(|start| {
                start.iter().any(|before| match say_ends {
                    true => before.stage == Stage::Ends,
                    false => before.stage == Stage::BeginsToWait && before.block == moment.block,
                })
            });
        match starts.last_mut() {
            Some(start) if !is_next => start.push(moment),
            _ => starts.push(vec![moment]),
        }
    }
    starts
}

fn summed_up(kernel: Kernel, moments: &[&Moment]) -> Option<Start> {
    let of =
        |stage: Stage| moments.iter().filter(move |moment| moment.stage == stage).map(|moment| moment.at);
    Some(Start {
        kernel,
        begins: of(Stage::BeginsToWait).min()?,
        waited: of(Stage::HasWaited).min()?,
        ends: of(Stage::Ends).max(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(at: u64, stage: Stage, file: &'static str, block: u32) -> Moment {
        Moment { at, stage, file, block, blocks: 2, threads: 64 }
    }

    #[test]
    fn kernels_that_overlap_are_told_apart() {
        use Stage::{BeginsToWait, Ends, HasWaited};
        let layer = |from: u64| {
            [
                // A product: its blocks wait twice, and end one after the other.
                moment(from + 1_000, BeginsToWait, "product", 0),
                moment(from + 1_500, BeginsToWait, "product", 1),
                moment(from + 3_000, HasWaited, "product", 0),
                moment(from + 3_100, BeginsToWait, "product", 0),
                moment(from + 3_100, HasWaited, "product", 0),
                moment(from + 3_200, HasWaited, "product", 1),
                moment(from + 7_000, Ends, "product", 1),
                moment(from + 9_000, Ends, "product", 0),
                // A norm, which begins while the product works, and does not say when it ends.
                moment(from + 5_000, BeginsToWait, "norm", 0),
                moment(from + 9_500, HasWaited, "norm", 0),
            ]
        };
        let moments: Vec<Moment> = (0..4).flat_map(|i| layer(i * 20_000)).collect();
        let Timeline(lines) = Timeline::of(&moments);
        let line =
            |file, starts, after, waits, works| Line { kernel: (file, 2, 64), starts, after, waits, works };
        let product = line("product", 3, 13.5, 2.0, Some(6.0));
        let norm = line("norm", 4, 6.5, 4.5, None);
        assert!(lines == [norm, product], "{lines:?}");
    }

    #[test]
    fn nothing_kept_is_nothing_shown() {
        assert!(Timeline::of(&[]).0.is_empty());
    }
}
