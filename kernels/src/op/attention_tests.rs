//! Attention against double precision, over shapes, windows and cache types.

use super::*;
use crate::cpu::portable;
use crate::op::kv_cache::KvType;

fn noise(i: usize, salt: usize) -> f32 {
    ((i * 7919 + salt * 104_729) % 2003) as f32 / 1000.0 - 1.0
}

struct Case {
    cache: KvCache,
    blocks: Vec<u32>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

fn case(positions: usize, kv_heads: usize, dim: usize, ty: KvType) -> Case {
    let size = 16;
    let count = positions.div_ceil(size);
    let mut cache = KvCache::new(2, count + 3, size, kv_heads, dim, ty).expect("fits");
    let blocks: Vec<u32> = (0..count as u32).map(|i| (i * 5 + 2) % (count as u32 + 3)).collect();
    let blocks = if blocks.iter().collect::<std::collections::BTreeSet<_>>().len() == count {
        blocks
    } else {
        (0..count as u32).rev().collect()
    };
    let width = kv_heads * dim;
    let keys: Vec<Vec<f32>> = (0..positions).map(|p| (0..width).map(|i| noise(i, p)).collect()).collect();
    let values: Vec<Vec<f32>> =
        (0..positions).map(|p| (0..width).map(|i| noise(i, p + 999)).collect()).collect();
    for p in 0..positions {
        cache.write(1, blocks[p / size], p % size, &keys[p], &values[p]);
    }
    Case { cache, blocks, keys, values }
}

fn exact(case: &Case, q: &[f32], head: usize, dim: usize, from: usize, to: usize, scale: f32) -> Vec<f64> {
    let part = |row: &[f32]| row[head * dim..][..dim].iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let scores: Vec<f64> = (from..to)
        .map(|p| {
            part(&case.keys[p]).iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum::<f64>() * f64::from(scale)
        })
        .collect();
    let peak = scores.iter().copied().fold(f64::MIN, f64::max);
    let total: f64 = scores.iter().map(|s| (s - peak).exp()).sum();
    let mut out = vec![0.0; dim];
    for (p, score) in (from..to).zip(&scores) {
        for (out, v) in out.iter_mut().zip(part(&case.values[p])) {
            *out += v * (score - peak).exp() / total;
        }
    }
    out
}

#[test]
fn agrees_with_double_precision() {
    for (ty, tolerance) in [(KvType::F32, 3e-6), (KvType::F16, 2e-3)] {
        for (dim, kv_head_of) in
            [(64, vec![0, 0, 0, 1, 1, 1]), (8, vec![0]), (12, vec![0, 0, 0, 0, 0]), (80, vec![0, 1])]
        {
            let heads = kv_head_of.len();
            let case = case(70, 2, dim, ty);
            let lens = [1usize, 5, 16, 17, 31, 70];
            let q: Vec<f32> = (0..lens.len() * heads * dim).map(|i| noise(i, 5) * 3.0).collect();
            for window in [0, 3, 20] {
                let rows: Vec<AttentionRow<'_>> = lens
                    .iter()
                    .map(|len| AttentionRow {
                        blocks: &case.blocks,
                        len: *len,
                        window_start: if window == 0 { 0 } else { len.saturating_sub(window) },
                    })
                    .collect();
                let mut out = vec![f32::NAN; q.len()];
                attention(&ThreadPool::new(2), &case.cache, 1, &q, &rows, &kv_head_of, 0.3, &mut out);
                for (t, row) in rows.iter().enumerate() {
                    for (h, kv) in kv_head_of.iter().enumerate() {
                        let at = (t * heads + h) * dim;
                        let kv = *kv as usize;
                        let expected = exact(&case, &q[at..][..dim], kv, dim, row.window_start, row.len, 0.3);
                        for (got, expected) in out[at..].iter().zip(&expected) {
                            let error = (f64::from(*got) - expected).abs();
                            assert!(
                                error < tolerance,
                                "{ty:?} dim {dim} row {t} head {h} window {window}: {error}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn lanes_agree_bit_for_bit_and_rows_do_not_see_each_other() {
    let case = case(45, 1, 64, KvType::F16);
    let q: Vec<f32> = (0..3 * 64).map(|i| noise(i, 2)).collect();
    let row = AttentionRow { blocks: &case.blocks, len: 45, window_start: 0 };
    let mut all = vec![0.0; 2 * 3 * 64];
    let other = AttentionRow { blocks: &case.blocks, len: 7, window_start: 0 };
    attention(
        &ThreadPool::new(1),
        &case.cache,
        1,
        &[q.clone(), q.clone()].concat(),
        &[other, row],
        &[0; 3],
        0.125,
        &mut all,
    );
    let Store::F16 { keys, values } = &case.cache.store else { unreachable!("made as F16") };
    let heads = Heads { cache: &case.cache, layer: 1, head: 0, keys, values, scale: 0.125 };
    let mut plain = vec![0.0; 3 * 64];
    attend_f16_body::<portable::F32x8>(&heads, &row, &q, &mut plain);
    assert_eq!(plain, all[3 * 64..]);
}
