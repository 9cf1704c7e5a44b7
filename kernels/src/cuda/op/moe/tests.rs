use super::*;
use crate::cuda::op::residual::{Norm, add_and_norm, combine_add_and_norm};
use crate::cuda::testing::devices;
use crate::cuda::{ActType, Acts, DeviceMatrix, F8Rows, WeightKind};

/// Numbers for tests.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % below.max(1) as u64) as usize
    }

    fn float(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 22) as f32 - 2.0
    }

    /// In every third case many equals, and in every fifth what is not a number.
    fn logits(&mut self, count: usize, case: usize) -> Vec<f32> {
        let one = |n: &mut Self| match case % 3 {
            0 => n.below(7) as f32 - 3.0,
            _ => n.float() * 3.0,
        };
        (0..count).map(|_| if case % 5 == 4 && self.below(40) == 0 { f32::NAN } else { one(self) }).collect()
    }
}

/// The CPU's routing, written out: sorts everything.
fn expected(routing: Routing, top_k: usize, logits: &[f32], correction: &[f32]) -> Vec<(u32, f32)> {
    let mut route: Vec<(u32, f32)> = match routing {
        Routing::Softmax { renormalize } => {
            let scores: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
            let chosen = greatest(&scores, top_k);
            let highest = chosen.first().map_or(0.0, |e| scores[*e]);
            let weight = |e: usize| (scores[e] - highest).exp();
            let total: f64 = match renormalize {
                true => chosen.iter().map(|e| weight(*e)).sum(),
                false => (0..scores.len()).map(weight).sum(),
            };
            chosen.iter().map(|e| (*e as u32, (weight(*e) / total) as f32)).collect()
        }
        Routing::GroupedSigmoid { groups, top_groups, renormalize, scale } => {
            let scores: Vec<f64> = logits.iter().map(|x| 1.0 / (1.0 + (-f64::from(*x)).exp())).collect();
            let corrected: Vec<f64> = scores.iter().zip(correction).map(|(s, c)| s + f64::from(*c)).collect();
            let size = logits.len() / groups;
            let best_two = |group: &[f64]| greatest(group, 2).into_iter().map(|e| group[e]).sum::<f64>();
            let sums: Vec<f64> = corrected.chunks(size).map(best_two).collect();
            let open = greatest(&sums, top_groups);
            let masked: Vec<f64> = (0..scores.len())
                .map(|e| if open.contains(&(e / size)) { corrected[e] } else { f64::NEG_INFINITY })
                .collect();
            let chosen = greatest(&masked, top_k);
            let sum: f64 = chosen.iter().map(|e| scores[*e]).sum();
            let by = if renormalize { f64::from(scale) / (sum + 1e-20) } else { f64::from(scale) };
            chosen.into_iter().map(|e| (e as u32, (scores[e] * by) as f32)).collect()
        }
    };
    route.sort_unstable_by_key(|(expert, _)| *expert);
    route
}

fn greatest(scores: &[f64], count: usize) -> Vec<usize> {
    let key = |e: &usize| if scores[*e].is_nan() { f64::NEG_INFINITY } else { scores[*e] };
    let mut sorted: Vec<usize> = (0..scores.len()).collect();
    sorted.sort_by(|a, b| key(b).total_cmp(&key(a)).then(a.cmp(b)));
    sorted.truncate(count);
    sorted
}

/// Sizes of a step.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: usize,
    experts: usize,
    top_k: usize,
    routing: Routing,
    biased: bool,
}

fn softmax(renormalize: bool) -> Routing {
    Routing::Softmax { renormalize }
}

fn sigmoid(groups: usize, top_groups: usize, renormalize: bool) -> Routing {
    Routing::GroupedSigmoid { groups, top_groups, renormalize, scale: 2.5 }
}

fn sizes(rows: usize, experts: usize, top_k: usize, routing: Routing, biased: bool) -> Sizes {
    Sizes { rows, experts, top_k, routing, biased }
}

/// Of each expert, its number here: about every `every`th is not here.
fn some_local(numbers: &mut Numbers, experts: usize, every: usize) -> (Vec<u32>, usize) {
    let mut count = 0;
    let mut number = |here: bool| {
        count += u32::from(here);
        if here { count - 1 } else { u32::MAX }
    };
    let local: Vec<u32> = (0..experts).map(|_| number(every == 0 || numbers.below(every) != 0)).collect();
    (local, count as usize)
}

fn poison<T: bytemuck::Pod>(buffer: &mut Buffer<T>) {
    buffer.view_mut().fill(0xff).unwrap();
}

