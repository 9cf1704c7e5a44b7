//! Everything a forward pass computes is computed on the device: each op of each layer is launched there as often as the
//! architecture has it, and nothing comes to the host but what is summed over ranks, and logits.

use std::collections::BTreeMap;

use foggara_kernels::ThreadPool;
use foggara_kernels::cuda::testing::{Log, Seen, host_twin, watched_twin};
use foggara_kernels::op::draw::Rule;
use foggara_models::testing::{GOLDEN_DENSE, GOLDEN_WITH_EXPERTS};
use foggara_models::{Checkpoint, Cut, Quantize};

use super::*;
use crate::decoder::Want;
use crate::testing::{BLOCK_SIZE, BLOCKS, Kind, golden, group_on};
use crate::weights::{AttentionWeights, MlpKind, MlpWeights, OnDevice};

/// How often each op is done.
type Ops = BTreeMap<&'static str, usize>;

/// Which op a kernel does, of checkpoints stored in f32.
fn op_of(kernel: &'static str) -> &'static str {
    let begins = [
        ("embed_", "embedding"),
        ("rope_angles", "angles"),
        ("add_and_norm", "norm"),
        ("combine_add_and_norm", "norm"),
        ("plain_row", "product"),
        ("add_bias", "bias"),
        ("rope_and_write_", "keys and values"),
        ("latent_write_", "keys and values"),
        ("rope_rows", "rotation"),
        ("attention_f", "attention"),
        ("convert_", "conversion"),
        ("gated_f32", "activation"),
        ("moe_router_product_", "product"),
        ("moe_product_route_and_sort_", "router"),
        ("moe_route_and_sort", "router"),
        ("moe_combine_", "experts' sum"),
        ("gather_rows_", "rows that are scored"),
        ("soft_cap", "cap of logits"),
        ("sample_argmax", "greatest"),
    ];
    let op = begins.into_iter().find(|(begin, _)| kernel.starts_with(begin));
    op.unwrap_or_else(|| panic!("{kernel} is not expected here")).1
}

fn is(there: bool) -> usize {
    usize::from(there)
}

/// Of an MLP, or of experts that run side by side.
fn of_mlp(ops: &mut Ops, w: &MlpWeights<DeviceMatrix>, biased_in_place: bool) {
    *ops.entry("product").or_default() += w.gate_up.len() + 1;
    *ops.entry("activation").or_default() += 1;
    *ops.entry("bias").or_default() += is(!w.down_bias.is_empty() && biased_in_place);
}

/// What a rank with these weights does in a step with `together` rows of a sequence that are taken together (or none), and
/// `alone` others: all that the architecture says, layer by layer.
fn expected(spec: &ArchSpec, w: &RankWeights<DeviceMatrix>, tp: usize, alone: usize, together: usize) -> Ops {
    let mut ops = Ops::from([("embedding", 1), ("angles", spec.ropes.len()), ("greatest", 2)]);
    ops.extend([("rows that are scored", 1), ("cap of logits", is(spec.logit_softcap.is_some()))]);
    // After the last layer, and before the logits.
    ops.extend([("norm", 2), ("product", 1)]);
    for layer in &w.layers {
        let mut add = |op, count| *ops.entry(op).or_default() += count;
        add("norm", 2);
        add("keys and values", 1);
        add("attention", is(alone > 0) + is(together > 0));
        match &layer.attention {
            AttentionWeights::Grouped(a) => {
                add("product", a.qkv.len() + 1);
                add("bias", is(!a.o_bias.is_empty()));
            }
            AttentionWeights::Latent(a) => {
                // A short vector's, and both projections of heads.
                add("product", 2 * is(a.q_down.is_some()) + is(a.q_down.is_none()) + 2 + 2);
                add("norm", is(a.q_down.is_some()));
                add("bias", is(!a.q_down_bias.is_empty()) + is(!a.o_bias.is_empty()));
                add("rotation", 1);
                add("conversion", 2);
            }
        }
        match &layer.mlp {
            MlpKind::Dense(mlp) => of_mlp(&mut ops, mlp, true),
            MlpKind::Experts(experts) => {
                add("router", 1);
                // Of few rows the router's product is done with what follows it, of more alone.
                add("product", is(alone + together > 8));
                if let Some((_, first)) = experts.held.first() {
                    add("experts' sum", is(tp > 1));
                    of_mlp(&mut ops, first, false);
                }
                experts.shared.iter().for_each(|shared| of_mlp(&mut ops, shared, true));
            }
        }
    }
    ops.retain(|_, count| *count > 0);
    ops
}

/// What each rank's device was asked in each of these steps of two sequences, of so many tokens each; 0: only the other has some. The
/// last row of each wants this.
fn seen(
    model: &Checkpoint,
    shape: Shape,
    quantize: Quantize,
    kv: KvType,
    want: Want,
    steps: &[[u32; 2]],
) -> Vec<Vec<Vec<Seen>>> {
    let twins: Vec<(Device, Log)> = (0..shape.ranks()).map(|_| watched_twin()).collect();
    let device = |rank: usize| twins.get(rank).map(|(device, _)| device.clone());
    group_on(model, shape, quantize, Kind::Shm, kv, &device, |mut engine| {
        let log = &twins[engine.comms.rank()].1;
        let mut starts = [0, 0];
        let of_step = |lens: &[u32; 2]| {
            let live = lens.iter().filter(|len| **len > 0).count();
            let mut input = StepInput { wants: vec![want; live], ..StepInput::default() };
            for ((slot, len), next) in (0u32..).zip(*lens).zip(&mut starts) {
                if len == 0 {
                    continue;
                }
                let start = std::mem::replace(next, *next + len);
                if start == 0 {
                    let half = BLOCKS as u32 / 2;
                    input.grants.push((slot, (half * slot..half * (slot + 1)).collect()));
                }
                input.segments.push(Segment { slot, start, len, logits_from: len - 1 });
                let token = |at: u32| (at * 7 + slot) % model.spec().vocab as u32;
                input.tokens.extend((start..start + len).map(token));
            }
            engine.tables.apply(&input).expect("blocks exist");
            input.check(&engine.tables, model.spec().vocab, BLOCK_SIZE, 20).expect("a step that fits");
            log.take();
            engine
                .decoder
                .forward(&input, &engine.tables, &mut engine.comms, &mut |_, _| ())
                .expect("all ranks are there");
            log.take()
        };
        steps.iter().map(of_step).collect()
    })
}

/// What goes back and forth between the first launch and the last: where there is one rank, only which rows are scored; else
/// rows that are summed, after the embedding and twice a layer.
fn transfers_are_sums_only(name: &str, seen: &[Seen], layers: usize, ranks: usize, row_bytes: usize) {
    let is_launch = |seen: &Seen| matches!(seen, Seen::Launch(_));
    let first = seen.iter().position(is_launch).expect("something is launched");
    let last = seen.iter().rposition(is_launch).expect("something is launched");
    let between: Vec<Seen> = seen[first..last].iter().copied().filter(|seen| !is_launch(seen)).collect();
    let sums = if ranks == 1 { 0 } else { 1 + 2 * layers };
    let sum = [Seen::Download(row_bytes), Seen::Upload(row_bytes)];
    let which = Seen::Upload(2 * size_of::<u32>());
    let expected = [sum.repeat(sums), vec![which]].concat();
    assert_eq!(between, expected, "{name}, {ranks} ranks");
}

fn agrees(name: &str, shape: Shape) {
    let (model, _) = golden(name);
    let spec = model.spec();
    let plan = model.slices(&Cut::even(shape), Quantize::None).expect("can be cut");
    let store = OnDevice(host_twin());
    let pool = ThreadPool::with_spin(1, false);
    // Sixteen rows of a sequence are taken together; and few rows are routed otherwise.
    let lens = if shape.ranks() == 1 { &[[16, 1], [1, 1]][..] } else { &[[1, 2]] };
    for (rank, steps) in
        seen(&model, shape, Quantize::None, KvType::F32, Want::Best(1), lens).iter().enumerate()
    {
        let weights =
            RankWeights::load_to(&store, &model, &plan, rank, Quantize::None, &pool, &mut |_, _| true)
                .expect("loads");
        for (seen, [one, other]) in steps.iter().zip(lens) {
            let together = if *one >= 16 { *one as usize } else { 0 };
            let alone = (one + other) as usize - together;
            let mut ops = Ops::new();
            for seen in seen {
                if let Seen::Launch(kernel) = seen {
                    *ops.entry(op_of(kernel)).or_default() += 1;
                }
            }
            let expected = expected(spec, &weights, shape.tp, alone, together);
            assert_eq!(ops, expected, "{name} {shape}, rank {rank}, {alone} rows and {together} together");
            let row_bytes = (alone + together) * spec.hidden * size_of::<f32>();
            transfers_are_sums_only(name, seen, spec.layers.len(), shape.ranks(), row_bytes);
        }
    }
}

#[test]
fn no_op_of_any_golden_model_is_left_to_the_host() {
    let shape = |tp, ep| Shape { tp, dp: 1, pp: 1, ep };
    for name in GOLDEN_DENSE.into_iter().chain(GOLDEN_WITH_EXPERTS) {
        agrees(name, shape(1, 1));
        agrees(name, shape(2, 1));
    }
    for name in GOLDEN_WITH_EXPERTS {
        agrees(name, shape(2, 2));
    }
}

/// What products with weights in E4M3 take is made once: by norms, or of what comes from attention and gates.
fn rounded_once(name: &str, shape: Shape) {
    let (model, _) = golden(name);
    let plan = model.slices(&Cut::even(shape), Quantize::Fp8).expect("can be cut");
    let store = OnDevice(host_twin());
    let pool = ThreadPool::with_spin(1, false);
    for (rank, steps) in
        seen(&model, shape, Quantize::Fp8, KvType::F32, Want::Best(1), &[[3, 2]]).iter().enumerate()
    {
        let weights =
            RankWeights::load_to(&store, &model, &plan, rank, Quantize::Fp8, &pool, &mut |_, _| true)
                .expect("loads");
        // The norm before the logits is rounded to bf16.
        let (mut norms, mut others) = (0, 0);
        for layer in &weights.layers {
            norms += 2;
            if let AttentionWeights::Latent(a) = &layer.attention {
                norms += is(a.q_down.is_some());
            }
            others += 1 + match &layer.mlp {
                MlpKind::Dense(_) => 1,
                MlpKind::Experts(w) => is(w.shared.is_some()) + is(!w.held.is_empty()),
            };
        }
        let launched = |of: &dyn Fn(&str) -> bool| {
            steps[0].iter().filter(|seen| matches!(seen, Seen::Launch(kernel) if of(kernel))).count()
        };
        let found = launched(&|kernel| kernel.contains("add_and_norm") && kernel.ends_with("_f8"));
        assert_eq!(found, norms, "{name} {shape}, rank {rank}: norms that round");
        let found = launched(&|kernel| kernel.starts_with("quantize_rows"));
        assert_eq!(found, others, "{name} {shape}, rank {rank}: others");
    }
}

#[test]
fn inputs_of_weights_in_fp8_are_rounded_once() {
    for name in ["llama", "mixtral", "deepseek-v3"] {
        rounded_once(name, Shape::tensor(1));
        rounded_once(name, Shape::tensor(2));
    }
}

#[test]
fn a_row_alone_is_normed_routed_rotated_and_rounded_on_the_way() {
    let (model, _) = golden("mixtral");
    let layers = model.spec().layers.len();
    // A row that sees one span, and, after a prompt, one that sees two.
    let steps = [&[[1, 0]][..], &[[20, 0]; 13], &[[1, 0]]].concat();
    let steps = seen(&model, Shape::tensor(1), Quantize::Fp8, KvType::F16, Want::Best(1), &steps).remove(0);
    for (step, spans) in [(&steps[0], 1), (&steps[steps.len() - 1], 2)] {
        let kernels: Vec<&str> = step
            .iter()
            .filter_map(|seen| if let Seen::Launch(kernel) = seen { Some(*kernel) } else { None })
            .collect();
        let launched = |begin: &str| kernels.iter().filter(|kernel| kernel.starts_with(begin)).count();
        assert_eq!(
            launched("f8_few_cached_"),
            layers,
            "queries that are rotated, keys and values that are cached"
        );
        assert_eq!(launched("rope_and_write_"), 0, "those by themselves");
        assert_eq!(launched("moe_norm_route_"), layers, "norms that route");
        assert_eq!(launched("moe_product_route_"), 0, "routers by themselves");
        assert_eq!(launched("f8_few_own"), layers, "products that round their row");
        // What one span gives is rounded by itself; several are put together and rounded by the product.
        let apart = if spans > 1 { layers } else { 0 };
        assert_eq!(launched("f8_few_attended_"), apart, "products that put spans together");
        assert_eq!(launched("quantize_rows"), layers - apart, "rows that are rounded by themselves");
        assert_eq!(launched("attention_combine"), 0, "spans that are put together by themselves");
        // The norm, these products, attention, the other norm and the experts' first product; in all, besides, the embedding, angles, two
        // norms, the row that is scored, its logits and the best of them.
        let each = if spans > 1 { 7 } else { 8 };
        assert_eq!(kernels.len(), each * layers + 8, "{kernels:?}");
    }
}

#[test]
fn of_a_row_whose_token_is_drawn_nothing_else_comes_to_the_host() {
    let (model, _) = golden("llama");
    for (top_p, launches) in [(1.0, 2), (0.9, 8)] {
        let want = Want::Drawn(Rule::new(1.0, top_p, 0.0, 7));
        let steps = seen(&model, Shape::tensor(1), Quantize::None, KvType::F32, want, &[[3, 1]]).remove(0);
        let is_download = |seen: &&Seen| matches!(seen, Seen::Download(_));
        let downloads: Vec<&Seen> = steps[0].iter().filter(is_download).collect();
        assert_eq!(downloads, [&Seen::Download(2 * size_of::<u32>())], "top-p {top_p}");
        let is_draw = |seen: &&Seen| matches!(seen, Seen::Launch(kernel) if kernel.starts_with("draw_"));
        assert_eq!(steps[0].iter().filter(is_draw).count(), launches, "top-p {top_p}");
    }
}
