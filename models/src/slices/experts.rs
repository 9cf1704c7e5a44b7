//! Which part of a stage holds which expert: data, made by a pure function of measured load and of the parts' speed.

use crate::spec::ArchSpec;

/// For each layer, for each of its experts, the part (0..ep) that holds it. Empty lists for layers without experts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExpertMap(pub Vec<Vec<u16>>);

impl ExpertMap {
    /// Every expert taken for equally busy.
    pub fn even(spec: &ArchSpec, ep: usize) -> Self {
        let mut layers = vec![Vec::new(); spec.layers.len()];
        for (l, experts) in spec.moe_layers() {
            layers[l] = assign_experts(&vec![1; experts.count], &vec![1; ep]);
        }
        Self(layers)
    }

    /// Fits `spec` and has no part beyond `ep`.
    ///
    /// # Errors
    /// Names the layer.
    pub fn check(&self, spec: &ArchSpec, ep: usize) -> Result<(), String> {
        if self.0.len() != spec.layers.len() {
            return Err(format!("an expert map of {} layers for {}", self.0.len(), spec.layers.len()));
        }
        let mut counts = vec![0; spec.layers.len()];
        spec.moe_layers().for_each(|(l, experts)| counts[l] = experts.count);
        for (l, (parts, count)) in self.0.iter().zip(counts).enumerate() {
            if parts.len() != count || parts.iter().any(|part| usize::from(*part) >= ep) {
                return Err(format!("layer {l}: {} experts assigned to parts {parts:?} of {ep}", count));
            }
        }
        Ok(())
    }

    /// The experts of `layer` that `part` holds, in order.
    pub fn of_part(&self, layer: usize, part: usize) -> Vec<u32> {
        let parts = self.0[layer].iter().zip(0u32..);
        parts.filter(|(held_by, _)| usize::from(**held_by) == part).map(|(_, expert)| expert).collect()
    }
}

/// Assigns experts with these loads (tokens routed to each, say) to parts with these speeds, so that the slowest part is as
/// fast as can be without any part holding more than its share of them: the busiest expert first, always to the part that
/// will be through first (Graham's longest-processing-time rule, 1969). Deterministic: ties go to the lower index.
///
/// A part's share is what its speed is worth, rounded up; so memory stays as even as speeds are.
pub fn assign_experts(load: &[u64], speed: &[u32]) -> Vec<u16> {
    let total: u64 = speed.iter().map(|s| u64::from(*s)).sum::<u64>().max(1);
    let share = |s: u32| (load.len() as u64 * u64::from(s)).div_ceil(total);
    let mut room: Vec<u64> = speed.iter().map(|s| share(*s)).collect();
    let mut busy = vec![0u128; speed.len()];
    let mut order: Vec<usize> = (0..load.len()).collect();
    order.sort_by_key(|expert| (std::cmp::Reverse(load[*expert]), *expert));
    let mut parts = vec![0; load.len()];
    for expert in order {
        // An idle expert weighs a little, so that idle ones are spread too.
        let weight = u128::from(load[expert]) + 1;
        let done = |part: usize| {
            // busy / speed, compared without rounding: scaled by a number divisible by no speed in particular.
            ((busy[part] + weight) << 32) / u128::from(speed[part].max(1))
        };
        let best = (0..speed.len()).filter(|part| room[*part] > 0).min_by_key(|part| (done(*part), *part));
        let part = best.unwrap_or(0);
        room[part] = room[part].saturating_sub(1);
        busy[part] += weight;
        parts[expert] = u16::try_from(part).unwrap_or(u16::MAX);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(parts: &[u16], of: usize) -> Vec<usize> {
        (0..of).map(|part| parts.iter().filter(|p| usize::from(**p) == part).count()).collect()
    }

    #[test]
    fn equal_experts_are_spread_evenly_also_when_they_do_not_divide() {
        for (experts, ep) in [(8, 1), (8, 2), (8, 3), (16, 5), (3, 4), (256, 8)] {
            let counts = counts(&assign_experts(&vec![7; experts], &vec![1; ep]), ep);
            assert_eq!(counts.iter().sum::<usize>(), experts);
            let (most, least) = (counts.iter().max(), counts.iter().min());
            assert!(most.expect("parts") - least.expect("parts") <= 1, "{experts} over {ep}: {counts:?}");
        }
    }

    #[test]
    fn busy_experts_are_kept_apart_and_fast_parts_take_more() {
        let parts = assign_experts(&[100, 90, 1, 1, 1, 1], &[1, 1]);
        assert_ne!(parts[0], parts[1]);
        assert_eq!(counts(&parts, 2), [3, 3], "memory stays even");
        let parts = assign_experts(&[5; 9], &[2, 1]);
        assert_eq!(counts(&parts, 2), [6, 3]);
        assert_eq!(parts, assign_experts(&[5; 9], &[2, 1]));
    }
}
