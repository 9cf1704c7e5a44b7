#[path = "attention_codes_tests.rs"]
mod codes;
#[path = "attention_f8_tests.rs"]
mod f8;
#[path = "attention_invariance_tests.rs"]
mod invariance;

use half::f16;

use super::*;
use crate::cuda::op::kv_cache::KvKind;
use crate::cuda::op::step_rows::Run;
use crate::cuda::testing::{Random, devices, worst};
use crate::cuda::{ActType, Acts, from_f8, to_f8};
use crate::op::kv_cache::{KvSizes, Values};

/// A cache, rows that look into it, and what all of that has in common.
#[derive(Debug, Clone)]
struct Case {
    kind: KvKind,
    /// Query heads of each head of the cache.
    groups: Vec<usize>,
    key_dim: usize,
    values: Values,
    block_size: usize,
    /// (Position of the first row, rows).
    runs: Vec<(usize, usize)>,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    out: ActType,
    /// Rows of a fixed form.
    fixed: Option<usize>,
    /// Rows for which there is scratch.
    scratch: usize,
    /// Keys and values are numbers that E4M3 has, whatever they are kept in.
    few_bits: bool,
}

impl Case {
    fn new(kind: KvKind, groups: &[usize], dim: usize, runs: &[(usize, usize)]) -> Self {
        Self {
            kind,
            groups: groups.to_vec(),
            key_dim: dim,
            values: Values::Own(dim),
            block_size: 16,
            runs: runs.to_vec(),
            window: None,
            softcap: None,
            sinks: false,
            out: ActType::F32,
            fixed: None,
            scratch: 64,
            few_bits: kind == KvKind::F8,
        }
    }

    fn kv_head_of(&self) -> Vec<u32> {
        self.groups.iter().zip(0..).flat_map(|(count, head)| std::iter::repeat_n(head, *count)).collect()
    }

    fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Keys or values of every sequence: [sequence][position][head][element], as the cache rounds them.
type Rows = Vec<Vec<f32>>;

struct Filled {
    kv: DeviceKv,
    tables: Vec<Vec<u32>>,
    keys: Rows,
    values: Rows,
}

const LAYER: usize = 1;

/// A cache that has NaN wherever none of the rows may look.
fn filled(device: &Device, random: &mut Random, case: &Case) -> Filled {
    let (heads, size) = (case.groups.len(), case.block_size);
    let needed: Vec<usize> = case.runs.iter().map(|(at, rows)| (at + rows).div_ceil(size)).collect();
    let blocks = needed.iter().sum::<usize>() + 3;
    let mut free: Vec<u32> = (0..u32_of(blocks)).collect();
    let tables: Vec<Vec<u32>> = needed
        .iter()
        .map(|count| (0..*count).map(|_| free.swap_remove(random.below(free.len()))).collect())
        .collect();
    let sizes = KvSizes {
        layers: 2,
        blocks,
        block_size: size,
        kv_heads: heads,
        key_dim: case.key_dim,
        values: case.values,
    };
    let mut kv = DeviceKv::new(device, sizes, case.kind).unwrap();
    let strides = [kv.key_stride, kv.value_stride];
    let own = if kv.in_keys() { 0 } else { case.values.dim() };
    let mut made = Vec::new();
    for ((content, dim), stride) in kv.content().into_iter().zip([case.key_dim, own]).zip(strides) {
        let bytes = case.kind.size();
        let mut host = vec![0xffu8; content.len()];
        let mut rows = Rows::new();
        for ((at, count), table) in case.runs.iter().zip(&tables) {
            let mut all = random.floats((at + count) * heads * dim);
            if case.few_bits {
                all.iter_mut().for_each(|x| *x = from_f8(to_f8(*x)));
            } else if case.kind == KvKind::F16 {
                all.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
            }
            for position in case.first_seen(*at)..at + count {
                for head in 0..heads {
                    let block = LAYER * blocks + table[position / size] as usize;
                    let place = (block * heads + head) * size + position % size;
                    let to = &mut host[place * stride * bytes..][..stride * bytes];
                    to.fill(0);
                    for (to, x) in
                        to.chunks_exact_mut(bytes).zip(&all[(position * heads + head) * dim..][..dim])
                    {
                        match case.kind {
                            KvKind::F32 => to.copy_from_slice(&x.to_le_bytes()),
                            KvKind::F16 => to.copy_from_slice(&f16::from_f32(*x).to_le_bytes()),
                            KvKind::F8 => to[0] = to_f8(*x),
                        }
                    }
                }
            }
            rows.push(all);
        }
        content.view_mut().upload(&host).unwrap();
        made.push(rows);
    }
    let values = made.pop().unwrap();
    Filled { kv, tables, keys: made.pop().unwrap(), values }
}

/// What attention is, in f64.
fn expected(case: &Case, filled: &Filled, q: &[f32], scale: f32, sinks: &[f32]) -> Vec<f64> {
    let (of, kv_heads) = (case.kv_head_of(), case.groups.len());
    let (key_dim, value_dim) = (case.key_dim, case.values.dim());
    let (values, each) = match case.values {
        Values::Own(dim) => (&filled.values, dim),
        Values::InKey(_) => (&filled.keys, key_dim),
    };
    let mut out = Vec::new();
    let mut queries = q.chunks_exact(key_dim);
    for (i, (at, count)) in case.runs.iter().enumerate() {
        for position in *at..at + count {
            for (head, of) in of.iter().enumerate() {
                let query = queries.next().unwrap();
                let seen = case.first_seen(position)..position + 1;
                let place = |position: usize| position * kv_heads + *of as usize;
                let score = |position: usize| {
                    let key = &filled.keys[i][place(position) * key_dim..][..key_dim];
                    let dot: f64 = key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum();
                    let score = dot * f64::from(scale);
                    case.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                };
                let weights: Vec<f64> = seen.clone().map(|position| score(position).exp()).collect();
                let sink = sinks.get(head).map_or(0.0, |sink| f64::from(*sink).exp());
                let total = weights.iter().sum::<f64>() + sink;
                let mut row = vec![0.0; value_dim];
                for (position, weight) in seen.zip(weights) {
                    let value = &values[i][place(position) * each..][..value_dim];
                    row.iter_mut().zip(value).for_each(|(x, v)| *x += weight / total * f64::from(*v));
                }
                out.extend(row);
            }
        }
    }
    out
}

fn runs_of<'a>(case: &Case, tables: &'a [Vec<u32>]) -> Vec<Run<'a>> {
    let runs = case.runs.iter().zip(tables);
    runs.map(|((position, rows), blocks)| Run { blocks, position: *position, rows: *rows }).collect()
}

