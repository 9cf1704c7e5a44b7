//! What an op makes of a row does not depend on the rows beside it: alone, in batches of any size, and anywhere in these, it has the
//! same bits. So a sequence has the same numbers whatever else a step holds, and whether its tokens come one by one or as a prompt.

use std::collections::HashMap;
use std::fmt::Write;

use super::convert::convert;
use super::elementwise::{add_bias, embed, gated, gather_rows, soft_cap};
use super::kv_cache::{DeviceKv, KvKind};
use super::matmul::{batched_matmul, grouped_matmul, matmul};
use super::moe::{
    MoeBuffers, Onto, Placement, Results, Router, Routing, combine, product_route_and_sort, route_and_sort,
};
use super::residual::{Norm, add_and_norm, combine_add_and_norm};
use super::rope::{
    DeviceAngles, DeviceRope, Grouped, HeadsAt, LatentKeys, latent_write, norm_heads, rope_and_write,
    rope_rows,
};
use super::sample::{SampleBuffers, argmax, log_sum_exp, top};
use super::step_rows::{Run, StepRows};
use crate::cuda::testing::{Random, devices};
use crate::cuda::{
    ActType, Acts, ActsView, ActsViewMut, Buffer, Device, DeviceMatrix, MatrixTable, View, WeightKind,
};
use crate::op::gated::GatedActivation;
use crate::op::kv_cache::{KvSizes, Values};
use crate::op::rope::RopeStyle;

/// Rows that batches are made of.
const POOL: usize = 70;
const BATCHES: [usize; 8] = [1, 1, 2, 3, 7, 16, 33, 70];

/// What an op makes of a row, bit by bit.
type Bits = Vec<u32>;

/// Batches of rows of the pool in any order, the same row always among them. `run` gives what is made of each row of a batch.
fn invariant(what: &str, random: &mut Random, mut run: impl FnMut(&[usize]) -> Vec<Bits>) {
    let mut seen: HashMap<usize, (usize, Bits)> = HashMap::new();
    let (always, mut compared) = (random.below(POOL), 0);
    for (turn, rows) in BATCHES.into_iter().enumerate() {
        let mut batch: Vec<usize> = (0..POOL).collect();
        (1..POOL).rev().for_each(|i| batch.swap(i, random.below(i + 1)));
        batch.truncate(rows);
        // Another row alone, too.
        if turn > 0 && !batch.contains(&always) {
            batch[random.below(rows)] = always;
        }
        let made = run(&batch);
        assert_eq!(made.len(), rows, "{what}: results");
        for (row, bits) in batch.into_iter().zip(made) {
            let (beside, first) = seen.entry(row).or_insert_with(|| (rows, bits.clone()));
            let at = first.iter().zip(&bits).position(|(a, b)| a != b);
            assert!(
                at.is_none() && first.len() == bits.len(),
                "{what}: of {beside} and of {rows} rows: {at:?}"
            );
            compared += usize::from(*beside != rows);
        }
    }
    assert!(compared > POOL / 2, "{what}: {compared} rows were met twice");
}

