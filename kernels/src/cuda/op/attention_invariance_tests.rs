//! A row has the same bits whichever kernel computes it, and whatever else is in the launch.

use std::collections::HashMap;

use super::*;

/// Sequences of which every position is cached, and has a query.
pub(super) struct Sequences {
    case: Case,
    filled: Filled,
    heads: HeadMap,
    /// Of each sequence: [position][head][element].
    queries: Rows,
    sinks: Buffer<f32>,
}

/// Rows of a sequence: which, the first one's position, how many.
pub(super) type Part = (usize, usize, usize);

/// A row's sequence and position, and its result.
pub(super) type Row = ((usize, usize), Vec<u32>);

impl Sequences {
    /// Sequences of so many positions; `case` says the rest.
    pub(super) fn new(device: &Device, case: &Case, lens: &[usize]) -> Self {
        let case = Case { runs: lens.iter().map(|len| (0, *len)).collect(), ..case.clone() };
        let mut random = Random::new(11);
        let filled = filled(device, &mut random, &case);
        let of = case.kv_head_of();
        let heads = HeadMap::new(device, &of).unwrap();
        // Large enough for weights to differ much, and for the greatest score to be found late now and then.
        let query =
            |len: &usize| random.floats(len * of.len() * case.key_dim).iter().map(|x| x * 4.0).collect();
        let queries = lens.iter().map(query).collect();
        let sinks = device.upload(&Random::new(12).floats(of.len())).unwrap();
        Self { case, filled, heads, queries, sinks }
    }

    /// Attention of rows in one step, with scratch for so many rows.
    pub(super) fn attend(
        &self,
        device: &Device,
        parts: &[Part],
        scratch: usize,
        fixed: Option<usize>,
    ) -> Vec<Row> {
        let (case, heads) = (&self.case, self.heads.heads());
        let (width, dim) = (heads * case.key_dim, case.values.dim());
        let context = case.runs.iter().map(|(_, len)| *len).max().unwrap();
        let mut step = match fixed {
            Some(rows) => StepRows::fixed(device, rows, 2000, context).unwrap(),
            None => StepRows::new(device).unwrap(),
        };
        let runs: Vec<Run<'_>> = parts
            .iter()
            .map(|(sequence, position, rows)| {
                let seen = (position + rows).div_ceil(case.block_size);
                Run { blocks: &self.filled.tables[*sequence][..seen], position: *position, rows: *rows }
            })
            .collect();
        step.set(&runs).unwrap();
        let mut q: Vec<f32> = Vec::new();
        let mut names = Vec::new();
        for (sequence, position, rows) in parts {
            q.extend(&self.queries[*sequence][position * width..(position + rows) * width]);
            names.extend((*position..position + rows).map(|position| (*sequence, position)));
        }
        q.resize(step.rows() * width, f32::NAN);
        let q = device.upload(&q).unwrap();
        let mut scratch = AttentionScratch::new(device, scratch, heads, dim, context).unwrap();
        let mut out = Acts::alloc(device, ActType::F32, step.rows() * heads * dim).unwrap();
        out.view_mut().fill(0xff).unwrap();
        let a = Attention {
            heads: &self.heads,
            scale: 1.0 / (case.key_dim as f32).sqrt(),
            softcap: case.softcap,
            window: case.window,
            sinks: case.sinks.then(|| self.sinks.view()),
        };
        attention(out.view_mut(), q.view(), &self.filled.kv, LAYER, &step, &a, &mut scratch).unwrap();
        let out = out.download().unwrap();
        let rows = out.chunks_exact(heads * dim).map(|row| row.iter().map(|x| x.to_bits()).collect());
        names.into_iter().zip(rows).collect()
    }
}