/// The largest difference from f64, of values that are up to 1.
fn error_of(device: &Device, random: &mut Random, case: &Case) -> f64 {
    let filled = filled(device, random, case);
    let of = case.kv_head_of();
    let live: usize = case.runs.iter().map(|(_, rows)| rows).sum();
    let rows = case.fixed.unwrap_or(live);
    let (key_width, value_width) = (of.len() * case.key_dim, of.len() * case.values.dim());
    let q: Vec<f32> = random.floats(live * key_width).iter().map(|x| x * 4.0).collect();
    let sinks = if case.sinks { random.floats(of.len()) } else { Vec::new() };
    let scale = 1.0 / (case.key_dim as f32).sqrt();

    let context = case.runs.iter().map(|(at, rows)| at + rows).max().unwrap_or(0);
    let mut step = match case.fixed {
        // Others were there before.
        Some(rows) => StepRows::fixed(device, rows, filled.tables.concat().len(), context + 100).unwrap(),
        None => StepRows::new(device).unwrap(),
    };
    let runs = runs_of(case, &filled.tables);
    step.set(&runs[..1]).unwrap();
    step.set(&runs).unwrap();
    let heads = HeadMap::new(device, &of).unwrap();
    let mut scratch =
        AttentionScratch::new(device, case.scratch, of.len(), case.values.dim(), context + 100).unwrap();
    let mut padded = q.clone();
    padded.resize(rows * key_width, f32::NAN);
    let on_device = device.upload(&padded).unwrap();
    let sinks_on_device = device.upload(&sinks).unwrap();
    let mut out = Acts::alloc(device, case.out, rows * value_width).unwrap();
    out.view_mut().fill(0xff).unwrap();
    let a = Attention {
        heads: &heads,
        scale,
        softcap: case.softcap,
        window: case.window,
        sinks: case.sinks.then(|| sinks_on_device.view()),
    };
    attention(out.view_mut(), on_device.view(), &filled.kv, LAYER, &step, &a, &mut scratch).unwrap();
    let mut wanted = expected(case, &filled, &q, scale, &sinks);
    wanted.resize(rows * value_width, 0.0);
    let found = out.download().unwrap();
    let (error, at) = worst(&found, &wanted);
    assert!(error.is_finite(), "{case:?}: {} in place of {} at {at}", found[at], wanted[at]);
    error
}

