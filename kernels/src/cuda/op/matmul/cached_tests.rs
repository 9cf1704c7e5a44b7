use super::*;
use crate::cuda::op::kv_cache::KvKind;
use crate::cuda::op::random::random_matrix;
use crate::cuda::op::rope::DeviceRope;
use crate::cuda::op::step_rows::Run;
use crate::cuda::testing::{Random, devices};
use crate::cuda::{Buffer, Device, F8Rows};
use crate::op::kv_cache::KvSizes;
use crate::op::rope::RopeStyle;

const LAYER: usize = 1;

#[derive(Debug, Clone)]
struct Case {
    kind: KvKind,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    pairs: usize,
    style: RopeStyle,
    bias: bool,
    norms: bool,
    block_size: usize,
    /// (Position of the first row, rows).
    runs: Vec<(usize, usize)>,
    /// Rows of a fixed form.
    fixed: Option<usize>,
}

impl Case {
    fn new(kind: KvKind, (heads, kv_heads): (usize, usize), (dim, pairs): (usize, usize)) -> Self {
        Self {
            kind,
            heads,
            kv_heads,
            dim,
            pairs,
            style: RopeStyle::Half,
            bias: false,
            norms: false,
            block_size: 16,
            runs: vec![(37, 1)],
            fixed: None,
        }
    }

    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    /// Rows of sequences whose blocks lie here and there.
    fn step(&self, device: &Device) -> (StepRows, usize) {
        let needed = |(at, rows): &(usize, usize)| (at + rows).div_ceil(self.block_size);
        let blocks: usize = self.runs.iter().map(needed).sum();
        let mut next = 0;
        let tables: Vec<Vec<u32>> = self
            .runs
            .iter()
            .map(|run| {
                let first = next;
                next += needed(run);
                (first..next).map(|block| (blocks - block) as u32).collect()
            })
            .collect();
        let runs: Vec<Run<'_>> = self
            .runs
            .iter()
            .zip(&tables)
            .map(|((position, rows), blocks)| Run { blocks, position: *position, rows: *rows })
            .collect();
        let mut step = match self.fixed {
            Some(rows) => StepRows::fixed(device, rows, blocks, 5000).expect("rows"),
            None => StepRows::new(device).expect("rows"),
        };
        step.set(&runs).expect("rows");
        (step, blocks + 2)
    }
}

fn poisoned(device: &Device, len: usize) -> Buffer<f32> {
    let mut out = device.alloc(len).expect("alloc");
    out.view_mut().fill(0xff).expect("fill");
    out
}

fn bits(out: &Buffer<f32>) -> Vec<u32> {
    out.download().expect("download").iter().map(|x| x.to_bits()).collect()
}

