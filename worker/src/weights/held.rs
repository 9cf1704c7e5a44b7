//! What a rank holds on its device, for logs.

use foggara_kernels::cuda::{DeviceMatrix, WeightKind};

use super::{AttentionWeights, MlpKind, MlpWeights, RankWeights};

impl RankWeights<DeviceMatrix> {
    /// All of its matrices.
    pub fn matrices(&self) -> Vec<&DeviceMatrix> {
        let mut all: Vec<&DeviceMatrix> = self.embedding.iter().chain(&self.output).collect();
        for layer in &self.layers {
            match &layer.attention {
                AttentionWeights::Grouped(w) => {
                    all.extend(w.qkv.iter().map(|column| &column.weights).chain([&w.o]));
                }
                AttentionWeights::Latent(w) => {
                    all.extend(
                        w.q_down
                            .iter()
                            .chain([&w.q_up, &w.kv_down, &w.o])
                            .chain(&w.key_up)
                            .chain(&w.value_up),
                    );
                }
            }
            match &layer.mlp {
                MlpKind::Dense(mlp) => all.extend(of_mlp(mlp)),
                MlpKind::Experts(w) => {
                    let mlps = w.shared.iter().chain(w.held.iter().map(|(_, mlp)| mlp));
                    all.extend(mlps.flat_map(of_mlp).chain([&w.router]));
                }
            }
        }
        all
    }

    /// The types that its matrices are held in, and the bytes of each: `q4_0 3.61 GB, q8_0 0.28 GB, f32 0.01 GB`.
    pub fn held(&self) -> String {
        summary(self.matrices().into_iter().map(|matrix| (matrix.kind(), matrix.bytes())))
    }
}

fn of_mlp(mlp: &MlpWeights<DeviceMatrix>) -> impl Iterator<Item = &DeviceMatrix> {
    mlp.gate_up.iter().map(|column| &column.weights).chain([&mlp.down])
}

/// Bytes by type, the most first.
fn summary(matrices: impl Iterator<Item = (WeightKind, usize)>) -> String {
    let mut held: Vec<(WeightKind, usize)> = Vec::new();
    for (kind, bytes) in matrices.filter(|(_, bytes)| *bytes > 0) {
        match held.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, sum)) => *sum += bytes,
            None => held.push((kind, bytes)),
        }
    }
    held.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let each = held.iter().map(|(kind, bytes)| format!("{} {:.2} GB", kind.name(), *bytes as f64 / 1e9));
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_named_with_their_bytes_the_most_first() {
        let matrices =
            [(WeightKind::F32, 20_000_000), (WeightKind::Q4_0, 2_000_000_000), (WeightKind::Q8_0, 0)];
        let matrices =
            matrices.into_iter().chain([(WeightKind::Q4_0, 250_000_000), (WeightKind::F8, 100_000_000)]);
        assert_eq!(summary(matrices), "q4_0 2.25 GB, fp8 0.10 GB, f32 0.02 GB");
        assert_eq!(summary([].into_iter()), "");
    }
}