fn check(device: &Device, case: &Case, tolerance: f64) {
    let error = error_of(device, &mut Random::new(7), case);
    assert!(error <= tolerance, "{case:?}: off by {error:.2e}, allowed {tolerance:.0e}");
}

/// Rows that are taken one by one at every kind of place: the first, around the ends of parts of 256.
const ALONE: [(usize, usize); 6] = [(0, 1), (15, 3), (255, 1), (256, 2), (300, 1), (1000, 1)];

#[test]
fn rows_alone_of_every_shape() {
    for device in devices() {
        for (kind, dim, groups) in [
            (KvKind::F32, 8, vec![1, 1]),
            (KvKind::F32, 20, vec![2, 2]),
            (KvKind::F32, 64, vec![4]),
            (KvKind::F32, 80, vec![3, 3, 3]),
            (KvKind::F32, 128, vec![1]),
            (KvKind::F32, 256, vec![8]),
            (KvKind::F32, 300, vec![2]),
            (KvKind::F16, 8, vec![1, 2]),
            (KvKind::F16, 20, vec![8]),
            (KvKind::F16, 33, vec![9, 3]),
            (KvKind::F16, 72, vec![4, 4]),
            (KvKind::F16, 200, vec![6]),
            (KvKind::F16, 120, vec![16]),
            (KvKind::F16, 400, vec![3]),
        ] {
            check(&device, &Case::new(kind, &groups, dim, &ALONE), 1e-5);
        }
    }
}

#[test]
fn rows_together_of_every_shape() {
    let runs = [(0, 17), (37, 1), (100, 19), (200, 16)];
    for device in devices() {
        for (kind, dim, groups) in [
            (KvKind::F32, 12, vec![1, 1]),
            (KvKind::F32, 64, vec![4]),
            (KvKind::F32, 128, vec![3, 3]),
            (KvKind::F32, 200, vec![2]),
            (KvKind::F16, 20, vec![8, 1]),
            (KvKind::F16, 40, vec![3, 3]),
            (KvKind::F16, 120, vec![2]),
            (KvKind::F16, 200, vec![9]),
        ] {
            check(&device, &Case::new(kind, &groups, dim, &runs), 1e-5);
        }
    }
}

/// Of f16 with 11 bits: queries are up to 4 and scores up to about 10; weights are rounded, too.
const ON_TENSOR_CORES: f64 = 4e-3;

#[test]
fn rows_together_on_tensor_cores() {
    for device in devices() {
        for (dim, groups) in [
            (64, vec![1, 1]),
            (64, vec![8, 8]),
            (80, vec![3, 3]),
            (96, vec![2]),
            (128, vec![4]),
            (128, vec![3, 9]),
            (128, vec![1]),
            (128, vec![17]),
            (256, vec![2]),
            (256, vec![5]),
        ] {
            for runs in [&[(0, 16), (37, 1), (100, 19)][..], &[(50, 33), (129, 70)]] {
                check(&device, &Case::new(KvKind::F16, &groups, dim, runs), ON_TENSOR_CORES);
            }
        }
    }
}

#[test]
fn rows_alone_on_tensor_cores() {
    for device in devices() {
        for (dim, groups) in [
            (64, vec![8, 8]),
            (64, vec![2, 2]),
            (80, vec![5]),
            (80, vec![1, 1]),
            (96, vec![16, 2]),
            (96, vec![2]),
            (128, vec![4, 1]),
            (128, vec![20]),
            (128, vec![2, 2]),
            (128, vec![1]),
            (128, vec![2, 1]),
            (256, vec![6]),
            (256, vec![2, 2]),
            (256, vec![1]),
        ] {
            check(&device, &Case::new(KvKind::F16, &groups, dim, &ALONE), ON_TENSOR_CORES);
        }
        for dim in [64, 256] {
            for (window, softcap, sinks) in
                [(Some(1), None, false), (Some(130), None, true), (None, Some(1.0), true)]
            {
                for (block_size, out, fixed) in [(16, ActType::F32, Some(11)), (7, ActType::Bf16, None)] {
                    let case = Case::new(KvKind::F16, &[8], dim, &ALONE);
                    let case = Case { window, softcap, sinks, block_size, out, fixed, scratch: 4, ..case };
                    check(&device, &case, ON_TENSOR_CORES + if out == ActType::Bf16 { 4e-3 } else { 0.0 });
                }
            }
        }
    }
}