fn poisoned(device: &Device, max_rows: usize, top_k: usize, experts: usize, local: usize) -> MoeBuffers {
    let mut buffers = MoeBuffers::new(device, max_rows, top_k, experts, local).unwrap();
    poison(&mut buffers.ids);
    poison(&mut buffers.weights);
    poison(&mut buffers.positions);
    poison(&mut buffers.groups.offsets);
    poison(&mut buffers.groups.group_of_row);
    poison(&mut buffers.groups.token_of_row);
    poison(&mut buffers.tile_counts);
    buffers
}

/// What sorting must have written for `ids`.
fn check_sorted(buffers: &MoeBuffers, ids: &[u32], rows: usize, local: &[u32], case: &str) {
    let (top_k, groups) = (buffers.top_k, &buffers.groups);
    let mut pairs: Vec<(u32, usize)> = (0..rows * top_k).map(|p| (local[ids[p] as usize], p)).collect();
    pairs.retain(|(group, _)| *group != u32::MAX);
    pairs.sort_unstable();
    let mut positions = vec![u32::MAX; rows * top_k];
    pairs.iter().enumerate().for_each(|(at, (_, pair))| positions[*pair] = at as u32);
    assert_eq!(buffers.positions.download().unwrap()[..rows * top_k], positions, "positions: {case}");
    let offsets: Vec<u32> = (0..=groups.count)
        .map(|g| pairs.iter().filter(|(group, _)| (*group as usize) < g).count() as u32)
        .collect();
    assert_eq!(groups.offsets.download().unwrap()[..=groups.count], offsets, "offsets: {case}");
    let of_row = |rows: Vec<u32>| rows[..pairs.len()].to_vec();
    let group_of_row: Vec<u32> = pairs.iter().map(|(group, _)| *group).collect();
    assert_eq!(of_row(groups.group_of_row.download().unwrap()), group_of_row, "groups of rows: {case}");
    let token_of_row: Vec<u32> = pairs.iter().map(|(_, pair)| (pair / top_k) as u32).collect();
    assert_eq!(of_row(groups.token_of_row.download().unwrap()), token_of_row, "tokens of rows: {case}");
    assert!(pairs.len() <= groups.max_rows, "{} sorted rows of {}: {case}", pairs.len(), groups.max_rows);
}

fn check_route(device: &Device, case: usize, s: Sizes, fused: bool) {
    let numbers = &mut Numbers(case as u64 + 1);
    let logits = numbers.logits(s.rows * s.experts, case);
    let bias: Vec<f32> = (0..s.experts).map(|_| if s.biased { numbers.float() } else { 0.0 }).collect();
    let correction: Vec<f32> =
        (0..s.experts).map(|_| if s.biased { numbers.float() * 0.1 } else { 0.0 }).collect();
    let (local, held) = some_local(numbers, s.experts, case % 4);
    let case = format!("case {case} on {device:?}, fused: {fused}, {s:?}");
    let mut buffers = poisoned(device, s.rows + 3, s.top_k, s.experts, held);
    let (bias_on, correction_on) = (device.upload(&bias).unwrap(), device.upload(&correction).unwrap());
    let (logits_on, local_on) = (device.upload(&logits).unwrap(), device.upload(&local).unwrap());
    let mut counts = device.upload(&vec![5u64; s.experts]).unwrap();
    let given = |view| Some(view).filter(|_| s.biased);
    let router =
        Router { routing: s.routing, bias: given(bias_on.view()), correction: given(correction_on.view()) };
    let placement = Placement { local: local_on.view(), counts: Some(counts.view_mut()) };
    if fused {
        route_and_sort(&mut buffers, logits_on.view(), s.rows, &router, placement).unwrap();
    } else {
        route(&mut buffers, logits_on.view(), s.rows, &router).unwrap();
        sort_by_expert(&mut buffers, s.rows, placement).unwrap();
    }
    let (ids, weights) = (buffers.ids.download().unwrap(), buffers.weights.download().unwrap());
    let mut expected_counts = vec![5u64; s.experts];
    for row in 0..s.rows {
        let mut logits = logits[row * s.experts..][..s.experts].to_vec();
        if s.biased {
            logits.iter_mut().zip(&bias).for_each(|(x, b)| *x += b);
        }
        let route = expected(s.routing, s.top_k, &logits, &correction);
        for (k, (id, weight)) in route.iter().enumerate() {
            let (got_id, got) = (ids[row * s.top_k + k], weights[row * s.top_k + k]);
            assert_eq!(got_id, *id, "row {row}, choice {k}: {case}");
            let same = (got - weight).abs() <= 1e-7 * weight.abs() || (got.is_nan() && weight.is_nan());
            assert!(same, "row {row}, choice {k}: {got} instead of {weight}: {case}");
            expected_counts[*id as usize] += 1;
        }
    }
    assert_eq!(counts.download().unwrap(), expected_counts, "counts: {case}");
    check_sorted(&buffers, &ids, s.rows, &local, &case);
}

