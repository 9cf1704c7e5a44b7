use super::*;
use crate::cuda::op::moe::{Routing, product_route_and_sort};
use crate::cuda::op::random::random_matrix;
use crate::cuda::op::residual::{Normed, add_and_norm};
use crate::cuda::testing::{Random, devices};
use crate::cuda::{Acts, Buffer, Device, F8Rows};

const FILL: u8 = 0x77;

struct Case {
    kind: WeightKind,
    width: usize,
    experts: usize,
    top_k: usize,
    routing: Routing,
    /// Of each expert, the number of its matrices here.
    local: Vec<u32>,
    /// Of routers: biases and corrections; of norms: what is added, and its norm.
    more: bool,
    codes: bool,
    live: u32,
}

/// All that is written, as bits.
#[derive(PartialEq, Debug)]
struct Written {
    x: Vec<u32>,
    plain: Vec<u32>,
    codes: (Vec<u8>, Vec<u32>),
    weights: Vec<u32>,
    numbers: [Vec<u32>; 5],
    counts: Vec<u64>,
    sorted: usize,
}

fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|x| x.to_bits()).collect()
}

/// By one launch, or by two.
fn written(device: &Device, case: &Case, at_once: bool) -> Written {
    let Case { width, experts, .. } = *case;
    let mut random = Random::new(3);
    let floats = |random: &mut Random, len: usize| device.upload(&random.floats(len)).unwrap();
    let mut x = floats(&mut random, width);
    let (added, post) = (floats(&mut random, width), floats(&mut random, width));
    let (weight, bias) = (floats(&mut random, width), floats(&mut random, experts));
    let w = random_matrix(device, case.kind, experts, width, 9, 0.5).unwrap();
    let local = device.upload(&case.local).unwrap();
    let held = case.local.iter().filter(|local| **local != u32::MAX).count();
    let mut buffers = MoeBuffers::new(device, 3, case.top_k, experts, held).unwrap();
    let mut counts: Buffer<u64> = device.upload(&vec![5; experts]).unwrap();
    buffers.live.view_mut().upload(&[case.live]).unwrap();
    buffers.weights.view_mut().fill(FILL).unwrap();
    let groups = &mut buffers.groups;
    for words in [
        &mut buffers.ids,
        &mut buffers.positions,
        &mut groups.offsets,
        &mut groups.group_of_row,
        &mut groups.token_of_row,
    ] {
        words.view_mut().fill(FILL).unwrap();
    }
    let mut plain = Acts::alloc(device, ActType::Bf16, width).unwrap();
    let mut codes = F8Rows::alloc(device, 1, width).unwrap();
    codes.view_mut().fill(FILL).unwrap();
    let norm = Norm {
        out: Normed { plain: Some(plain.view_mut()), codes: case.codes.then(|| codes.view_mut()) },
        x: x.view_mut(),
        added: Some(added.view()),
        post_norm: case.more.then(|| post.view()),
        weight: weight.view(),
        rows: 1,
        width,
        eps: 1e-5,
    };
    let more = case.more.then(|| bias.view());
    let router = Router { routing: case.routing, bias: more, correction: more };
    let placement = Placement { local: local.view(), counts: case.more.then(|| counts.view_mut()) };
    if at_once {
        assert!(norm_route_and_sort(&mut buffers, &norm, &w, &router, placement).unwrap(), "at once");
    } else {
        let Norm { out, x, added, post_norm, weight, rows, eps, .. } = norm;
        add_and_norm(out, x, added, post_norm, weight, rows, width, eps).unwrap();
        let mut logits = device.alloc(experts).unwrap();
        product_route_and_sort(&mut buffers, logits.view_mut(), plain.view(), &w, 1, &router, placement)
            .unwrap();
    }
    let groups = &buffers.groups;
    let numbers =
        [&buffers.ids, &buffers.positions, &groups.offsets, &groups.group_of_row, &groups.token_of_row];
    let (bytes, scales) = codes.download_codes().unwrap();
    Written {
        x: bits(&x.download().unwrap()),
        plain: bits(&plain.download().unwrap()),
        codes: (bytes, bits(&scales)),
        weights: bits(&buffers.weights.download().unwrap()),
        numbers: numbers.map(|words| words.download().unwrap()),
        counts: counts.download().unwrap(),
        sorted: groups.max_rows,
    }
}