#[test]
fn windows_caps_and_sinks_on_tensor_cores() {
    let runs = [(0, 70), (3, 1), (150, 66), (301, 16)];
    for device in devices() {
        for dim in [64, 256] {
            for (window, softcap, sinks) in [
                (Some(1), None, false),
                (Some(17), None, true),
                (Some(100), Some(2.0), false),
                (Some(128), None, true),
                (None, Some(1.0), false),
                (None, None, true),
            ] {
                let (block_size, out) = if dim == 64 { (16, ActType::F32) } else { (7, ActType::Bf16) };
                let case = Case::new(KvKind::F16, &[1, 2], dim, &runs);
                let case = Case { window, softcap, sinks, block_size, out, ..case };
                check(&device, &case, ON_TENSOR_CORES + if out == ActType::Bf16 { 4e-3 } else { 0.0 });
            }
        }
    }
}

#[test]
fn few_rows_together_with_a_long_context_are_cut() {
    for device in devices() {
        let runs = [(1500, 17), (3, 1), (490, 30), (2, 16)];
        for (dim, sinks, out, scratch) in
            [(64, false, ActType::F32, 64), (80, true, ActType::Bf16, 64), (64, true, ActType::F32, 6)]
        {
            let case = Case { sinks, out, scratch, ..Case::new(KvKind::F16, &[3, 1], dim, &runs) };
            check(&device, &case, ON_TENSOR_CORES + if out == ActType::Bf16 { 4e-3 } else { 0.0 });
            let combined = device.driver().launches().iter().any(|(name, _)| *name == "attention_combine");
            assert!(combined, "{case:?}");
        }
    }
}

#[test]
fn values_within_keys() {
    let runs = [(0, 1), (5, 16), (250, 2), (600, 1)];
    for device in devices() {
        for (kind, dim, values, heads) in [
            (KvKind::F32, 24, 16, 4),
            (KvKind::F16, 24, 16, 5),
            (KvKind::F16, 580, 512, 9),
            (KvKind::F32, 576, 512, 4),
        ] {
            let case = Case { values: Values::InKey(values), ..Case::new(kind, &[heads], dim, &runs) };
            check(&device, &case, 1e-5);
        }
    }
}

#[test]
fn values_within_keys_on_tensor_cores() {
    let runs = [(0, 1), (5, 16), (250, 2), (600, 1)];
    for device in devices() {
        for heads in [3, 16, 40] {
            let values = Values::InKey(512);
            let case = Case { values, ..Case::new(KvKind::F16, &[heads], 576, &runs) };
            check(&device, &case, ON_TENSOR_CORES);
            if heads == 3 {
                let case = Case { window: Some(130), softcap: Some(2.0), sinks: true, block_size: 7, ..case };
                check(&device, &case, ON_TENSOR_CORES);
                let case = Case { fixed: Some(20), out: ActType::Bf16, scratch: 3, ..case };
                check(&device, &case, ON_TENSOR_CORES + 4e-3);
            }
        }
    }
}

#[test]
fn values_of_another_size_than_keys() {
    for device in devices() {
        for kind in [KvKind::F32, KvKind::F16] {
            for (key_dim, value_dim) in [(40, 24), (24, 40), (8, 128)] {
                let values = Values::Own(value_dim);
                let case = Case { values, ..Case::new(kind, &[2, 1], key_dim, &[(3, 17), (140, 2)]) };
                check(&device, &case, 1e-5);
            }
        }
    }
}

#[test]
fn windows_caps_and_sinks() {
    let runs = [(0, 1), (3, 1), (90, 2), (700, 1), (0, 19), (50, 30), (301, 16)];
    for device in devices() {
        for (kind, dim) in [(KvKind::F32, 64), (KvKind::F16, 40)] {
            for (window, softcap, sinks) in [
                (Some(1), None, false),
                (Some(17), None, true),
                (Some(128), Some(2.0), false),
                (Some(200), None, true),
                (Some(1000), Some(20.0), true),
                (None, Some(1.0), false),
                (None, None, true),
            ] {
                let case = Case { window, softcap, sinks, ..Case::new(kind, &[2, 3], dim, &runs) };
                check(&device, &case, 1e-5);
            }
        }
    }
}

#[test]
fn blocks_of_any_size() {
    for device in devices() {
        for block_size in [1, 7, 16, 32, 64] {
            let runs = [(0, 1), (77, 1), (140, 1), (60, 18)];
            let case = Case { block_size, ..Case::new(KvKind::F16, &[2, 2], 24, &runs) };
            check(&device, &case, 1e-5);
        }
    }
}

