//! Attention against double precision, over shapes, windows and cache types.

use super::*;
use crate::op::kv_cache::Values::{InKey, Own};
use crate::op::kv_cache::{F8, KvSizes, KvType, Values, rounded};

fn noise(i: usize, salt: usize) -> f32 {
    ((i * 7919 + salt * 104_729) % 2003) as f32 / 1000.0 - 1.0
}

struct Case {
    cache: KvCache,
    blocks: Vec<u32>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

fn case(positions: usize, kv_heads: usize, key_dim: usize, values: Values, ty: KvType) -> Case {
    let size = 16;
    let count = positions.div_ceil(size);
    let sizes = KvSizes { layers: 2, blocks: count + 3, block_size: size, kv_heads, key_dim, values };
    let mut cache = KvCache::new(sizes, ty).expect("fits");
    let blocks: Vec<u32> = (0..count as u32).map(|i| (i * 5 + 2) % (count as u32 + 3)).collect();
    let blocks = if blocks.iter().collect::<std::collections::BTreeSet<_>>().len() == count {
        blocks
    } else {
        (0..count as u32).rev().collect()
    };
    let rows = |width: usize, salt: usize| -> Vec<Vec<f32>> {
        (0..positions).map(|p| (0..width).map(|i| noise(i, p + salt)).collect()).collect()
    };
    let stored = |row: &Vec<f32>, dim: usize| match ty {
        // What is computed of the codes must be exact, not the codes.
        KvType::Q8_0 => row.chunks(dim).flat_map(rounded).collect(),
        KvType::F8 => row.iter().map(|x| F8::from_f32(*x).to_f32()).collect(),
        _ => row.clone(),
    };
    let keys = rows(kv_heads * key_dim, 0);
    let own = match values {
        Own(dim) => rows(kv_heads * dim, 999),
        InKey(_) => vec![Vec::new(); positions],
    };
    for p in 0..positions {
        cache.write(1, blocks[p / size], p % size, &keys[p], &own[p]);
    }
    let keys: Vec<Vec<f32>> = keys.iter().map(|row| stored(row, key_dim)).collect();
    let dim = values.dim();
    let values = match values {
        Own(_) => own.iter().map(|row| stored(row, dim)).collect(),
        InKey(_) => keys
            .iter()
            .map(|row| row.chunks(key_dim).flat_map(|key| &key[..dim]).copied().collect())
            .collect(),
    };
    Case { cache, blocks, keys, values }
}

impl Case {
    /// The result of one head of one row in double precision.
    fn exact(&self, q: &[f32], h: usize, row: &AttentionRow<'_>, params: &AttentionParams<'_>) -> Vec<f64> {
        let head = params.kv_head_of[h] as usize;
        let part = |row: &[f32], dim: usize| -> Vec<f64> {
            row[head * dim..][..dim].iter().map(|x| f64::from(*x)).collect()
        };
        let (key_dim, dim) = (self.cache.key_dim(), self.cache.value_dim());
        let range = row.window_start..row.len;
        let scores: Vec<f64> = range
            .clone()
            .map(|p| {
                let dot: f64 =
                    part(&self.keys[p], key_dim).iter().zip(q).map(|(k, q)| k * f64::from(*q)).sum();
                let score = dot * f64::from(params.scale);
                params.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            })
            .collect();
        let sink = params.sinks.get(h).map(|sink| f64::from(*sink));
        let peak = scores.iter().copied().chain(sink).fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().copied().chain(sink).map(|s| (s - peak).exp()).sum();
        let mut out = vec![0.0; dim];
        for (p, score) in range.zip(&scores) {
            for (out, v) in out.iter_mut().zip(part(&self.values[p], dim)) {
                *out += v * (score - peak).exp() / total;
            }
        }
        out
    }

