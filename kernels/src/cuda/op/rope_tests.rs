use half::f16;

use super::*;
use crate::cuda::op::step_rows::Run;
use crate::cuda::testing::{Random, assert_close, devices};
use crate::cuda::{from_f8, to_f8};
use crate::op::kv_cache::KvSizes;

const LAYER: usize = 1;
const BLOCKS: usize = 9;

/// Rows of two sequences; block size 3.
const RUNS: [(&[u32], usize, usize); 3] = [(&[4, 2, 8], 4, 4), (&[1], 0, 1), (&[7, 3, 0, 5], 11, 1)];

fn positions() -> Vec<(usize, usize)> {
    RUNS.iter()
        .flat_map(|(blocks, at, rows)| (*at..at + rows).map(|at| (blocks[at / 3] as usize, at)))
        .collect()
}

fn step(device: &Device, fixed: bool) -> StepRows {
    let runs = RUNS.map(|(blocks, position, rows)| Run { blocks, position, rows });
    let mut step = match fixed {
        true => StepRows::fixed(device, 8, 20, 100).unwrap(),
        false => StepRows::new(device).unwrap(),
    };
    step.set(&runs).unwrap();
    step
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// Bias, norm and rotation of one head.
fn turned(
    x: &[f32],
    norm: Option<&[f32]>,
    eps: f32,
    position: usize,
    inv_freq: &[f32],
    style: RopeStyle,
) -> Vec<f64> {
    let mut x = wide(x);
    if let Some(norm) = norm {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        x.iter_mut().zip(norm).for_each(|(x, norm)| *x *= scale * f64::from(*norm));
    }
    let pairs = inv_freq.len();
    for (i, inv_freq) in inv_freq.iter().enumerate() {
        let (sin, cos) = f64::from(position as f32 * inv_freq).sin_cos();
        let (sin, cos) = (sin * f64::from(SCALE), cos * f64::from(SCALE));
        let (a, b) = match style {
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
            RopeStyle::Half => (i, i + pairs),
        };
        (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
    }
    x
}

const SCALE: f32 = 1.25;

fn rope(device: &Device, random: &mut Random, pairs: usize, style: RopeStyle) -> (Vec<f32>, DeviceRope) {
    let inv_freq: Vec<f32> = random.floats(pairs).iter().map(|x| x.abs() * 40.0).collect();
    let rope = DeviceRope::new(device, &inv_freq, style, SCALE).unwrap();
    (inv_freq, rope)
}

/// What a side of the cache has where the rows are, [row][head][stride], and the rest, which must be as before (NaN).
fn cached(kv: &mut DeviceKv, values: bool) -> Vec<f32> {
    let (kind, sizes) = (kv.kind(), *kv.sizes());
    let stride = if values { kv.value_stride } else { kv.key_stride };
    let bytes = kv.content()[usize::from(values)].download().unwrap();
    let all: Vec<f32> = match kind {
        KvKind::F32 => bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        KvKind::F16 => bytes.as_chunks::<2>().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect(),
        KvKind::F8 => bytes.iter().map(|code| from_f8(*code)).collect(),
    };
    let (mut found, mut written) = (Vec::new(), vec![false; all.len()]);
    for (block, position) in positions() {
        for head in 0..sizes.kv_heads {
            let cell = (LAYER * BLOCKS + block) * sizes.kv_heads + head;
            let at = (cell * 3 + position % 3) * stride;
            found.extend_from_slice(&all[at..][..stride]);
            written[at..][..stride].fill(true);
        }
    }
    assert!(all.iter().zip(&written).all(|(x, written)| *written || x.is_nan()), "nothing else is written");
    found
}

fn poisoned(device: &Device, kind: KvKind, kv_heads: usize, key_dim: usize, values: Values) -> DeviceKv {
    let sizes = KvSizes { layers: 2, blocks: BLOCKS, block_size: 3, kv_heads, key_dim, values };
    let mut kv = DeviceKv::new(device, sizes, kind).unwrap();
    for content in kv.content() {
        content.view_mut().fill(0xff).unwrap();
    }
    kv
}

/// A cache of this kind has what was `wanted`, rounded, and zeros behind it.
fn check_cached(kind: KvKind, dim: usize, found: &[f32], wanted: &[f64], what: &str) {
    let stride = dim.div_ceil(16 / kind.size()) * (16 / kind.size());
    let padded = wanted.chunks_exact(dim).flat_map(|row| {
        let mut row = row.to_vec();
        row.resize(stride, 0.0);
        row
    });
    match kind {
        KvKind::F32 => assert_close(found, &padded.collect::<Vec<_>>(), 1e-5, what),
        KvKind::F16 => {
            let wanted = padded.map(|x| f16::from_f64(x.clamp(-65504.0, 65504.0)).to_f64());
            assert_close(found, &wanted.collect::<Vec<_>>(), 5e-3, what);
        }
        // What is as near to two codes as numbers are exact may have become either.
        KvKind::F8 => {
            let near = |x: f64| from_f8(to_f8(x as f32));
            let wanted: Vec<f64> = padded.collect();
            assert_eq!(found.len(), wanted.len(), "{what}");
            for (found, wanted) in found.iter().zip(wanted) {
                let right = near(wanted - 1e-5)..=near(wanted + 1e-5);
                assert!(right.contains(found), "{what}: {found} in place of {wanted}");
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    kind: KvKind,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    pairs: usize,
    style: RopeStyle,
    bias: bool,
    norms: bool,
    fixed: bool,
}

fn check_grouped(device: &Device, random: &mut Random, case: Case) {
    let Case { kind, heads, kv_heads, dim, pairs, style, .. } = case;
    let step = step(device, case.fixed);
    let all = heads + 2 * kv_heads;
    let (inv_freq, rope) = rope(device, random, pairs, style);
    let mut angles = DeviceAngles::new(device, &rope, step.rows()).unwrap();
    angles.set(&rope, &step).unwrap();
    let live = positions().len();
    let (mut qkv, bias) = (random.floats(live * all * dim), random.floats(all * dim));
    let (q_norm, k_norm) = (random.floats(dim), random.floats(dim));
    // Of the values, one that is not reached.
    let large = (heads + kv_heads) * dim;
    if kind != KvKind::F32 {
        qkv[large] = 1e6;
    }
    let eps = 1e-2;
    let (mut q_wanted, mut k_wanted, mut v_wanted) = (Vec::new(), Vec::new(), Vec::new());
    for ((_, position), row) in positions().iter().zip(qkv.chunks_exact(all * dim)) {
        let row: Vec<f32> =
            row.iter().zip(&bias).map(|(x, bias)| if case.bias { x + bias } else { *x }).collect();
        for (head, x) in row.chunks_exact(dim).enumerate() {
            let turn = |norm: &[f32]| turned(x, case.norms.then_some(norm), eps, *position, &inv_freq, style);
            match head {
                head if head < heads => q_wanted.extend(turn(&q_norm)),
                head if head < heads + kv_heads => k_wanted.extend(turn(&k_norm)),
                _ => v_wanted.extend(wide(x)),
            }
        }
    }
    qkv.resize(step.rows() * all * dim, f32::NAN);
    q_wanted.resize(step.rows() * heads * dim, 0.0);
    let mut kv = poisoned(device, kind, kv_heads, dim, Values::Own(dim));
    let [qkv, bias, q_norm, k_norm] = [&qkv, &bias, &q_norm, &k_norm].map(|x| device.upload(x).unwrap());
    let mut q = device.alloc(step.rows() * heads * dim).unwrap();
    let grouped = Grouped {
        bias: case.bias.then(|| bias.view()),
        q_norm: case.norms.then(|| q_norm.view()),
        k_norm: case.norms.then(|| k_norm.view()),
        eps,
        heads,
    };
    rope_and_write(q.view_mut(), &mut kv, LAYER, &step, qkv.view(), &grouped, &angles).unwrap();
    assert_close(&q.download().unwrap(), &q_wanted, 1e-5, &format!("q of {case:?}"));
    for (values, wanted) in [(false, k_wanted), (true, v_wanted)] {
        check_cached(kind, dim, &cached(&mut kv, values), &wanted, &format!("{values} of {case:?}"));
    }
}

#[test]
fn queries_keys_and_values() {
    for device in devices() {
        let mut random = Random::new(11);
        for (heads, kv_heads, dim, pairs) in
            [(1, 1, 8, 4), (4, 2, 20, 10), (3, 1, 64, 32), (5, 2, 33, 8), (2, 2, 128, 64), (9, 3, 10, 0)]
        {
            for kind in [KvKind::F32, KvKind::F16, KvKind::F8] {
                for style in [RopeStyle::Half, RopeStyle::Interleaved] {
                    for (bias, norms, fixed) in
                        [(false, false, false), (true, false, true), (false, true, true), (true, true, false)]
                    {
                        let case = Case { kind, heads, kv_heads, dim, pairs, style, bias, norms, fixed };
                        check_grouped(&device, &mut random, case);
                    }
                }
            }
        }
    }
}

#[test]
fn keys_of_latent_attention() {
    for device in devices() {
        let mut random = Random::new(12);
        for kind in [KvKind::F32, KvKind::F16, KvKind::F8] {
            for (rank, pairs, style, with_bias) in [
                (16, 4, RopeStyle::Interleaved, false),
                (13, 3, RopeStyle::Half, true),
                (512, 32, RopeStyle::Interleaved, false),
            ] {
                let step = step(&device, with_bias);
                let width = rank + 2 * pairs;
                let (inv_freq, rope) = rope(&device, &mut random, pairs, style);
                let mut angles = DeviceAngles::new(&device, &rope, step.rows()).unwrap();
                angles.set(&rope, &step).unwrap();
                let mut x = random.floats(positions().len() * width);
                let (bias, norm, eps) = (random.floats(width), random.floats(rank), 1e-3);
                let mut wanted = Vec::new();
                for ((_, position), row) in positions().iter().zip(x.chunks_exact(width)) {
                    let row: Vec<f32> =
                        row.iter().zip(&bias).map(|(x, b)| if with_bias { x + b } else { *x }).collect();
                    wanted.extend(turned(&row[..rank], Some(&norm), eps, 0, &[], style));
                    wanted.extend(turned(&row[rank..], None, eps, *position, &inv_freq, style));
                }
                x.resize(step.rows() * width, f32::NAN);
                let mut kv = poisoned(&device, kind, 1, width, Values::InKey(rank));
                let [x, bias, norm] = [&x, &bias, &norm].map(|x| device.upload(x).unwrap());
                let keys =
                    LatentKeys { x: x.view(), bias: with_bias.then(|| bias.view()), norm: norm.view(), eps };
                latent_write(&mut kv, LAYER, &step, &keys, &angles).unwrap();
                let what = format!("{kind:?} {rank} {pairs}");
                check_cached(kind, width, &cached(&mut kv, false), &wanted, &what);
            }
        }
    }
}

#[test]
fn parts_of_heads_are_rotated_into_another_matrix_or_in_place() {
    for device in devices() {
        let mut random = Random::new(13);
        for (pairs, style) in [(4, RopeStyle::Half), (3, RopeStyle::Interleaved), (32, RopeStyle::Half)] {
            let step = step(&device, false);
            let (rows, heads, dims) = (step.rows(), 5, 2 * pairs);
            let (inv_freq, rope) = rope(&device, &mut random, pairs, style);
            let mut angles = DeviceAngles::new(&device, &rope, rows + 2).unwrap();
            angles.set(&rope, &step).unwrap();
            // Heads of 7 elements before what is rotated; into heads of 9 and 2 after.
            let x_at = HeadsAt { offset: 7, row_stride: heads * (7 + dims), head_stride: 7 + dims };
            let out_at = HeadsAt { offset: 9, row_stride: heads * (11 + dims) + 1, head_stride: 11 + dims };
            let x = random.floats(rows * x_at.row_stride);
            let before = random.floats(rows * out_at.row_stride);
            let (mut wanted, mut wanted_in_place) = (wide(&before), wide(&x));
            for (row, (_, position)) in positions().iter().enumerate() {
                for head in 0..heads {
                    let from = x_at.offset + row * x_at.row_stride + head * x_at.head_stride;
                    let to = out_at.offset + row * out_at.row_stride + head * out_at.head_stride;
                    let turned = turned(&x[from..][..dims], None, 0.0, *position, &inv_freq, style);
                    wanted[to..][..dims].copy_from_slice(&turned);
                    wanted_in_place[from..][..dims].copy_from_slice(&turned);
                }
            }
            let (mut on_device, mut out) = (device.upload(&x).unwrap(), device.upload(&before).unwrap());
            rope_rows(out.view_mut(), out_at, on_device.view(), x_at, heads, &step, &angles).unwrap();
            assert_close(&out.download().unwrap(), &wanted, 1e-5, "into another");
            rope_in_place(on_device.view_mut(), x_at, heads, &step, &angles).unwrap();
            assert_close(&on_device.download().unwrap(), &wanted_in_place, 1e-5, "in place");
        }
    }
}

#[test]
fn short_vectors_are_normalised_in_place() {
    for device in devices() {
        let mut random = Random::new(14);
        for (rows, width, stride) in [(1, 1, 1), (3, 7, 9), (2, 300, 300), (5, 32, 40)] {
            let (x, weight) = (random.floats(rows * stride), random.floats(width));
            let mut wanted = wide(&x);
            for row in wanted.chunks_exact_mut(stride) {
                let mean = row[..width].iter().map(|x| x * x).sum::<f64>() / width as f64;
                let scale = 1.0 / (mean + f64::from(1e-5f32)).sqrt();
                row.iter_mut().zip(&weight).for_each(|(x, weight)| *x *= scale * f64::from(*weight));
            }
            let (mut x, weight) = (device.upload(&x).unwrap(), device.upload(&weight).unwrap());
            norm_heads(x.view_mut(), stride, rows, weight.view(), 1e-5).unwrap();
            assert_close(&x.download().unwrap(), &wanted, 1e-5, &format!("{rows} × {width}"));
        }
    }
}

#[test]
fn a_block_is_copied_over_another() {
    for device in devices() {
        for (kind, values) in
            [(KvKind::F32, Values::Own(5)), (KvKind::F16, Values::InKey(4)), (KvKind::F8, Values::Own(17))]
        {
            let mut kv = poisoned(&device, kind, 2, 20, values);
            let mut before = Vec::new();
            for content in kv.content() {
                let bytes: Vec<u8> = (0..content.len()).map(|i| (i * 7 % 251) as u8).collect();
                content.view_mut().upload(&bytes).unwrap();
                before.push(bytes);
            }
            kv.copy_block(8, 2).unwrap();
            kv.copy_block(3, 3).unwrap();
            for (content, mut wanted) in kv.content().into_iter().zip(before) {
                let block = wanted.len() / (2 * BLOCKS);
                for layer in 0..2 {
                    let at = |n: usize| (layer * BLOCKS + n) * block;
                    wanted.copy_within(at(8)..at(9), at(2));
                }
                assert!(content.download().unwrap() == wanted, "{kind:?}");
            }
        }
    }
}
