//! The tensors a decoder needs, with their shapes.

use crate::roles::{LayerRole as R, TensorRole};
use crate::spec::{ArchSpec, Attention, Experts, Grouped, Latent, Mlp, Routing};

/// Every tensor, its rows and columns. Vectors have one row.
pub(crate) fn expected(spec: &ArchSpec) -> Vec<(TensorRole, usize, usize)> {
    let mut all = vec![
        (TensorRole::Embedding, spec.vocab, spec.hidden),
        (TensorRole::FinalNorm, 1, spec.hidden),
        (TensorRole::Output, spec.vocab, spec.hidden),
    ];
    for (l, layer) in spec.layers.iter().enumerate() {
        let mut tensors = vec![(R::AttnNorm, 1, spec.hidden), (R::MlpNorm, 1, spec.hidden)];
        match spec.attention {
            Attention::Grouped(a) => grouped(spec, a, &mut tensors),
            Attention::Latent(a) => latent(spec, a, &mut tensors),
        }
        if spec.post_norms {
            tensors.extend([(R::PostAttnNorm, 1, spec.hidden), (R::PostMlpNorm, 1, spec.hidden)]);
        }
        match layer.mlp {
            Mlp::Dense { width } => tensors.extend([
                (R::Gate, width, spec.hidden),
                (R::Up, width, spec.hidden),
                (R::Down, spec.hidden, width),
            ]),
            Mlp::Experts(e) => experts(spec, &e, &mut tensors),
        }
        all.extend(tensors.into_iter().map(|(role, rows, cols)| (TensorRole::Layer(l, role), rows, cols)));
    }
    all
}

fn grouped(spec: &ArchSpec, a: Grouped, tensors: &mut Vec<(R, usize, usize)>) {
    let (q, kv) = (spec.heads * a.head_dim, a.kv_heads * a.head_dim);
    tensors.extend([
        (R::Q, q, spec.hidden),
        (R::K, kv, spec.hidden),
        (R::V, kv, spec.hidden),
        (R::O, spec.hidden, q),
    ]);
    if a.qkv_bias {
        tensors.extend([(R::QBias, 1, q), (R::KBias, 1, kv), (R::VBias, 1, kv)]);
    }
    if a.o_bias {
        tensors.push((R::OBias, 1, spec.hidden));
    }
    if a.qk_norm {
        tensors.extend([(R::QNorm, 1, a.head_dim), (R::KNorm, 1, a.head_dim)]);
    }
    if a.sinks {
        tensors.push((R::Sinks, 1, spec.heads));
    }
}

fn latent(spec: &ArchSpec, a: Latent, tensors: &mut Vec<(R, usize, usize)>) {
    if let Some(rank) = a.q_rank {
        tensors.extend([(R::QDown, rank, spec.hidden), (R::QDownNorm, 1, rank)]);
    }
    if a.bias {
        tensors.extend(a.q_rank.map(|rank| (R::QDownBias, 1, rank)));
        tensors.extend([(R::KvDownBias, 1, a.kv_rank + a.rope_dim), (R::OBias, 1, spec.hidden)]);
    }
    tensors.extend([
        (R::QUp, spec.heads * (a.nope_dim + a.rope_dim), a.q_rank.unwrap_or(spec.hidden)),
        (R::KvDown, a.kv_rank + a.rope_dim, spec.hidden),
        (R::KvDownNorm, 1, a.kv_rank),
        (R::O, spec.hidden, spec.heads * a.value_dim),
    ]);
    match a.split_up {
        false => tensors.push((R::KvUp, spec.heads * (a.nope_dim + a.value_dim), a.kv_rank)),
        true => tensors.extend((0..spec.heads).flat_map(|head| {
            [(R::KeyUp(head), a.kv_rank, a.nope_dim), (R::ValueUp(head), a.value_dim, a.kv_rank)]
        })),
    }
}

fn experts(spec: &ArchSpec, e: &Experts, tensors: &mut Vec<(R, usize, usize)>) {
    tensors.push((R::Router, e.count, spec.hidden));
    if e.bias {
        tensors.push((R::RouterBias, 1, e.count));
    }
    if matches!(e.routing, Routing::GroupedSigmoid { .. }) {
        tensors.push((R::RouterCorrection, 1, e.count));
    }
    if e.shared_width > 0 {
        tensors.extend([
            (R::SharedGate, e.shared_width, spec.hidden),
            (R::SharedUp, e.shared_width, spec.hidden),
            (R::SharedDown, spec.hidden, e.shared_width),
        ]);
    }
    for i in 0..e.count {
        tensors.extend([
            (R::ExpertGate(i), e.width, spec.hidden),
            (R::ExpertUp(i), e.width, spec.hidden),
            (R::ExpertDown(i), spec.hidden, e.width),
        ]);
        if e.bias {
            tensors.extend([
                (R::ExpertGateBias(i), 1, e.width),
                (R::ExpertUpBias(i), 1, e.width),
                (R::ExpertDownBias(i), 1, spec.hidden),
            ]);
        }
    }
}