#[test]
fn experts_are_chosen_and_sorted_as_on_the_cpu() {
    let cases = [
        sizes(1, 4, 2, softmax(true), false),
        sizes(1, 128, 8, softmax(true), false),
        sizes(2, 128, 8, softmax(false), false),
        sizes(5, 60, 4, softmax(false), true),
        sizes(8, 33, 33, softmax(true), true),
        sizes(7, 32, 4, softmax(true), true),
        sizes(1, 256, 8, sigmoid(8, 4, true), true),
        sizes(4, 256, 8, sigmoid(8, 4, true), true),
        sizes(9, 96, 6, sigmoid(1, 1, false), true),
        sizes(3, 64, 40, sigmoid(64, 40, true), false),
        sizes(6, 60, 7, sigmoid(5, 2, true), true),
        sizes(33, 256, 8, sigmoid(8, 4, true), true),
        sizes(64, 64, 8, softmax(true), false),
        sizes(65, 64, 6, softmax(true), false),
        sizes(3, 1000, 64, softmax(false), false),
        sizes(2, 4096, 64, sigmoid(16, 4, true), true),
        sizes(2, 4096, 10, softmax(true), false),
        sizes(1, 1, 1, softmax(true), false),
        sizes(0, 16, 2, softmax(true), false),
        sizes(40, 3000, 3, softmax(true), true),
        sizes(64, 512, 10, softmax(true), true),
        sizes(20, 1024, 5, sigmoid(32, 4, true), true),
        sizes(32, 128, 8, softmax(false), true),
    ];
    for device in devices() {
        for (case, sizes) in cases.iter().enumerate() {
            for turn in 0..3 {
                check_route(&device, case + turn * cases.len(), *sizes, turn != 1);
            }
        }
    }
}

/// Sorting alone, of many rows: ids as routing would write them.
fn check_sort(device: &Device, case: usize, rows: usize, experts: usize, top_k: usize) {
    let numbers = &mut Numbers(case as u64 + 77);
    let (local, held) = some_local(numbers, experts, case % 3);
    let name = format!("case {case} on {device:?}: {rows} rows, {top_k} of {experts}, {held} here");
    let mut ids = Vec::new();
    for _ in 0..rows {
        // Some experts are liked better.
        let mut row: Vec<u32> = Vec::new();
        while row.len() < top_k {
            let id = numbers.below(experts).min(numbers.below(experts)) as u32;
            if !row.contains(&id) {
                row.push(id);
            }
        }
        row.sort_unstable();
        ids.extend(row);
    }
    // Another layer has more here.
    let mut buffers = poisoned(device, rows, top_k, experts, held.midpoint(experts));
    buffers.set_held(held);
    buffers.ids.view_mut().upload(&ids).unwrap();
    let local_on = device.upload(&local).unwrap();
    // Twice: what the first left must not matter.
    for _ in 0..2 {
        sort_by_expert(&mut buffers, rows, Placement { local: local_on.view(), counts: None }).unwrap();
        check_sorted(&buffers, &ids, rows, &local, &name);
    }
}

