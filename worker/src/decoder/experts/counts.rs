//! Tokens routed to each expert of each layer.

use crate::decoder::routing::Route;

/// The counts since they were last taken.
#[derive(Debug)]
pub struct ExpertCounts(Vec<Vec<u64>>);

impl ExpertCounts {
    /// Of a model whose layers have so many experts.
    pub fn new(experts: impl Iterator<Item = usize>) -> Self {
        Self(experts.map(|count| vec![0; count]).collect())
    }

    /// Rows of a layer were routed.
    pub fn count(&mut self, layer: usize, routes: &[Route]) {
        let counts = &mut self.0[layer];
        routes.iter().flatten().for_each(|(expert, _)| counts[*expert as usize] += 1);
    }

    /// What has been counted since the last call.
    pub fn take(&mut self) -> Vec<Vec<u64>> {
        let empty = self.0.iter().map(|counts| vec![0; counts.len()]).collect();
        std::mem::replace(&mut self.0, empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_is_taken_once() {
        let mut counts = ExpertCounts::new([0, 3].into_iter());
        counts.count(1, &[vec![(0, 0.5), (2, 0.5)], vec![(2, 1.0)]]);
        assert_eq!(counts.take(), [vec![], vec![1, 0, 2]]);
        assert_eq!(counts.take(), [vec![], vec![0, 0, 0]]);
    }
}