/// Queries, and all bytes of keys and of values, by one function and by two; whether it was one launch.
fn by_one_launch(device: &Device, case: &Case, k: usize) -> bool {
    let Case { kind, heads, kv_heads, dim, pairs, .. } = *case;
    let mut random = Random::new((dim * 100 + k) as u64);
    let (step, blocks) = case.step(device);
    let (rows, width) = (step.rows(), case.width());
    let inv_freq: Vec<f32> = random.floats(pairs).iter().map(|x| x.abs() * 0.4).collect();
    let rope = DeviceRope::new(device, &inv_freq, case.style, 1.25).expect("rope");
    let mut angles = DeviceAngles::new(device, &rope, rows).expect("angles");
    angles.set(&rope, &step).expect("angles");
    let w = random_matrix(device, WeightKind::F8, width, k, 4, 0.3).expect("matrix");
    let x = F8Rows::upload(device, k, &random.floats(rows * k)).expect("rows");
    let [bias, norm] = [width, dim].map(|len| device.upload(&random.floats(len)).expect("upload"));
    let with = Grouped {
        bias: case.bias.then(|| bias.view()),
        q_norm: case.norms.then(|| norm.view()),
        k_norm: case.norms.then(|| norm.view()),
        eps: 1e-3,
        heads,
    };
    let cache = || {
        let sizes = KvSizes {
            layers: 2,
            blocks,
            block_size: case.block_size,
            kv_heads,
            key_dim: dim,
            values: Values::Own(dim),
        };
        let mut kv = DeviceKv::new(device, sizes, kind).expect("cache");
        for content in kv.content() {
            content.view_mut().fill(0xff).expect("fill");
        }
        kv
    };
    let content = |kv: &mut DeviceKv| kv.content().map(|content| content.download().expect("download"));
    let x = || ActsView::F8(x.view());

    let (mut qkv, mut q, mut kv) =
        (poisoned(device, rows * width), poisoned(device, rows * heads * dim), cache());
    super::super::matmul(qkv.view_mut(), width, x(), &w, rows).expect("product");
    rope_and_write(q.view_mut(), &mut kv, LAYER, &step, qkv.view(), &with, &angles).expect("rotated");
    let expected = (bits(&q), content(&mut kv));
    let live: usize = case.runs.iter().map(|(_, rows)| rows).sum();
    let written = expected.1[0].chunks_exact(kv.key_stride * kind.size());
    // E4M3 and f16 have no such number that is written.
    let written = written.filter(|key| key.iter().any(|byte| *byte != 0xff)).count();
    assert_eq!(written, live * kv_heads, "{case:?}");

    let (mut qkv, mut q, mut kv) =
        (poisoned(device, rows * width), poisoned(device, rows * heads * dim), cache());
    let r = CachedRows { x: x(), w: &w, qkv: qkv.view_mut(), q: q.view_mut() };
    matmul_into_cache(r, &mut kv, LAYER, &step, &with, &angles).expect("both");
    assert!(bits(&q) == expected.0, "{case:?}: queries");
    assert!(content(&mut kv) == expected.1, "{case:?}: keys and values");
    bits(&qkv).iter().all(|bits| *bits == u32::MAX)
}

#[test]
fn queries_keys_and_values_are_rotated_and_cached_as_they_are_made() {
    for device in devices().iter().filter(|device| device.multiplies_f8()) {
        for kind in [KvKind::F16, KvKind::F8] {
            for (heads, sizes) in
                [((4, 2), (16, 8)), ((3, 1), (64, 32)), ((2, 1), (128, 64)), ((1, 1), (80, 40))]
            {
                let case = Case::new(kind, heads, sizes);
                assert!(by_one_launch(device, &case, 520), "{case:?}");
            }
            let case = Case::new(kind, (5, 2), (48, 24));
            // Pairs side by side; a part of a head, or nothing of it, is rotated; biases; more than a tile for each block.
            let side_by_side = Case { style: RopeStyle::Interleaved, bias: true, ..case.clone() };
            assert!(by_one_launch(device, &side_by_side, 16));
            for pairs in [0, 5, 23] {
                assert!(by_one_launch(device, &Case { pairs, bias: true, ..case.clone() }, 48));
                assert!(by_one_launch(device, &Case { pairs, ..side_by_side.clone() }, 48));
            }
            let wide = Case { heads: 100, kv_heads: 50, ..case.clone() };
            assert!(by_one_launch(device, &wide, 24));
            // Several rows of several sequences, in small blocks; rows that do not exist, some or all of them.
            let runs = vec![(14, 3), (0, 1), (3000, 1), (255, 1)];
            let several = Case { runs: runs.clone(), block_size: 3, ..case.clone() };
            assert!(by_one_launch(device, &several, 300));
            assert!(by_one_launch(device, &Case { fixed: Some(8), bias: true, ..several.clone() }, 300));
            assert!(by_one_launch(device, &Case { runs: vec![], fixed: Some(1), ..several.clone() }, 300));
            // Where no kernel does both: norms, many rows, lengths that are padded.
            assert!(!by_one_launch(device, &Case { norms: true, ..case.clone() }, 48));
            assert!(!by_one_launch(device, &Case { fixed: Some(9), ..several }, 48));
            assert!(!by_one_launch(device, &Case { dim: 20, pairs: 10, ..case.clone() }, 48));
        }
        assert!(!by_one_launch(device, &Case::new(KvKind::F32, (4, 2), (16, 8)), 48));
    }
}