/// A router's product, the choice and the sorting, against the same by themselves and a product in f64.
fn check_product(device: &Device, case: usize, s: Sizes, inputs: usize, kind: WeightKind, acts: ActType) {
    let numbers = &mut Numbers(case as u64 + 31);
    let mut floats =
        |count: usize, by: f32| -> Vec<f32> { (0..count).map(|_| numbers.float() * by).collect() };
    let (x, w) = (floats(s.rows * inputs, 1.0), floats(s.experts * inputs, 0.5));
    let (bias, correction) = (floats(s.experts, 1.0), floats(s.experts, 0.1));
    let numbers = &mut Numbers(case as u64);
    let (local, held) = some_local(numbers, s.experts, case % 4);
    let case = format!("case {case} on {device:?}: {s:?}, {inputs} inputs, {kind:?} of {acts:?}");
    let matrix = DeviceMatrix::from_f32(device, kind, s.experts, inputs, &w).unwrap();
    let x_on = Acts::upload(device, acts, &x).unwrap();
    let (bias_on, correction_on) = (device.upload(&bias).unwrap(), device.upload(&correction).unwrap());
    let local_on = device.upload(&local).unwrap();
    let given = |view| Some(view).filter(|_| s.biased);
    let router =
        Router { routing: s.routing, bias: given(bias_on.view()), correction: given(correction_on.view()) };
    let mut counts = device.zeros(s.experts).unwrap();
    let mut buffers = poisoned(device, s.rows, s.top_k, s.experts, held);
    let mut logits = device.zeros(s.rows * s.experts).unwrap();
    let placement = Placement { local: local_on.view(), counts: Some(counts.view_mut()) };
    let view = x_on.view();
    product_route_and_sort(&mut buffers, logits.view_mut(), view, &matrix, s.rows, &router, placement)
        .unwrap();
    let (ids, weights) = (buffers.ids.download().unwrap(), buffers.weights.download().unwrap());
    let round = |values: &[f32], kind: WeightKind| -> Vec<f64> {
        let one = |x: &f32| match kind {
            WeightKind::F32 => f64::from(*x),
            WeightKind::Bf16 => half::bf16::from_f32(*x).to_f64(),
            _ => half::f16::from_f32(*x).to_f64(),
        };
        values.iter().map(one).collect()
    };
    let x_kind = if acts == ActType::F32 { WeightKind::F32 } else { WeightKind::Bf16 };
    let (x, w) = (round(&x, x_kind), round(&w, kind));
    let mut worst = 0.0f32;
    let mut counted = vec![0; s.experts];
    for row in 0..s.rows {
        let logit = |e: usize| -> f64 {
            let pairs = x[row * inputs..][..inputs].iter().zip(&w[e * inputs..][..inputs]);
            pairs.map(|(x, w)| x * w).sum::<f64>() + if s.biased { f64::from(bias[e]) } else { 0.0 }
        };
        let exact: Vec<f32> = (0..s.experts).map(|e| logit(e) as f32).collect();
        let correction = if s.biased { correction.clone() } else { vec![0.0; s.experts] };
        for (k, (id, weight)) in expected(s.routing, s.top_k, &exact, &correction).into_iter().enumerate() {
            assert_eq!(ids[row * s.top_k + k], id, "row {row}, choice {k}: {case}");
            worst = worst.max((weights[row * s.top_k + k] - weight).abs());
            counted[id as usize] += 1;
        }
    }
    assert!(worst < 1e-3, "weights are {worst} off: {case}");
    assert_eq!(counts.download().unwrap(), counted, "counts: {case}");
    check_sorted(&buffers, &ids, s.rows, &local, &case);
}

#[test]
fn a_routers_product_is_done_with_the_choice() {
    use ActType::{Bf16 as B, F32 as F};
    let cases = [
        (sizes(1, 8, 2, softmax(true), false), 4096, WeightKind::Bf16, B, true),
        (sizes(8, 8, 2, softmax(true), false), 4096, WeightKind::Bf16, B, true),
        (sizes(2, 32, 4, softmax(true), true), 2880, WeightKind::Bf16, B, true),
        (sizes(1, 32, 4, softmax(true), true), 2880, WeightKind::F16, B, true),
        (sizes(2, 60, 4, softmax(false), true), 1032, WeightKind::F16, B, true),
        (sizes(5, 64, 6, sigmoid(8, 3, true), true), 520, WeightKind::F32, B, true),
        (sizes(1, 33, 6, sigmoid(11, 3, true), true), 64, WeightKind::F32, B, true),
        (sizes(1, 5, 5, softmax(true), true), 8, WeightKind::F32, F, true),
        (sizes(7, 12, 3, softmax(true), true), 808, WeightKind::F32, F, true),
        (sizes(2, 1, 1, softmax(true), true), 16, WeightKind::F32, F, true),
        (sizes(9, 8, 2, softmax(true), false), 64, WeightKind::Bf16, B, false),
        (sizes(2, 8, 2, softmax(true), true), 67, WeightKind::Bf16, B, false),
        (sizes(2, 65, 2, softmax(true), true), 64, WeightKind::Bf16, B, false),
        (sizes(8, 16, 2, softmax(true), true), 4096, WeightKind::Bf16, B, false),
    ];
    for device in devices() {
        for (case, (sizes, inputs, kind, acts, at_once)) in cases.into_iter().enumerate() {
            let launches = || {
                let all = device.driver().launches();
                let those = all.iter().filter(|(name, _)| name.starts_with("moe_product_route_and_sort"));
                those.map(|(_, count)| *count).sum::<u64>()
            };
            let before = launches();
            check_product(&device, case, sizes, inputs, kind, acts);
            assert_eq!(launches() - before, u64::from(at_once), "case {case}");
        }
    }
}

