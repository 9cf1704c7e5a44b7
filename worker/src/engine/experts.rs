//! How many tokens each expert has had: counted on every rank, told to the leader now and then.

use foggara_kernels::collective::CollectiveError;
use foggara_proto::step::ExpertCount;

use super::Engine;

impl Engine {
    /// Gives rank 0 what this rank has counted; there, adds up what all have.
    pub(super) fn collect_experts(&mut self) -> Result<(), CollectiveError> {
        let counts = self.decoder.take_expert_counts();
        // Exact in f32: a few hundred milliseconds have fewer tokens than 2^24.
        let own: Vec<f32> = counts.iter().flatten().map(|count| *count as f32).collect();
        let (size, leads) = (self.comms.size(), self.comms.rank() == 0);
        let mut all = vec![0.0; if leads { size * own.len() } else { 0 }];
        self.comms.all().gather(&own, &vec![own.len(); size], &mut all)?;
        if leads && !own.is_empty() {
            if self.expert_counts.is_empty() {
                self.expert_counts = counts.iter().map(|layer| vec![0; layer.len()]).collect();
            }
            for rank in all.chunks_exact(own.len()) {
                let sums = self.expert_counts.iter_mut().flatten();
                sums.zip(rank).for_each(|(sum, count)| *sum += *count as u64);
            }
        }
        Ok(())
    }

    /// Whether there is anything to collect.
    pub(super) fn has_experts(&self) -> bool {
        self.decoder.spec().moe_layers().next().is_some()
    }

    /// What has been collected and not named in a report yet.
    pub(super) fn take_expert_counts(&mut self) -> Vec<ExpertCount> {
        let word = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let counts = std::mem::take(&mut self.expert_counts);
        let of_layer = |(layer, counts): (usize, Vec<u64>)| {
            let used = counts.into_iter().enumerate().filter(|(_, tokens)| *tokens > 0);
            used.map(move |(expert, tokens)| ExpertCount { layer: word(layer), expert: word(expert), tokens })
                .collect::<Vec<_>>()
        };
        counts.into_iter().enumerate().flat_map(of_layer).collect()
    }
}