#[test]
fn results_in_bf16_rows_missing_and_little_scratch() {
    for device in devices() {
        let case = Case::new(KvKind::F16, &[4, 4], 72, &[(0, 1), (15, 1), (400, 3)]);
        check(&device, &Case { fixed: Some(9), ..case.clone() }, 1e-5);
        check(&device, &Case { scratch: 2, ..case.clone() }, 1e-5);
        check(&device, &Case { fixed: Some(5), scratch: 1, ..case.clone() }, 1e-5);
        check(&device, &Case { out: ActType::Bf16, ..case.clone() }, 4e-3);
        check(&device, &Case { out: ActType::Bf16, fixed: Some(6), ..case }, 4e-3);
    }
}

#[test]
fn a_long_context_is_cut_into_longer_parts() {
    for device in devices() {
        let runs = [(8191, 1), (8192, 1), (9000, 1)];
        check(&device, &Case::new(KvKind::F16, &[2], 16, &runs), 1e-5);
        check(&device, &Case { window: Some(8300), ..Case::new(KvKind::F16, &[1], 16, &runs) }, 1e-5);
    }
}

#[test]
fn rows_alone_and_rows_together_agree() {
    for device in devices() {
        for (kind, dim, values, groups, tolerance) in [
            (KvKind::F32, 24, Values::Own(24), vec![2, 2], 1e-5),
            (KvKind::F16, 64, Values::Own(64), vec![4], ON_TENSOR_CORES),
            (KvKind::F16, 128, Values::Own(128), vec![6], ON_TENSOR_CORES),
            (KvKind::F16, 576, Values::InKey(512), vec![5], ON_TENSOR_CORES),
        ] {
            let case = Case { values, ..Case::new(kind, &groups, dim, &[(120, 18)]) };
            let [alone, together] = [1, 18].map(|rows| out_in_runs_of(&device, &case, rows));
            let wanted: Vec<f64> = alone.iter().map(|x| f64::from(*x)).collect();
            let (error, _) = worst(&together, &wanted);
            assert!(error <= tolerance, "{case:?}: {error:.2e} apart");
        }
    }
}

/// Attention of the one run of `case`, cut into runs of so many rows.
fn out_in_runs_of(device: &Device, case: &Case, each: usize) -> Vec<f32> {
    let mut random = Random::new(6);
    let filled = filled(device, &mut random, case);
    let heads = HeadMap::new(device, &case.kv_head_of()).unwrap();
    let (position, rows) = case.runs[0];
    let q = device.upload(&random.floats(rows * heads.heads() * case.key_dim)).unwrap();
    let runs: Vec<Run<'_>> = (0..rows)
        .step_by(each)
        .map(|at| Run { blocks: &filled.tables[0], position: position + at, rows: each })
        .collect();
    let mut step = StepRows::new(device).unwrap();
    step.set(&runs).unwrap();
    let dim = case.values.dim();
    let mut scratch = AttentionScratch::new(device, 5, heads.heads(), dim, position + rows).unwrap();
    let mut out = Acts::alloc(device, ActType::F32, rows * heads.heads() * dim).unwrap();
    let a = Attention { heads: &heads, scale: 0.3, softcap: None, window: None, sinks: None };
    attention(out.view_mut(), q.view(), &filled.kv, LAYER, &step, &a, &mut scratch).unwrap();
    out.download().unwrap()
}

#[test]
fn a_row_has_the_same_bits_whatever_else_there_is() {
    for device in devices() {
        for heads in [2, 4] {
            let alone = |runs: &[(usize, usize)], scratch, fixed| {
                let case = Case { scratch, fixed, ..Case::new(KvKind::F16, &[heads], 64, runs) };
                bits_of_first(&device, &case)
            };
            let one = alone(&[(700, 1)], 1, None);
            assert_eq!(one, alone(&[(700, 1), (2000, 3), (1, 1)], 64, None));
            assert_eq!(one, alone(&[(700, 1), (900, 1)], 1, Some(7)));
        }
    }
}