/// To the last bit.
#[test]
fn a_router_gives_a_row_the_same_whatever_else_is_in_the_batch() {
    let (rows, experts, inputs, top_k) = (8, 8, 2080, 3);
    for device in devices() {
        let numbers = &mut Numbers(3);
        let x: Vec<f32> = (0..rows * inputs).map(|_| numbers.float()).collect();
        let w: Vec<f32> = (0..experts * inputs).map(|_| numbers.float()).collect();
        let matrix = DeviceMatrix::from_f32(&device, WeightKind::Bf16, experts, inputs, &w).unwrap();
        let x = Acts::upload(&device, ActType::Bf16, &x).unwrap();
        let local = device.upload(&(0..experts as u32).collect::<Vec<_>>()).unwrap();
        let routed = |from: usize, rows: usize| {
            let mut buffers = poisoned(&device, rows, top_k, experts, experts);
            let mut logits = device.zeros(rows * experts).unwrap();
            let router = Router { routing: softmax(false), bias: None, correction: None };
            let placement = Placement { local: local.view(), counts: None };
            let x = x.view().slice(from * inputs..(from + rows) * inputs);
            product_route_and_sort(&mut buffers, logits.view_mut(), x, &matrix, rows, &router, placement)
                .unwrap();
            let weights = buffers.weights.download().unwrap();
            weights.iter().map(|weight| weight.to_bits()).collect::<Vec<_>>()
        };
        let all = routed(0, rows);
        for row in 0..rows {
            assert_eq!(routed(row, 1), all[row * top_k..][..top_k], "row {row} on {device:?}");
        }
    }
}

#[test]
fn many_rows_are_sorted_by_expert() {
    let cases = [
        (256, 64, 8),
        (257, 64, 8),
        (1000, 128, 8),
        (2500, 32, 4),
        (300, 700, 10),
        (150, 2500, 3),
        (600, 8, 2),
    ];
    for device in devices() {
        for (case, (rows, experts, top_k)) in cases.into_iter().enumerate() {
            check_sort(&device, case, rows, experts, top_k);
        }
    }
}

#[test]
fn rows_that_are_not_live_go_nowhere() {
    let (experts, top_k) = (24, 3);
    let local: Vec<u32> =
        (0..experts as u32).map(|e| if e % 5 == 0 { u32::MAX } else { e - e / 5 - 1 }).collect();
    let held = local.iter().filter(|e| **e != u32::MAX).count();
    for device in devices() {
        for (rows, live) in [(8, 5), (8, 0), (300, 290), (600, 257), (600, 256), (600, 3), (600, 0)] {
            let case = format!("{live} of {rows} rows on {device:?}");
            let logits = device.upload(&Numbers(rows as u64).logits(rows * experts, 1)).unwrap();
            let local_on = device.upload(&local).unwrap();
            let mut counts = device.zeros(experts).unwrap();
            let mut buffers = poisoned(&device, rows, top_k, experts, held);
            buffers.live.view_mut().upload(&[live as u32]).unwrap();
            let router = Router { routing: softmax(true), bias: None, correction: None };
            let placement = Placement { local: local_on.view(), counts: Some(counts.view_mut()) };
            route_and_sort(&mut buffers, logits.view(), rows, &router, placement).unwrap();
            let positions = buffers.positions.download().unwrap();
            assert!(positions[live * top_k..].iter().all(|at| *at == u32::MAX), "{case}");
            let counts = counts.download().unwrap().iter().sum::<u64>();
            assert_eq!(counts, (live * top_k) as u64, "{case}");
            // The rest is as if there were no more rows.
            let ids = buffers.ids.download().unwrap();
            let mut fewer = poisoned(&device, live, top_k, experts, held);
            fewer.ids.view_mut().upload(&ids[..live * top_k]).unwrap();
            sort_by_expert(&mut fewer, live, Placement { local: local_on.view(), counts: None }).unwrap();
            assert_eq!(positions[..live * top_k], fewer.positions.download().unwrap(), "{case}");
            let offsets = fewer.groups.offsets.download().unwrap();
            assert_eq!(buffers.groups.offsets.download().unwrap(), offsets, "{case}");
            check_sorted(&fewer, &ids, live, &local, &case);
        }
    }
}

