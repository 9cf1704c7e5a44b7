//! Rows that travel between the ranks of a stage, to the experts they are routed to and back.

use foggara_kernels::collective::{Collective, CollectiveError};
use foggara_kernels::op::activations::Activations;
use foggara_kernels::op::rms_norm::add_assign;

use super::{ExpertLayer, ExpertRunner};

/// Rows and bytes of the exchange between ranks, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DispatchStats {
    /// Rows sent to other ranks because an expert there was chosen.
    pub routed_rows: u64,
    /// Rows of results sent back to other ranks.
    pub returned_rows: u64,
    /// Bytes sent to other ranks for both.
    pub bytes: u64,
}

/// Working memory of the exchange, and what it has cost.
pub(super) struct Exchange {
    stats: DispatchStats,
    /// This rank's rows.
    own: Activations,
    /// Rows that came from all ranks, and what becomes of them.
    arrived: Activations,
    answers: Vec<f32>,
    received: Vec<Vec<f32>>,
    returned: Vec<Vec<f32>>,
}

impl Exchange {
    /// Between `ranks` ranks, of rows of `hidden` elements.
    pub(super) fn new(hidden: usize, ranks: usize) -> Self {
        Self {
            stats: DispatchStats::default(),
            own: Activations::new(0, hidden),
            arrived: Activations::new(0, hidden),
            answers: Vec::new(),
            received: vec![Vec::new(); ranks],
            returned: vec![Vec::new(); ranks],
        }
    }

    /// Takes the rows `mine` of `x` as this rank's own.
    fn take(&mut self, x: &Activations, mine: &[usize]) {
        self.own.set_rows(mine.len());
        let cols = x.cols();
        for (row, to) in mine.iter().zip(self.own.f32_rows_mut().chunks_exact_mut(cols)) {
            to.copy_from_slice(x.row(*row));
        }
    }

    /// Sends to each rank the rows `sent` names for it; what comes is in `arrived`, rank by rank.
    fn dispatch(&mut self, sent: &[Vec<usize>], stage: &mut dyn Collective) -> Result<(), CollectiveError> {
        let parts: Vec<Vec<f32>> = sent
            .iter()
            .map(|rows| rows.iter().flat_map(|row| self.own.row(*row)).copied().collect())
            .collect();
        let views: Vec<&[f32]> = parts.iter().map(Vec::as_slice).collect();
        stage.all_to_all(&views, &mut self.received)?;
        let elements: usize = self.received.iter().map(Vec::len).sum();
        self.arrived.set_rows(elements / self.arrived.cols());
        let mut rows = self.arrived.f32_rows_mut();
        for part in &self.received {
            let (to, rest) = rows.split_at_mut(part.len());
            to.copy_from_slice(part);
            rows = rest;
        }
        self.answers.clear();
        self.answers.resize(elements, 0.0);
        Ok(())
    }

    /// Sends the answers back to where the rows came from.
    fn answer(&mut self, stage: &mut dyn Collective) -> Result<(), CollectiveError> {
        let mut rest = &self.answers[..];
        let views: Vec<&[f32]> = self
            .received
            .iter()
            .map(|part| {
                let (answer, after) = rest.split_at(part.len());
                rest = after;
                answer
            })
            .collect();
        stage.all_to_all(&views, &mut self.returned)
    }

    /// Counts one exchange that cost so many bytes.
    fn count(&mut self, sent: &[Vec<usize>], bytes: u64, rank: usize) {
        let hidden = self.own.cols();
        let others = || (0..sent.len()).filter(|other| *other != rank);
        self.stats.routed_rows += others().map(|other| sent[other].len() as u64).sum::<u64>();
        self.stats.returned_rows +=
            others().map(|other| (self.received[other].len() / hidden) as u64).sum::<u64>();
        self.stats.bytes += bytes;
    }
}

impl ExpertRunner {
    /// Rows and bytes sent to other ranks, so far.
    pub(in crate::decoder) fn stats(&self) -> DispatchStats {
        self.exchange.stats
    }

    /// As [`run_local`](Self::run_local) where the batch is split: adds to `out` what all experts of the stage give the rows
    /// `mine` of `x`. Every rank of the stage must call it, with or without rows.
    pub(in crate::decoder) fn run_dispatched(
        &mut self,
        layer: &mut ExpertLayer<'_>,
        x: &Activations,
        mine: &[usize],
        stage: &mut dyn Collective,
        out: &mut [f32],
    ) -> Result<(), CollectiveError> {
        // Out of `self`, whose other parts are needed beside it; an error ends the group, and it with it.
        let mut exchange = std::mem::replace(&mut self.exchange, Exchange::new(self.hidden, 0));
        exchange.take(x, mine);
        let routes = self.routes(layer, &mut exchange.own, &Vec::new());
        self.counts.count(layer.number, &routes);
        let holders = &self.holders[layer.number];
        let goes_to = |row: usize, rank: usize| {
            routes[row].iter().any(|(expert, _)| holders[*expert as usize].contains(&rank))
        };
        // For each rank, which of `mine` go there.
        let sent: Vec<Vec<usize>> = (0..stage.size())
            .map(|rank| (0..mine.len()).filter(|row| goes_to(*row, rank)).collect())
            .collect();
        let before = stage.stats().bytes;
        exchange.dispatch(&sent, stage)?;
        let routes = self.routes(layer, &mut exchange.arrived, &Vec::new());
        self.compute(layer, &exchange.arrived, &routes, &mut exchange.answers, &Vec::new());
        exchange.answer(stage)?;
        for (rows, answers) in sent.iter().zip(&exchange.returned) {
            for (row, answer) in rows.iter().zip(answers.chunks_exact(self.hidden)) {
                add_assign(&mut out[mine[*row] * self.hidden..][..self.hidden], answer);
            }
        }
        exchange.count(&sent, stage.stats().bytes - before, stage.rank());
        self.exchange = exchange;
        Ok(())
    }
}