const SOFTMAX: Routing = Routing::Softmax { renormalize: true };
const NONE: u32 = u32::MAX;

#[test]
fn a_row_is_normed_and_routed_at_once() {
    let sigmoid = Routing::GroupedSigmoid { groups: 4, top_groups: 2, renormalize: true, scale: 2.5 };
    let case = |kind, width, experts: usize, top_k| Case {
        kind,
        width,
        experts,
        top_k,
        routing: SOFTMAX,
        local: (0..experts as u32).collect(),
        more: false,
        codes: true,
        live: NONE,
    };
    let bf16 = WeightKind::Bf16;
    let cases = [
        case(bf16, 4096, 8, 2),
        case(bf16, 64, 8, 2),
        // Parts of other lengths, and a router of one expert.
        Case { more: true, codes: false, ..case(bf16, 1000, 6, 3) },
        Case { local: vec![0], ..case(bf16, 40, 1, 1) },
        Case { routing: Routing::Softmax { renormalize: false }, ..case(WeightKind::F32, 2048, 8, 4) },
        Case { more: true, ..case(WeightKind::F32, 64, 32, 32) },
        Case { routing: sigmoid, more: true, ..case(bf16, 1024, 32, 6) },
        // Some experts are elsewhere, and none is where its number says; and a row that does not exist.
        Case { local: vec![2, NONE, 1, NONE, 0, NONE, 3, 4], more: true, ..case(bf16, 256, 8, 5) },
        Case { live: 0, more: true, ..case(bf16, 256, 8, 2) },
    ];
    for device in devices() {
        for case in &cases {
            let what = format!("{:?}, {} × {}, {}", case.kind, case.experts, case.width, case.top_k);
            let found = written(&device, case, true);
            assert_eq!(found, written(&device, case, false), "{what}");
            assert!(case.live == 0 || found.numbers[0].iter().take(case.top_k).all(|id| *id < 32), "{what}");
        }
    }
}

#[test]
fn what_one_block_cannot_do_is_left_to_others() {
    for device in devices() {
        let can = |rows: usize, width: usize, experts: usize, kind, ty| {
            let mut x = device.zeros(rows * width).unwrap();
            let weight = device.zeros(width).unwrap();
            let mut plain = Acts::alloc(&device, ty, rows * width).unwrap();
            let out = Normed { plain: Some(plain.view_mut()), codes: None };
            let (x, weight) = (x.view_mut(), weight.view());
            let norm = Norm { out, x, added: None, post_norm: None, weight, rows, width, eps: 1e-5 };
            kernel(&norm, &random_matrix(&device, kind, experts, width, 1, 1.0).unwrap()).is_some()
        };
        let (bf16, f32) = (WeightKind::Bf16, WeightKind::F32);
        assert!(can(1, 4096, 8, bf16, ActType::Bf16));
        assert!(!can(2, 4096, 8, bf16, ActType::Bf16), "rows");
        assert!(!can(1, 4104, 8, bf16, ActType::Bf16), "width");
        assert!(!can(1, 4096, 16, bf16, ActType::Bf16), "parts of experts");
        assert!(!can(1, 64, 33, bf16, ActType::Bf16), "experts");
        assert!(!can(1, 4096, 8, f32, ActType::Bf16), "a router in f32");
        assert!(!can(1, 64, 8, f32, ActType::F32), "rows in f32");
        assert!(!can(1, 64, 8, WeightKind::F16, ActType::Bf16), "a router in f16");
    }
}