#[test]
fn rows_are_recorded_once_and_attended_to_again_and_again() {
    for device in devices().into_iter().filter(|device| device.driver().can_capture()) {
        let case = Case::new(KvKind::F16, &[8], 64, &[(5, 1), (700, 2)]);
        let mut random = Random::new(8);
        let filled = filled(&device, &mut random, &case);
        let heads = HeadMap::new(&device, &case.kv_head_of()).unwrap();
        let q = random.floats(4 * 8 * 64);
        let on_device = device.upload(&q).unwrap();
        let mut out = Acts::alloc(&device, ActType::F32, 4 * 8 * 64).unwrap();
        let mut scratch = AttentionScratch::new(&device, 4, 8, 64, 1000).unwrap();
        let mut step = StepRows::fixed(&device, 4, 100, 1000).unwrap();
        let a = Attention { heads: &heads, scale: 0.3, softcap: None, window: None, sinks: None };
        device.driver().begin_capture().unwrap();
        attention(out.view_mut(), on_device.view(), &filled.kv, LAYER, &step, &a, &mut scratch).unwrap();
        let recorded = device.driver().end_capture().unwrap();
        // The context grows; then there are fewer rows.
        for runs in [&[(5, 1), (400, 2)][..], &[(5, 1), (700, 2)], &[(5, 1)]] {
            let case = Case { runs: runs.to_vec(), ..case.clone() };
            step.set(&runs_of(&case, &filled.tables)).unwrap();
            out.view_mut().fill(0xff).unwrap();
            // SAFETY: all buffers are as they were.
            unsafe { device.driver().replay(&recorded).unwrap() };
            let live: usize = runs.iter().map(|(_, rows)| rows).sum();
            let mut wanted = expected(&case, &filled, &q[..live * 8 * 64], 0.3, &[]);
            wanted.resize(4 * 8 * 64, 0.0);
            let (error, _) = worst(&out.download().unwrap(), &wanted);
            assert!(error <= ON_TENSOR_CORES, "{runs:?}: off by {error:.2e}");
        }
    }
}

/// Attention of the first row, all of whose numbers are the same in every case with this first run.
fn bits_of_first(device: &Device, case: &Case) -> Vec<f32> {
    let first = Case { runs: case.runs[..1].to_vec(), ..case.clone() };
    let source = filled(device, &mut Random::new(3), &first);
    let mut random = Random::new(4);
    let mut all = filled(device, &mut random, case);
    let (size, heads) = (case.block_size, case.groups.len());
    // The first sequence's blocks of the small cache over those of the large one.
    let (mut from, to) = (source.kv, &mut all.kv);
    let [from_blocks, to_blocks] = [from.sizes().blocks, to.sizes().blocks];
    let strides = [to.key_stride, to.value_stride];
    for ((from, to), stride) in from.content().into_iter().zip(to.content()).zip(strides) {
        let block = heads * size * stride * case.kind.size();
        for (a, b) in source.tables[0].iter().zip(&all.tables[0]) {
            let [a, b] = [(from_blocks, a), (to_blocks, b)].map(|(n, i)| (LAYER * n + *i as usize) * block);
            to.view_mut().slice(b..b + block).copy_from(from.view().slice(a..a + block)).unwrap();
        }
    }
    let of = case.kv_head_of();
    let rows = case.fixed.unwrap_or(case.runs.iter().map(|(_, rows)| rows).sum());
    let mut q = Random::new(5).floats(of.len() * case.key_dim);
    q.resize(rows * of.len() * case.key_dim, 0.5);
    let q = device.upload(&q).unwrap();
    let context = case.runs.iter().map(|(at, rows)| at + rows).max().unwrap();
    let runs = runs_of(case, &all.tables);
    let mut step = match case.fixed {
        Some(rows) => StepRows::fixed(device, rows, 1000, 5000).unwrap(),
        None => StepRows::new(device).unwrap(),
    };
    step.set(&runs).unwrap();
    let heads = HeadMap::new(device, &of).unwrap();
    let dim = case.values.dim();
    let mut scratch = AttentionScratch::new(device, case.scratch, of.len(), dim, context.max(5000)).unwrap();
    let mut out = Acts::alloc(device, ActType::F32, rows * of.len() * dim).unwrap();
    let a = Attention { heads: &heads, scale: 0.2, softcap: None, window: None, sinks: None };
    attention(out.view_mut(), q.view(), &all.kv, LAYER, &step, &a, &mut scratch).unwrap();
    out.download().unwrap()[..of.len() * dim].to_vec()
}

#[test]
fn heads_go_together_evenly() {
    assert_eq!(chunks(&[0, 0, 0, 1, 1], 8), (vec![0, 3, 0, 3, 2, 1], 3));
    assert_eq!(chunks(&[0; 9], 8), (vec![0, 4, 0, 4, 5, 0], 5));
    assert_eq!(chunks(&[0, 2], 1), (vec![0, 1, 0, 1, 1, 2], 1));
    assert_eq!(chunks(&[], 4), (vec![], 0));
}