#[test]
fn a_row_is_routed_the_same_whatever_else_is_in_the_batch() {
    let (experts, top_k, rows) = (96, 7, 70);
    for device in devices() {
        for routing in [softmax(true), softmax(false), sigmoid(8, 3, true)] {
            let logits = Numbers(5).logits(rows * experts, 1);
            let routed = |logits: &[f32]| {
                let rows = logits.len() / experts;
                let here: Vec<u32> = (0..experts as u32).collect();
                let (on, local) = (device.upload(logits).unwrap(), device.upload(&here).unwrap());
                let mut buffers = poisoned(&device, rows, top_k, experts, experts);
                let router = Router { routing, bias: None, correction: None };
                let placement = Placement { local: local.view(), counts: None };
                match rows {
                    1 => route_and_sort(&mut buffers, on.view(), rows, &router, placement).unwrap(),
                    _ => route(&mut buffers, on.view(), rows, &router).unwrap(),
                }
                let weights = buffers.weights.download().unwrap();
                let bits: Vec<u32> = weights.iter().map(|weight| weight.to_bits()).collect();
                (buffers.ids.download().unwrap(), bits)
            };
            let (ids, weights) = routed(&logits);
            for row in 0..rows {
                let alone = routed(&logits[row * experts..][..experts]);
                let part = row * top_k..(row + 1) * top_k;
                assert_eq!(
                    alone,
                    (ids[part.clone()].to_vec(), weights[part].to_vec()),
                    "row {row}, {routing:?}"
                );
            }
        }
    }
}

#[test]
fn what_was_recorded_is_done_again_with_other_logits() {
    let (experts, top_k, width) = (16, 4, 8);
    for device in devices().into_iter().filter(|device| device.driver().can_capture()) {
        for rows in [3, 300] {
            let numbers = &mut Numbers(9);
            let local: Vec<u32> = (0..experts as u32).collect();
            let local_on = device.upload(&local).unwrap();
            let mut logits = device.zeros(rows * experts).unwrap();
            let mut buffers = poisoned(&device, rows, top_k, experts, experts);
            let y = device.upload(&vec![1.0f32; rows * top_k * width]).unwrap();
            let mut out = device.zeros(rows * width).unwrap();
            device.driver().begin_capture().unwrap();
            let router = Router { routing: softmax(true), bias: None, correction: None };
            let placement = Placement { local: local_on.view(), counts: None };
            route_and_sort(&mut buffers, logits.view(), rows, &router, placement).unwrap();
            combine(out.view_mut(), Onto::Nothing, y.view(), width, None, &buffers, rows, width).unwrap();
            let recorded = device.driver().end_capture().unwrap();
            for turn in 0..2 {
                let values = numbers.logits(rows * experts, 1);
                logits.view_mut().upload(&values).unwrap();
                // SAFETY: every buffer is still there.
                unsafe { device.driver().replay(&recorded).unwrap() };
                let ids = buffers.ids.download().unwrap();
                for row in 0..rows {
                    let route = expected(softmax(true), top_k, &values[row * experts..][..experts], &[]);
                    let chosen: Vec<u32> = route.iter().map(|(id, _)| *id).collect();
                    assert_eq!(ids[row * top_k..][..top_k], chosen, "row {row} of {rows}, turn {turn}");
                }
                check_sorted(&buffers, &ids, rows, &local, "replayed");
                let out = out.download().unwrap();
                assert!(out.iter().all(|x| (x - 1.0).abs() < 1e-6), "weights are one together: {out:?}");
            }
        }
    }
}

#[test]
fn few_rows_take_one_launch() {
    for device in devices() {
        for (rows, experts) in [(1, 128), (8, 512), (32, 256), (8, 1024), (64, 128)] {
            let of = |name: &str| {
                device.driver().launches().iter().find(|(n, _)| *n == name).map_or(0, |(_, n)| *n)
            };
            let before = [of("moe_route_and_sort"), of("moe_route"), of("moe_sort")];
            check_route(&device, 1, sizes(rows, experts, 8, sigmoid(8, 4, true), true), true);
            let after = [of("moe_route_and_sort"), of("moe_route"), of("moe_sort")];
            assert_eq!(after, [before[0] + 1, before[1], before[2]], "{rows} rows, {experts} experts");
        }
    }
}

#[test]
fn nothing_is_here() {
    for device in devices() {
        for rows in [1, 40, 300] {
            let mut buffers = poisoned(&device, rows, 2, 8, 0);
            buffers.ids.view_mut().upload(&[1, 5].repeat(rows)).unwrap();
            let local = device.upload(&[u32::MAX; 8]).unwrap();
            let mut counts = device.zeros(8).unwrap();
            let placement = Placement { local: local.view(), counts: Some(counts.view_mut()) };
            sort_by_expert(&mut buffers, rows, placement).unwrap();
            assert_eq!(buffers.groups.offsets.download().unwrap(), [0]);
            assert_eq!(buffers.positions.download().unwrap(), vec![u32::MAX; 2 * rows]);
            let rows = rows as u64;
            assert_eq!(counts.download().unwrap(), [0, rows, 0, 0, 0, rows, 0, 0]);
        }
    }
}

#[derive(Debug)]
struct Combined {
    rows: usize,
    width: usize,
    stride: usize,
    top_k: usize,
    biased: bool,
    onto: Onto,
}