fn bits(values: &[f32]) -> Bits {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Of rows of so many numbers each.
fn by_row(values: &[f32], width: usize) -> Vec<Bits> {
    values.chunks_exact(width).map(bits).collect()
}

/// Rows of a pool, and batches of them.
struct Pool {
    width: usize,
    values: Vec<f32>,
}

impl Pool {
    fn new(random: &mut Random, width: usize) -> Self {
        // Of many sizes: another order of adding up is seen.
        let one = |_| random.float() * [0.02, 1.0, 30.0][random.below(3)];
        Self { width, values: (0..POOL * width).map(one).collect() }
    }

    fn of(&self, batch: &[usize]) -> Vec<f32> {
        batch.iter().flat_map(|row| &self.values[row * self.width..][..self.width]).copied().collect()
    }

    fn floats(&self, device: &Device, batch: &[usize]) -> Buffer<f32> {
        device.upload(&self.of(batch)).unwrap()
    }

    fn acts(&self, device: &Device, ty: ActType, batch: &[usize]) -> Acts {
        Acts::upload(device, ty, &self.of(batch)).unwrap()
    }
}

fn name(parts: &[&dyn std::fmt::Debug]) -> String {
    parts.iter().fold(String::new(), |mut name, part| {
        write!(name, "{part:?} ").expect("memory");
        name
    })
}

fn matrix(device: &Device, random: &mut Random, kind: WeightKind, n: usize, k: usize) -> DeviceMatrix {
    if kind != WeightKind::F8 {
        return DeviceMatrix::from_f32(device, kind, n, k, &random.floats(n * k)).unwrap();
    }
    let codes: Vec<u8> = (0..n * k).map(|_| (random.below(127) + 128 * random.below(2)) as u8).collect();
    let mut matrix = DeviceMatrix::from_rows(device, kind, n, k, &codes).unwrap();
    matrix.put_scales(0, &random.floats(n)).unwrap();
    matrix
}

// Products on tensor cores (activations in bf16, weights in bf16, f16 and E4M3: `matmul`, `batched_matmul`, `grouped_matmul`,
// and with the activation `gated_matmul`, `grouped_gated_matmul`) and attention belong here, too.

/// Types of products in plain f32.
const PLAIN: [(WeightKind, ActType); 5] = [
    (WeightKind::F32, ActType::F32),
    (WeightKind::F32, ActType::Bf16),
    (WeightKind::Bf16, ActType::F32),
    (WeightKind::F16, ActType::F32),
    (WeightKind::F8, ActType::F32),
];

#[test]
fn plain_products() {
    for device in devices() {
        let random = &mut Random::new(1);
        for (case, (kind, ty)) in PLAIN.into_iter().enumerate() {
            // A block an output, and a warp an output.
            for n in [1 + random.below(8), 265 + random.below(9)] {
                let k = 1 + random.below(if n < 10 { 1500 } else { 200 });
                let (w, pool) = (matrix(&device, random, kind, n, k), Pool::new(random, k));
                let what = name(&[&"matmul", &kind, &ty, &(n, k)]);
                invariant(&what, random, |batch| {
                    let x = pool.acts(&device, ty, batch);
                    let mut out = device.alloc(batch.len() * n).unwrap();
                    matmul(out.view_mut(), n, x.view(), &w, batch.len()).unwrap();
                    by_row(&out.download().unwrap(), n)
                });
            }
            let (n, k, count) = (3 + case, 40, 3);
            let table = (0..count).map(|_| matrix(&device, random, kind, n, k)).collect();
            let (table, pool) = (MatrixTable::new(table).unwrap(), Pool::new(random, count * k));
            let what = name(&[&"batched_matmul", &kind, &ty]);
            invariant(&what, random, |batch| {
                let x = pool.acts(&device, ty, batch);
                let (width, rows) = (count * n, batch.len());
                let mut out = device.alloc(rows * width).unwrap();
                batched_matmul(out.view_mut(), width, n, x.view(), count * k, k, &table, rows).unwrap();
                by_row(&out.download().unwrap(), width)
            });
        }
    }
}

#[test]
fn what_is_done_number_by_number() {
    for device in devices() {
        let random = &mut Random::new(2);
        let width = 4 * (1 + random.below(90)) + random.below(4);
        let (table, pool) =
            (matrix(&device, random, WeightKind::F32, POOL, width), Pool::new(random, 2 * width));
        let bias = device.upload(&random.floats(2 * width)).unwrap();
        invariant("embed", random, |batch| {
            let tokens: Vec<u32> = batch.iter().map(|row| *row as u32 + 5).collect();
            let mut out = device.alloc(batch.len() * width).unwrap();
            embed(out.view_mut(), device.upload(&tokens).unwrap().view(), &table, 5, 1.3).unwrap();
            by_row(&out.download().unwrap(), width)
        });
        let swiglu = GatedActivation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
        for activation in [GatedActivation::Silu, GatedActivation::GeluTanh, swiglu] {
            for ty in [ActType::F32, ActType::Bf16] {
                invariant(&name(&[&activation, &ty]), random, |batch| {
                    let (x, rows) = (pool.floats(&device, batch), batch.len());
                    let mut out = Acts::alloc(&device, ty, rows * width).unwrap();
                    gated(out.view_mut(), x.view(), Some(bias.view()), None, rows, width, activation)
                        .unwrap();
                    by_row(&out.download().unwrap(), width)
                });
            }
        }
        invariant("add_bias, soft_cap, gather_rows and convert", random, |batch| {
            let (mut x, rows) = (pool.floats(&device, batch), batch.len());
            add_bias(x.view_mut(), 2 * width, rows, bias.view()).unwrap();
            soft_cap(x.view_mut(), 11.0).unwrap();
            let len = rows * 2 * width;
            let order = device.upload(&(0..rows as u32).collect::<Vec<_>>()).unwrap();
            let (mut taken, mut out) = (device.alloc(len).unwrap(), device.alloc(len).unwrap());
            let (to, from) = (ActsViewMut::F32(taken.view_mut()), ActsView::F32(x.view()));
            gather_rows(to, from, order.view(), 2 * width).unwrap();
            convert(ActsViewMut::F32(out.view_mut()), taken.view()).unwrap();
            let mut rounded = Acts::alloc(&device, ActType::Bf16, len).unwrap();
            convert(rounded.view_mut(), taken.view()).unwrap();
            let all = by_row(&out.download().unwrap(), 2 * width);
            let rounded = by_row(&rounded.download().unwrap(), 2 * width);
            all.into_iter().zip(rounded).map(|(one, two)| [one, two].concat()).collect()
        });
    }
}

#[test]
fn norms() {
    for device in devices() {
        let random = &mut Random::new(3);
        // Kernels for any width, and of four and of eight numbers a thread.
        for (width, with) in [(33, true), (1000, false), (640, true), (4100, false), (67, false)] {
            let (x, added) = (Pool::new(random, width), Pool::new(random, width));
            let [post_norm, weight] = [0; 2].map(|_| device.upload(&random.floats(width)).unwrap());
            let ty = if width % 3 == 0 { ActType::F32 } else { ActType::Bf16 };
            for ty in [ty, ActType::F8] {
                invariant(&name(&[&"add_and_norm", &width, &ty]), random, |batch| {
                    let (mut x, added) = (x.floats(&device, batch), added.floats(&device, batch));
                    let mut out = Acts::alloc_rows(&device, ty, batch.len(), width).unwrap();
                    add_and_norm(
                        Some(out.view_mut()),
                        x.view_mut(),
                        Some(added.view()),
                        with.then(|| post_norm.view()),
                        weight.view(),
                        batch.len(),
                        width,
                        1e-5,
                    )
                    .unwrap();
                    let (sums, out) = (x.download().unwrap(), out.download().unwrap());
                    let each = sums.chunks_exact(width).zip(out.chunks_exact(width));
                    each.map(|(sums, out)| bits(&[sums, out].concat())).collect()
                });
            }
            invariant(&name(&[&"norm_heads", &width]), random, |batch| {
                let mut x = x.floats(&device, batch);
                norm_heads(x.view_mut(), width, batch.len(), weight.view(), 1e-5).unwrap();
                by_row(&x.download().unwrap(), width)
            });
        }
    }
}

const BLOCK_SIZE: usize = 3;

/// Where rows of the pool are in their sequences. Each has a sequence, and the block that it is in, for itself.
struct Places(Vec<usize>);

impl Places {
    fn new(random: &mut Random) -> Self {
        Self((0..POOL).map(|_| random.below(40)).collect())
    }

    fn step(&self, device: &Device, batch: &[usize]) -> StepRows {
        let blocks: Vec<Vec<u32>> =
            batch.iter().map(|row| vec![*row as u32; self.0[*row] / BLOCK_SIZE + 1]).collect();
        let runs: Vec<Run<'_>> = batch
            .iter()
            .zip(&blocks)
            .map(|(row, blocks)| Run { blocks, position: self.0[*row], rows: 1 })
            .collect();
        let mut step = StepRows::new(device).unwrap();
        step.set(&runs).unwrap();
        step
    }
}

/// Bytes of keys and values where rows of a batch are.
fn cached(kv: &mut DeviceKv, places: &Places, batch: &[usize]) -> Vec<Bits> {
    let (heads, size) = (kv.sizes().kv_heads, kv.kind().size());
    let strides = [kv.key_stride, kv.value_stride];
    let sides: Vec<(Vec<u8>, usize)> =
        kv.content().map(|side| side.download().unwrap()).into_iter().zip(strides).collect();
    let one = |row: &usize| {
        let mut bytes = Bits::new();
        for head in 0..heads {
            let cell = (row * heads + head) * BLOCK_SIZE + places.0[*row] % BLOCK_SIZE;
            // Values may be in the keys.
            for (side, stride) in sides.iter().filter(|(side, _)| !side.is_empty()) {
                bytes.extend(side[cell * stride * size..][..stride * size].iter().map(|x| u32::from(*x)));
            }
        }
        bytes
    };
    batch.iter().map(one).collect()
}

#[test]
fn rotation_and_what_is_cached() {
    for device in devices() {
        let random = &mut Random::new(4);
        let places = Places::new(random);
        for (kind, style) in [(KvKind::F32, RopeStyle::Half), (KvKind::F16, RopeStyle::Interleaved)] {
            let (heads, kv_heads, dim, pairs) = (3, 2, 20, 7);
            let all = heads + 2 * kv_heads;
            let inv_freq: Vec<f32> = random.floats(pairs).iter().map(|x| x.abs()).collect();
            let rope = DeviceRope::new(&device, &inv_freq, style, 1.1).unwrap();
            let pool = Pool::new(random, all * dim);
            let [bias, q_norm, k_norm] =
                [all * dim, dim, dim].map(|len| device.upload(&random.floats(len)).unwrap());
            let cache = |kv_heads, key_dim, values| {
                let sizes =
                    KvSizes { layers: 1, blocks: POOL, block_size: BLOCK_SIZE, kv_heads, key_dim, values };
                DeviceKv::new(&device, sizes, kind).unwrap()
            };
            invariant(&name(&[&"rope_and_write", &kind]), random, |batch| {
                let (step, rows) = (places.step(&device, batch), batch.len());
                let mut angles = DeviceAngles::new(&device, &rope, rows).unwrap();
                angles.set(&rope, &step).unwrap();
                let mut kv = cache(kv_heads, dim, Values::Own(dim));
                let mut q = device.alloc(rows * heads * dim).unwrap();
                let qkv = pool.floats(&device, batch);
                let x = Grouped {
                    bias: Some(bias.view()),
                    q_norm: Some(q_norm.view()),
                    k_norm: Some(k_norm.view()),
                    eps: 1e-5,
                    heads,
                };
                rope_and_write(q.view_mut(), &mut kv, 0, &step, qkv.view(), &x, &angles).unwrap();
                let made = by_row(&q.download().unwrap(), heads * dim).into_iter();
                made.zip(cached(&mut kv, &places, batch)).map(|(q, kv)| [q, kv].concat()).collect()
            });
            let (width, rank) = (all * dim, all * dim - 2 * pairs);
            let norm = device.upload(&random.floats(rank)).unwrap();
            invariant(&name(&[&"latent_write and rope_rows", &kind]), random, |batch| {
                let (step, rows, x) = (places.step(&device, batch), batch.len(), pool.floats(&device, batch));
                let mut angles = DeviceAngles::new(&device, &rope, rows).unwrap();
                angles.set(&rope, &step).unwrap();
                let mut kv = cache(1, width, Values::InKey(rank));
                let keys = LatentKeys { x: x.view(), bias: Some(bias.view()), norm: norm.view(), eps: 1e-5 };
                latent_write(&mut kv, 0, &step, &keys, &angles).unwrap();
                let mut turned = device.zeros(rows * width).unwrap();
                let at = HeadsAt { offset: 2, row_stride: width, head_stride: dim };
                rope_rows(turned.view_mut(), at, x.view(), at, heads, &step, &angles).unwrap();
                let made = by_row(&turned.download().unwrap(), width).into_iter();
                made.zip(cached(&mut kv, &places, batch)).map(|(x, kv)| [x, kv].concat()).collect()
            });
        }
    }
}

struct Moe {
    experts: usize,
    top_k: usize,
    hidden: usize,
    router: WeightKind,
    acts: ActType,
    routing: Routing,
    /// The logits go through memory.
    apart: bool,
}

/// From the router to the next norm: the experts of each row, their weights, and what they add.
fn check_moe(device: &Device, random: &mut Random, m: &Moe) {
    let Moe { experts, top_k, hidden, acts, .. } = *m;
    let w = matrix(device, random, m.router, experts, hidden);
    let width = 24;
    // One expert is on another rank.
    let local: Vec<u32> = (0..experts as u32).map(|e| e.checked_sub(1).unwrap_or(u32::MAX)).collect();
    let table = (1..experts).map(|_| matrix(device, random, WeightKind::F32, width, hidden)).collect();
    let (table, local) = (MatrixTable::new(table).unwrap(), device.upload(&local).unwrap());
    let (pool, residual) = (Pool::new(random, hidden), Pool::new(random, width));
    let [bias, correction] = [0; 2].map(|_| device.upload(&random.floats(experts)).unwrap());
    let [down_bias, weight] =
        [(experts - 1) * width, width].map(|len| device.upload(&random.floats(len)).unwrap());
    let what = name(&[&"experts", &experts, &hidden, &m.router, &acts, &m.routing, &m.apart]);
    invariant(&what, random, |batch| {
        let rows = batch.len();
        let x = pool.acts(device, acts, batch);
        let mut moe = MoeBuffers::new(device, rows, top_k, experts, experts - 1).unwrap();
        let mut logits = device.alloc(rows * experts).unwrap();
        let router =
            Router { routing: m.routing, bias: Some(bias.view()), correction: Some(correction.view()) };
        let placement = Placement { local: local.view(), counts: None };
        if m.apart {
            matmul(logits.view_mut(), experts, x.view(), &w, rows).unwrap();
            route_and_sort(&mut moe, logits.view(), rows, &router, placement).unwrap();
        } else {
            product_route_and_sort(&mut moe, logits.view_mut(), x.view(), &w, rows, &router, placement)
                .unwrap();
        }
        let mut y = device.alloc(moe.max_sorted(rows) * width).unwrap();
        let tokens = moe.groups.token_of_row.view();
        grouped_matmul(y.view_mut(), width, x.view(), Some(tokens), &table, &moe.groups).unwrap();
        let results = Results { y: y.view(), stride: width, bias: Some(down_bias.view()), buffers: &moe };
        // By itself, and with the norm after it.
        let mut sum = residual.floats(device, batch);
        combine(sum.view_mut(), Onto::Sum, y.view(), width, results.bias, &moe, rows, width).unwrap();
        let (mut partial, mut to) = (residual.floats(device, batch), residual.floats(device, batch));
        let mut out = Acts::alloc(device, ActType::F32, rows * width).unwrap();
        let norm = Norm {
            out: out.view_mut().into(),
            x: to.view_mut(),
            added: None,
            post_norm: None,
            weight: weight.view(),
            rows,
            width,
            eps: 1e-5,
        };
        combine_add_and_norm(&results, Onto::Sum, partial.view_mut(), norm).unwrap();
        let chosen = moe.ids.download().unwrap();
        let [weights, sum, to] = [&moe.weights, &sum, &to].map(|made| made.download().unwrap());
        let out = out.download().unwrap();
        let of = |row: usize| {
            let mut made = chosen[row * top_k..][..top_k].to_vec();
            made.extend(bits(&weights[row * top_k..][..top_k]));
            made.extend([&sum, &to, &out].iter().flat_map(|all| bits(&all[row * width..][..width])));
            made
        };
        (0..rows).map(of).collect()
    });
}

#[test]
fn experts() {
    let softmax = Routing::Softmax { renormalize: true };
    let sigmoid = Routing::GroupedSigmoid { groups: 5, top_groups: 3, renormalize: true, scale: 2.5 };
    let (f32, bf16, f16) = (WeightKind::F32, WeightKind::Bf16, WeightKind::F16);
    let cases = [
        // Routers that have kernels of their own: up to 8 rows in one launch, or up to fewer of many inputs.
        (8, 2, 64, f32, ActType::F32, softmax, false),
        (20, 4, 136, f32, ActType::Bf16, sigmoid, false),
        (12, 3, 4096, bf16, ActType::Bf16, softmax, false),
        (5, 2, 264, f16, ActType::Bf16, Routing::Softmax { renormalize: false }, false),
        // And others: too many experts, and a number of inputs that has no whole eights.
        (65, 6, 40, f32, ActType::F32, sigmoid, false),
        (7, 2, 45, f32, ActType::Bf16, softmax, false),
        (8, 2, 64, f32, ActType::F32, softmax, true),
    ];
    for device in devices() {
        let random = &mut Random::new(5);
        for (experts, top_k, hidden, router, acts, routing, apart) in cases {
            check_moe(&device, random, &Moe { experts, top_k, hidden, router, acts, routing, apart });
        }
    }
}

#[test]
fn what_sampling_needs() {
    for device in devices() {
        let random = &mut Random::new(6);
        // Of rows that follow each other without gaps, few begin at whole 16 bytes.
        for vocab in [2048 + 37, 515] {
            let (mut pool, k) = (Pool::new(random, vocab), 9);
            // So that ln Σ e^(0.7 x) is close to 0, where the last bits of the sum are seen.
            let down = (vocab as f32).ln() / 0.7;
            pool.values.iter_mut().for_each(|x| *x = *x / 30.0 - down);
            invariant(&name(&[&"sampling", &vocab]), random, |batch| {
                let (x, rows) = (pool.floats(&device, batch), batch.len());
                let mut found = SampleBuffers::new(&device, rows, vocab, k).unwrap();
                argmax(&mut found, x.view(), rows, vocab).unwrap();
                let scales = device.upload(&vec![0.7; rows]).unwrap();
                log_sum_exp(&mut found, x.view(), rows, vocab, Some(scales.view())).unwrap();
                top(&mut found, x.view(), rows, vocab, k).unwrap();
                let words = |view: View<'_, u32>| {
                    let mut words = vec![0; view.len()];
                    view.download(&mut words).unwrap();
                    words
                };
                let (greatest, best) = (words(found.greatest(rows)), words(found.best(rows, k)));
                let sums = found.sums.download().unwrap();
                let of = |row: usize| {
                    let mut made = vec![greatest[row], greatest[rows + row], sums[row].to_bits()];
                    made.extend(&best[row * k..][..k]);
                    made.extend(&best[(rows + row) * k..][..k]);
                    made
                };
                (0..rows).map(of).collect()
            });
        }
    }
}
