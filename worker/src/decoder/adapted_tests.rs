//! Adapters against PEFT and transformers, at several shapes of group, and beside each other in one batch.

use foggara_kernels::op::kv_cache::KvType;
use foggara_models::{Adapter, Checkpoint, Cut, Quantize, Shape};
use serde_json::Value;

use super::tests::{Score, adapted_scores_on, agree};
use crate::testing::{Kind, golden, golden_adapter, tokens};
use crate::weights::{LoadError, RankAdapter};

/// The logits of every row of some sequences, each computed with one of the adapters or none.
fn logits(
    model: &Checkpoint,
    adapters: &[Adapter],
    sequences: &[(Vec<u32>, Option<u64>)],
    shape: Shape,
    ty: KvType,
    chunk: usize,
) -> Vec<Vec<Vec<f32>>> {
    let (tokens, of): (Vec<_>, Vec<_>) = sequences.iter().cloned().unzip();
    let (how, kind) = ((shape, Quantize::None), (Kind::Shm, ty));
    let all = adapted_scores_on(model, &tokens, &[], (adapters, &of), how, kind, chunk, &|_| None);
    let whole = |score: Score| match score {
        Score::Whole(logits) => logits,
        Score::Best(_) | Score::Drawn(_) => panic!("all are wanted"),
    };
    all.into_iter().map(|rows| rows.into_iter().map(whole).collect()).collect()
}

/// The cases of a fixture, greedy tokens included.
fn cases(expected: &Value) -> Vec<Vec<u32>> {
    let cases = expected["cases"].as_array().expect("cases");
    cases.iter().map(|case| [tokens(&case["prompt"]), tokens(&case["greedy"])].concat()).collect()
}

/// Compares an adapter of `model` with its fixture.
pub(super) fn agrees(name: &str, model: &Checkpoint, shape: Shape) {
    let (adapter, expected) = golden_adapter(name);
    let sequences: Vec<_> = cases(&expected).into_iter().map(|tokens| (tokens, Some(0))).collect();
    let all = logits(model, &[adapter], &sequences, shape, KvType::F32, 512);
    agree(name, &expected, shape, all);
}

#[test]
fn adapters_agree_with_peft_however_the_model_is_cut() {
    let shape = |tp, dp, pp, ep| Shape { tp, dp, pp, ep };
    let (llama, _) = golden("llama");
    for name in ["llama", "llama-attention"] {
        // At 7 some ranks share key heads, at 11 some have no head.
        for tp in [1, 2, 3, 7, 11] {
            agrees(name, &llama, Shape::tensor(tp));
        }
        for shape in [shape(1, 1, 2, 1), shape(1, 2, 1, 1), shape(2, 2, 2, 1)] {
            agrees(name, &llama, shape);
        }
    }
    let (mixtral, _) = golden("mixtral");
    for shape in [
        shape(1, 1, 1, 1),
        shape(2, 1, 1, 1),
        shape(2, 1, 1, 2),
        shape(4, 1, 1, 2),
        shape(4, 1, 1, 4),
        shape(2, 1, 2, 2),
    ] {
        agrees("mixtral", &mixtral, shape);
    }
}

#[test]
fn whose_rows_are_beside_a_sequence_changes_no_bit() {
    let (llama, _) = golden("llama");
    let (mixtral, _) = golden("mixtral");
    let of_llama = ["llama", "llama-attention"].map(|name| golden_adapter(name).0);
    let of_mixtral = [golden_adapter("mixtral").0];
    let models: [(&Checkpoint, &[Adapter], &[Shape]); 2] = [
        (&llama, &of_llama, &[Shape::default(), Shape::tensor(3), Shape { dp: 2, ..Shape::tensor(2) }]),
        (&mixtral, &of_mixtral, &[Shape::default(), Shape { ep: 2, ..Shape::tensor(2) }]),
    ];
    for (model, adapters, shapes) in models {
        let vocab = model.spec().vocab as u32;
        // Two of the same tokens with each adapter and two without: nothing but the adapter tells them apart.
        let sequence = |i: u32| {
            let which = u64::from(i) % (adapters.len() as u64 + 1);
            let tokens = (0..5 + 9 * (i % 2)).map(|j| (j * j * 17 + 3) % vocab).collect::<Vec<u32>>();
            (tokens, (which < adapters.len() as u64).then_some(which))
        };
        let sequences: Vec<_> = (0..6).map(sequence).collect();
        for shape in shapes {
            for chunk in [1, 4, 64] {
                let together = logits(model, adapters, &sequences, *shape, KvType::F16, chunk);
                for (i, one) in sequences.iter().enumerate() {
                    let alone =
                        logits(model, adapters, std::slice::from_ref(one), *shape, KvType::F16, chunk);
                    assert!(alone[0] == together[i], "{shape}, chunks of {chunk}, sequence {i}");
                }
                let whole = logits(model, adapters, &sequences, *shape, KvType::F16, 64);
                assert!(together == whole, "{shape}, chunks of {chunk}");
            }
        }
    }
}

#[test]
fn a_sequence_without_an_adapter_is_as_in_a_group_without_any() {
    let (model, expected) = golden("llama");
    let adapters = [golden_adapter("llama").0];
    let plain: Vec<_> = cases(&expected).into_iter().map(|tokens| (tokens, None)).collect();
    let mut mixed = plain.clone();
    mixed.extend(plain.iter().map(|(tokens, _)| (tokens.clone(), Some(0))));
    let mixed = logits(&model, &adapters, &mixed, Shape::tensor(2), KvType::F32, 512);
    let plain = logits(&model, &[], &plain, Shape::tensor(2), KvType::F32, 512);
    assert!(mixed[..plain.len()] == plain[..]);
    assert!(mixed[plain.len()..] != plain[..], "the adapter makes a difference");
}

#[test]
fn an_adapter_of_experts_is_refused_where_rows_travel() {
    let ((model, _), (adapter, _)) = (golden("mixtral"), golden_adapter("mixtral"));
    let shape = Shape { tp: 1, dp: 2, pp: 1, ep: 2 };
    let plan = model.slices(&Cut::even(shape), Quantize::None).expect("can be cut");
    let refused = RankAdapter::load(&adapter, model.spec(), &plan.ranks[0], shape.dp);
    assert!(matches!(refused, Err(LoadError::ExpertsOfOthers)), "{refused:?}");
    let (other, _) = golden_adapter("llama");
    let refused = RankAdapter::load(&other, model.spec(), &plan.ranks[0], 1);
    assert!(matches!(refused, Err(LoadError::Model(_))), "{refused:?}");
}