fn check_combine(device: &Device, case: usize, c: &Combined) {
    let numbers = &mut Numbers(case as u64 + 99);
    let experts = 16;
    let (local, held) = some_local(numbers, experts, case % 3);
    let logits = numbers.logits(c.rows * experts, 1);
    let mut buffers = poisoned(device, c.rows + 1, c.top_k, experts, held);
    let (logits_on, local_on) = (device.upload(&logits).unwrap(), device.upload(&local).unwrap());
    let router = Router { routing: softmax(true), bias: None, correction: None };
    let placement = Placement { local: local_on.view(), counts: None };
    route_and_sort(&mut buffers, logits_on.view(), c.rows, &router, placement).unwrap();
    let sorted = buffers.max_sorted(c.rows);
    // What is beyond a row's width, and beyond the sorted rows, must not be read.
    let total = buffers.groups.offsets.download().unwrap()[held] as usize;
    let y: Vec<f32> = (0..sorted * c.stride)
        .map(|i| if i / c.stride < total && i % c.stride < c.width { numbers.float() } else { f32::NAN })
        .collect();
    let bias: Vec<f32> = (0..held * c.width).map(|_| numbers.float()).collect();
    let before: Vec<f32> = (0..c.rows * c.width).map(|_| numbers.float()).collect();
    let (y_on, bias_on) = (device.upload(&y).unwrap(), device.upload(&bias).unwrap());
    let mut out = device.upload(&before).unwrap();
    if c.onto == Onto::Nothing {
        poison(&mut out);
    }
    let bias_view = Some(bias_on.view()).filter(|_| c.biased);
    combine(out.view_mut(), c.onto, y_on.view(), c.stride, bias_view, &buffers, c.rows, c.width).unwrap();
    let (ids, weights) = (buffers.ids.download().unwrap(), buffers.weights.download().unwrap());
    let positions = buffers.positions.download().unwrap();
    let mut worst = 0.0f64;
    for (at, got) in out.download().unwrap().into_iter().enumerate() {
        let (row, i) = (at / c.width, at % c.width);
        let mut sum = if c.onto == Onto::Sum { f64::from(before[at]) } else { 0.0 };
        for pair in row * c.top_k..(row + 1) * c.top_k {
            let group = local[ids[pair] as usize];
            if group == u32::MAX {
                continue;
            }
            let bias = if c.biased { bias[group as usize * c.width + i] } else { 0.0 };
            sum += f64::from(weights[pair]) * f64::from(y[positions[pair] as usize * c.stride + i] + bias);
        }
        let error = (f64::from(got) - sum).abs();
        assert!(error < 2e-6, "row {row}, {i}: {got} instead of {sum}: {c:?} on {device:?}");
        worst = worst.max(error);
    }
    assert!(worst < 2e-6, "{worst}: {c:?} on {device:?}");
}

#[test]
fn what_experts_give_is_added_up() {
    let mut case = 0;
    for device in devices() {
        for (rows, width, stride, top_k) in [
            (1, 64, 64, 2),
            (3, 67, 67, 4),
            (5, 260, 264, 9),
            (40, 32, 34, 8),
            (33, 1100, 1100, 16),
            (0, 8, 8, 2),
        ] {
            for (biased, onto) in [(false, Onto::Sum), (true, Onto::Sum), (true, Onto::Nothing)] {
                case += 1;
                check_combine(&device, case, &Combined { rows, width, stride, top_k, biased, onto });
            }
        }
    }
}

#[test]
#[should_panic(expected = "groups of")]
fn groups_must_divide_experts() {
    let device = devices().into_iter().next().unwrap();
    let mut buffers = MoeBuffers::new(&device, 1, 1, 10, 10).unwrap();
    let logits = device.zeros(10).unwrap();
    let router = Router { routing: sigmoid(3, 1, true), bias: None, correction: None };
    route(&mut buffers, logits.view(), 1, &router).unwrap();
}