/// Two chunks of a prompt; then some of their rows in chunks of other sizes and at other places of a tile, among rows of another
/// sequence, and one by one: alone, in a batch, and in a recorded step's form.
pub(super) fn check_same(device: &Device, case: &Case) {
    let sequences = Sequences::new(device, case, &[800, 300]);
    let wanted = sequences.attend(device, &[(0, 240, 36), (0, 752, 32)], 80, None);
    let wanted: HashMap<(usize, usize), Vec<u32>> = wanted.into_iter().collect();
    let compare = |rows: Vec<Row>, what: &str| {
        for (name, bits) in rows {
            assert!(bits.iter().all(|x| f32::from_bits(*x).is_finite()), "{case:?}: {what}, row {name:?}");
            assert!(wanted.get(&name).is_none_or(|wanted| *wanted == bits), "{case:?}: {what}, row {name:?}");
        }
    };
    let chunks = [(0, 243, 21), (1, 100, 19), (0, 759, 17)];
    compare(sequences.attend(device, &chunks, 64, None), "chunks");
    compare(sequences.attend(device, &[(0, 760, 16)], 0, None), "a chunk");
    let ones = [240, 255, 256, 767, 768, 783];
    for position in [260, 768] {
        compare(sequences.attend(device, &[(0, position, 1)], 1, None), "alone");
    }
    let mut batch: Vec<Part> = ones.iter().map(|position| (0, *position, 1)).collect();
    batch.extend([(1, 7, 1), (1, 299, 1), (0, 259, 17)]);
    compare(sequences.attend(device, &batch, 64, None), "a batch");
    batch.truncate(8);
    compare(sequences.attend(device, &batch, 2, Some(9)), "a recorded batch");
    // With four spans each, more blocks than multiprocessors: they have fewer warps.
    let mut many: Vec<Part> = ones.iter().map(|position| (0, *position, 1)).collect();
    many.extend((0..28).map(|position| (1, position, 1)));
    compare(sequences.attend(device, &many, many.len(), None), "a large batch");
}

#[test]
fn rows_are_the_same_on_tensor_cores() {
    for device in devices() {
        for (dim, groups) in [
            (64, vec![1, 2]),
            (80, vec![3]),
            (96, vec![9]),
            (128, vec![4, 1]),
            (128, vec![17]),
            (256, vec![1]),
            (256, vec![5]),
        ] {
            check_same(&device, &Case::new(KvKind::F16, &groups, dim, &[]));
        }
    }
}

#[test]
fn rows_are_the_same_with_any_shape() {
    for device in devices() {
        for (kind, dim, groups) in [
            (KvKind::F32, 12, vec![4]),
            (KvKind::F32, 12, vec![1]),
            (KvKind::F32, 64, vec![1]),
            (KvKind::F32, 128, vec![3]),
            (KvKind::F32, 200, vec![2]),
            (KvKind::F32, 300, vec![1]),
            (KvKind::F16, 20, vec![1]),
            (KvKind::F16, 40, vec![2]),
            (KvKind::F16, 40, vec![8]),
            (KvKind::F16, 72, vec![1]),
            (KvKind::F16, 120, vec![2, 3]),
            (KvKind::F16, 200, vec![1]),
            (KvKind::F16, 400, vec![1]),
        ] {
            check_same(&device, &Case::new(kind, &groups, dim, &[]));
        }
    }
}

#[test]
fn rows_are_the_same_with_values_within_keys() {
    for device in devices() {
        for (kind, dim, values, heads) in
            [(KvKind::F16, 576, 512, 3), (KvKind::F16, 576, 512, 20), (KvKind::F32, 24, 16, 3)]
        {
            let values = Values::InKey(values);
            check_same(&device, &Case { values, ..Case::new(kind, &[heads], dim, &[]) });
        }
    }
}

#[test]
fn rows_are_the_same_with_windows_caps_and_sinks() {
    for device in devices() {
        for (kind, dim, values) in [
            (KvKind::F16, 64, Values::Own(64)),
            (KvKind::F16, 256, Values::Own(256)),
            (KvKind::F16, 24, Values::Own(40)),
            (KvKind::F32, 40, Values::Own(40)),
            (KvKind::F16, 576, Values::InKey(512)),
        ] {
            for (window, softcap, sinks) in [
                (Some(3), None, true),
                (Some(256), Some(2.0), false),
                (Some(270), None, true),
                (None, Some(3.0), true),
            ] {
                let case = Case { values, window, softcap, sinks, ..Case::new(kind, &[2], dim, &[]) };
                check_same(&device, &Case { block_size: 7, ..case });
            }
        }
    }
}

#[test]
fn rows_are_the_same_where_spans_become_longer() {
    let change = span_change(0);
    for device in devices() {
        for (kind, dim) in [(KvKind::F16, 64), (KvKind::F16, 16), (KvKind::F32, 16)] {
            for window in [None, Some(change + 2)] {
                let case = Case { window, ..Case::new(kind, &[2], dim, &[]) };
                let sequences = Sequences::new(&device, &case, &[change + 20]);
                let whole = sequences.attend(&device, &[(0, change - 17, 34)], 0, None);
                let spread = sequences.attend(&device, &[(0, change - 17, 34)], 64, None);
                assert!(whole == spread, "{case:?}: spans of blocks of their own");
                let ones = [change - 2, change - 1, change, change + 3];
                let ones = ones.map(|position| (0, position, 1));
                for (name, bits) in sequences.attend(&device, &ones, 4, None) {
                    assert!(whole[name.1 + 17 - change].1 == bits, "{case:?}: row {name:?}");
                }
            }
        }
    }
}