    /// Checks every head of rows of several lengths.
    fn check(&self, window: usize, tolerance: f64, params: &AttentionParams<'_>) {
        let (key_dim, dim) = (self.cache.key_dim(), self.cache.value_dim());
        let heads = params.kv_head_of.len();
        let lens = [1usize, 5, 16, 17, 31, 70];
        let q: Vec<f32> = (0..lens.len() * heads * key_dim).map(|i| noise(i, 5) * 3.0).collect();
        let rows = lens.map(|len| AttentionRow {
            blocks: &self.blocks,
            len,
            window_start: if window == 0 { 0 } else { len.saturating_sub(window) },
        });
        for threads in [1, 40] {
            // The number of threads decides how heads are grouped, and nothing else.
            let mut out = vec![f32::NAN; lens.len() * heads * dim];
            attention(&ThreadPool::with_spin(threads, false), &self.cache, 1, &q, &rows, params, &mut out);
            for (t, row) in rows.iter().enumerate() {
                for h in 0..heads {
                    let at = t * heads + h;
                    let expected = self.exact(&q[at * key_dim..][..key_dim], h, row, params);
                    for (got, expected) in out[at * dim..].iter().zip(&expected) {
                        let error = (f64::from(*got) - expected).abs();
                        assert!(error < tolerance, "row {t} head {h} window {window} {params:?}: {error}");
                    }
                }
            }
        }
    }
}

const TOLERANCES: [(KvType, f64); 4] =
    [(KvType::F32, 4e-6), (KvType::F16, 2e-3), (KvType::Q8_0, 1e-5), (KvType::F8, 4e-6)];

#[test]
fn agrees_with_double_precision() {
    for (ty, tolerance) in TOLERANCES {
        for (key_dim, values, kv_head_of) in [
            (64, Own(64), vec![0, 0, 0, 1, 1, 1]),
            (8, Own(8), vec![0]),
            (12, Own(12), vec![0, 0, 0, 0, 0]),
            (80, Own(80), vec![0, 1]),
            (48, Own(20), vec![0, 0, 1, 1]),
            (20, Own(48), [vec![0; 19], vec![1; 8]].concat()),
            (64, InKey(48), vec![0, 0, 0, 1, 1, 1]),
            (44, InKey(20), [vec![0; 19], vec![1; 8]].concat()),
            (20, InKey(20), vec![1, 1]),
        ] {
            let case = case(70, 2, key_dim, values, ty);
            for window in [0, 3, 20] {
                let params =
                    AttentionParams { kv_head_of: &kv_head_of, scale: 0.3, softcap: None, sinks: &[] };
                case.check(window, tolerance, &params);
            }
        }
    }
}

#[test]
fn caps_and_sinks_agree_with_double_precision() {
    let kv_head_of = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    let sinks: Vec<f32> = (0..11).map(|h| noise(h, 77) * 9.0).collect();
    for (ty, tolerance) in TOLERANCES {
        let case = case(70, 2, 32, Own(24), ty);
        for window in [0, 20] {
            for (softcap, sinks) in [(Some(2.0), &[][..]), (None, &sinks[..]), (Some(50.0), &sinks[..])] {
                let params = AttentionParams { kv_head_of: &kv_head_of, scale: 0.3, softcap, sinks };
                case.check(window, tolerance, &params);
            }
        }
    }
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    let case = case(16, 1, 8, Own(8), KvType::F32);
    let nothing = AttentionRow { blocks: &case.blocks, len: 0, window_start: 0 };
    for sinks in [&[][..], &[0.5]] {
        let params = AttentionParams { kv_head_of: &[0], scale: 1.0, softcap: None, sinks };
        let mut out = [f32::NAN; 8];
        attention(&ThreadPool::new(1), &case.cache, 1, &[1.0; 8], &[nothing], &params, &mut out);
        assert_eq!(out, [0.0; 8]);
    }
}

/// What a row does not see must not touch it, not even times nothing: later tokens may have left what is no number.
#[test]
fn rows_of_a_tile_are_as_alone_whatever_those_before_them_do_not_see() {
    for ty in [KvType::F32, KvType::F16] {
        for kv_head_of in [vec![0], vec![0, 0], vec![0, 0, 0], vec![0; 4], vec![0; 6]] {
            let mut case = case(48, 1, 32, Own(40), ty);
            // From here on only the last row sees something.
            for p in 40..48 {
                let (key, value) = (vec![f32::NAN; 32], vec![f32::INFINITY; 40]);
                case.cache.write(1, case.blocks[p / 16], p % 16, &key, &value);
            }
            let heads = kv_head_of.len();
            let params = AttentionParams { kv_head_of: &kv_head_of, scale: 0.3, softcap: None, sinks: &[] };
            for window in [48, 7] {
                let row = |len: usize| AttentionRow {
                    blocks: &case.blocks,
                    len,
                    window_start: len.saturating_sub(window),
                };
                let rows: Vec<AttentionRow<'_>> = (23..=40).chain([48]).map(row).collect();
                let q: Vec<f32> = (0..rows.len() * heads * 32).map(|i| noise(i, 5) * 3.0).collect();
                let mut together = vec![f32::NAN; rows.len() * heads * 40];
                attention(&ThreadPool::new(1), &case.cache, 1, &q, &rows, &params, &mut together);
                for (t, row) in rows.iter().enumerate().take(rows.len() - 1) {
                    let (q, together) = (&q[t * heads * 32..][..heads * 32], &together[t * heads * 40..]);
                    let mut alone = vec![f32::NAN; heads * 40];
                    attention(&ThreadPool::new(1), &case.cache, 1, q, &[*row], &params, &mut alone);
                    assert!(alone.iter().all(|x| x.is_finite()));
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    let what = format!("{ty:?}, {heads} heads, window {window}, row {t}");
                    assert_eq!(bits(&together[..heads * 40]), bits(&alone), "{what}");
                }
            }
        }
    }
}

/// The same task, computed by the plain lanes.
fn plain(task: &Task<'_>) {
    let scratch = &mut Scratch::default();
    type Plain = portable::F32x8;
    let (cache, dim) = (task.cache, task.cache.value_dim());
    let (k, v) = (cache.keys, cache.values);
    match (&cache.store, cache.in_keys()) {
        (Store::F16 { keys, values }, false) => {
            let (keys, values) = (ByDimension::new(keys, k), ValueRows::new(values, v, dim));
            attend::<[Plain; 2], _, _, 3, 6, 1>(task, keys, values, scratch);
        }
        (Store::Q8_0 { keys, values }, false) => {
            let (keys, values) = (CodesByDimension::new(keys, k), CodeValues::new(values, v, dim));
            attend::<[Plain; 2], _, _, 3, 6, 1>(task, keys, values, scratch);
        }
        (Store::F16 { keys, .. }, true) => {
            let (keys, values) = (ByPosition::new(keys, k), ValueRows::new(keys, k, dim));
            attend::<[Plain; 2], _, _, 3, 3, 1>(task, keys, values, scratch);
        }
        (Store::Q8_0 { keys, .. }, true) => {
            let (keys, values) = (CodesByPosition::new(keys, k), CodeValues::new(keys, k, dim));
            attend::<[Plain; 2], _, _, 3, 3, 1>(task, keys, values, scratch);
        }
        (Store::F32 { .. } | Store::F8 { .. }, _) => unreachable!("not looked at"),
    }
}

#[test]
fn lanes_agree_bit_for_bit_and_rows_do_not_see_each_other() {
    for ty in [KvType::F16, KvType::Q8_0] {
        for values in [Own(40), InKey(40)] {
            let case = case(45, 1, 64, values, ty);
            let q: Vec<f32> = (0..3 * 64).map(|i| noise(i, 2)).collect();
            let row = AttentionRow { blocks: &case.blocks, len: 45, window_start: 0 };
            let other = AttentionRow { blocks: &case.blocks, len: 7, window_start: 0 };
            for (softcap, sinks) in [(None, &[][..]), (Some(5.0), &[0.5, -1.0, 2.0])] {
                let params = AttentionParams { kv_head_of: &[0; 3], scale: 0.125, softcap, sinks };
                let mut all = vec![0.0; 2 * 3 * 40];
                let both = [q.clone(), q.clone()].concat();
                attention(&ThreadPool::new(1), &case.cache, 1, &both, &[other, row], &params, &mut all);
                let mut expected = vec![0.0; 3 * 40];
                let task = Task {
                    cache: &case.cache,
                    layer: 1,
                    head: 0,
                    heads: 3,
                    first: 0,
                    count: 3,
                    first_row: 0,
                    rows: &[row],
                    scale: 0.125,
                    softcap,
                    sinks,
                    q: &q,
                    out: &SharedSlice::new(&mut expected),
                    next: None,
                };
                plain(&task);
                assert_eq!(expected, all[3 * 40..], "{ty:?} {values:?}");
            }
        }
    }
}

#[test]
fn heads_have_the_same_bits_in_any_company() {
    for values in [Own(16), InKey(16)] {
        for ty in [KvType::F16, KvType::Q8_0, KvType::F8] {
            in_any_company(&case(70, 1, 24, values, ty));
        }
    }
}

fn in_any_company(case: &Case) {
    let rows = [AttentionRow { blocks: &case.blocks, len: 70, window_start: 9 }];
    let q: Vec<f32> = (0..13 * 24).map(|i| noise(i, 3)).collect();
    let sinks: Vec<f32> = (0..13).map(|h| noise(h, 8)).collect();
    let pool = ThreadPool::new(1);
    let params = AttentionParams { kv_head_of: &[0; 13], scale: 0.4, softcap: Some(3.0), sinks: &sinks };
    let mut all = vec![0.0; 13 * 16];
    // Groups of eight, four and one.
    attention(&pool, &case.cache, 1, &q, &rows, &params, &mut all);
    for h in 0..13 {
        let alone = AttentionParams { kv_head_of: &[0], sinks: &sinks[h..=h], ..params };
        let mut out = [0.0; 16];
        attention(&pool, &case.cache, 1, &q[h * 24..][..24], &rows, &alone, &mut out);
        assert_eq!(
            out.map(f32::to_bits)[..],
            all[h * 16..][..16].iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        );
    }
}

#[test]
fn rows_have_the_same_bits_however_a_prompt_is_cut() {
    for size in [8, 16, 24] {
        for (values, ty) in
            [Own(40), Own(12), InKey(24)].into_iter().zip([KvType::F16, KvType::Q8_0, KvType::F32])
        {
            for kv_head_of in [&[0, 0, 0][..], &[0; 8], &[0], &[0, 0, 0, 0, 0, 0, 0]] {
                for window in [0, 5, 40] {
                    however_cut(size, values, ty, kv_head_of, window);
                }
            }
        }
    }
}

fn however_cut(size: usize, values: Values, ty: KvType, kv_head_of: &[u32], window: usize) {
    const POSITIONS: usize = 75;
    let (key_dim, heads, dim) = (24, kv_head_of.len(), values.dim());
    let count = POSITIONS.div_ceil(size);
    let sizes = KvSizes { layers: 1, blocks: count, block_size: size, kv_heads: 1, key_dim, values };
    let mut cache = KvCache::new(sizes, ty).expect("fits");
    let blocks: Vec<u32> = (0..count as u32).rev().collect();
    for p in 0..POSITIONS {
        let own = if let Own(dim) = values { dim } else { 0 };
        // What comes last is nobody's business who comes before: infinities would show.
        let x = |i, salt| if p == POSITIONS - 1 { f32::INFINITY } else { noise(i, p + salt) };
        let key: Vec<f32> = (0..key_dim).map(|i| x(i, 1)).collect();
        let value: Vec<f32> = (0..own).map(|i| x(i, 2)).collect();
        cache.write(0, blocks[p / size], p % size, &key, &value);
    }
    let q: Vec<f32> = (0..POSITIONS * heads * key_dim).map(|i| noise(i, 3)).collect();
    let rows: Vec<AttentionRow<'_>> = (1..POSITIONS)
        .map(|len| AttentionRow {
            blocks: &blocks,
            len,
            window_start: if window == 0 { 0 } else { len.saturating_sub(window) },
        })
        .collect();
    let params = AttentionParams { kv_head_of, scale: 0.4, softcap: None, sinks: &[] };
    let cut = |chunk: usize, threads: usize| -> Vec<u32> {
        let pool = ThreadPool::with_spin(threads, false);
        let (mut out, mut first) = (vec![f32::NAN; rows.len() * heads * dim], 0);
        for rows in rows.chunks(chunk) {
            let out = &mut out[first * heads * dim..][..rows.len() * heads * dim];
            attention(&pool, &cache, 0, &q[first * heads * key_dim..], rows, &params, out);
            first += rows.len();
        }
        assert!(out.iter().all(|x| x.is_finite()));
        out.iter().map(|x| x.to_bits()).collect()
    };
    let alone = cut(1, 1);
    for (chunk, threads) in [(74, 1), (74, 3), (33, 1), (7, 1)] {
        assert!(
            cut(chunk, threads) == alone,
            "blocks of {size} {values:?} {ty:?} {heads} window {window} {chunk}"
        );
    }
}