/// Experts' results added up with the norm after them, against the two by themselves.
fn check_combine_and_norm(device: &Device, case: usize, c: &Combined, acts: ActType, with: (bool, bool)) {
    let (with_post_norm, with_out) = with;
    let numbers = &mut Numbers(case as u64 + 7);
    let experts = 12;
    let (local, held) = some_local(numbers, experts, case % 3);
    let logits = device.upload(&numbers.logits(c.rows * experts, 1)).unwrap();
    let local = device.upload(&local).unwrap();
    let mut buffers = poisoned(device, c.rows, c.top_k, experts, held);
    let router = Router { routing: softmax(true), bias: None, correction: None };
    let placement = Placement { local: local.view(), counts: None };
    route_and_sort(&mut buffers, logits.view(), c.rows, &router, placement).unwrap();
    let sorted = buffers.max_sorted(c.rows);
    let total = buffers.groups.offsets.download().unwrap()[held] as usize;
    let y: Vec<f32> = (0..sorted * c.stride)
        .map(|i| if i / c.stride < total && i % c.stride < c.width { numbers.float() } else { f32::NAN })
        .collect();
    let mut floats =
        |count: usize| device.upload(&(0..count).map(|_| numbers.float()).collect::<Vec<f32>>()).unwrap();
    let (bias, before, weight) = (floats(held * c.width), floats(c.rows * c.width), floats(c.width));
    let (post_norm, x) = (floats(c.width), floats(c.rows * c.width));
    let y = device.upload(&y).unwrap();
    let bias = Some(bias.view()).filter(|_| c.biased);
    let post_norm = Some(post_norm.view()).filter(|_| with_post_norm);
    let run = |at_once: bool, acts: ActType| {
        let mut x = device.upload(&x.download().unwrap()).unwrap();
        let mut partial = device.upload(&before.download().unwrap()).unwrap();
        let mut out = Acts::alloc_rows(device, acts, c.rows, c.width).unwrap();
        out.view_mut().fill(0xff).unwrap();
        let (rows, width, eps) = (c.rows, c.width, 1e-5);
        let to = with_out.then(|| out.view_mut());
        if at_once {
            let results = Results { y: y.view(), stride: c.stride, bias, buffers: &buffers };
            let weight = weight.view();
            let norm =
                Norm { out: to.into(), x: x.view_mut(), added: None, post_norm, weight, rows, width, eps };
            combine_add_and_norm(&results, c.onto, partial.view_mut(), norm).unwrap();
        } else {
            combine(partial.view_mut(), c.onto, y.view(), c.stride, bias, &buffers, rows, width).unwrap();
            let added = Some(partial.view());
            add_and_norm(to, x.view_mut(), added, post_norm, weight.view(), rows, width, eps).unwrap();
        }
        (x.download().unwrap(), out.download().unwrap())
    };
    let (one, two) = (run(true, acts), run(false, acts));
    let what = format!("{c:?} {acts:?} {with:?} on {device:?}");
    let worst = |one: &[f32], two: &[f32]| {
        one.iter().zip(two).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max)
    };
    assert!(one.0.iter().all(|x| x.is_finite()), "x: {what}");
    let error = worst(&one.0, &two.0);
    assert!(error < 2e-6, "x is {error} off: {what}");
    assert_eq!(one.1.iter().filter(|x| x.is_nan()).count(), if with_out { 0 } else { one.1.len() }, "{what}");
    let error = worst(&one.1, &two.1);
    let most = match acts {
        ActType::F32 => 1e-5,
        ActType::Bf16 => 8e-3,
        // Another code where it is close.
        ActType::F8 => 0.13,
    };
    assert!(error < most, "out is {error} off: {what}");
    if acts == ActType::F8 && with_out {
        let (rows, width) = (run(true, ActType::F32).1, c.width);
        let codes = F8Rows::upload(device, width, &rows).unwrap();
        assert_eq!(one.1, codes.download().unwrap(), "rounded once: {what}");
    }
}

#[test]
fn what_experts_give_is_added_with_the_norm_after_it() {
    let mut case = 0;
    for device in devices() {
        for (rows, width, stride, top_k, at_once) in [
            (1, 4096, 4096, 2, true),
            (3, 64, 68, 1, true),
            (2, 2880, 2880, 4, true),
            (5, 576, 576, 9, true),
            (2, 7168, 7168, 8, true),
            (2, 8192, 8192, 3, true),
            (3, 67, 67, 4, false),
            (2, 8196, 8196, 2, false),
            (0, 8, 8, 2, false),
        ] {
            for (biased, onto) in [(false, Onto::Nothing), (true, Onto::Sum)] {
                case += 1;
                let acts = [ActType::F32, ActType::Bf16, ActType::F8][case % 3];
                let launches = || {
                    let all = device.driver().launches();
                    let those = all.iter().filter(|(name, _)| name.starts_with("combine_add_and_norm"));
                    those.map(|(_, count)| *count).sum::<u64>()
                };
                let before = launches();
                let with = (case % 4 > 1, case % 5 > 0);
                let combined = Combined { rows, width, stride, top_k, biased, onto };
                check_combine_and_norm(&device, case, &combined, acts, with);
                // Once more, to know what is rounded.
                let runs = 1 + u64::from(acts == ActType::F8 && with.1);
                assert_eq!(launches() - before, runs * u64::from(at_once), "{combined:?}");
            }
        }
    }
}
