use foggara_kernels::cuda::op::draw::{DrawBuffers, draw};
use foggara_kernels::cuda::op::sample::{SampleBuffers, argmax as argmax_on};
use foggara_kernels::cuda::testing::{Random, devices};
use foggara_kernels::op::draw::Rule;

use super::*;

/// A draw in which this much of the whole, in parts of 2^53, is passed.
fn at(temperature: f32, top_p: f32, min_p: f32, uniform: u64) -> Draw {
    Draw { uniform, ..Rule::new(temperature, top_p, min_p, 0).at(0) }
}

#[test]
fn the_token_is_where_the_sum_passes_what_was_drawn() {
    // Of 8 parts these weigh 4, 2, nothing, 1 and 1.
    let halves = |n: f32| -n * std::f32::consts::LN_2;
    let row = [halves(0.0), halves(1.0), f32::NEG_INFINITY, halves(2.0), halves(2.0)];
    let eighth = WHOLE / 8;
    for (top_p, min_p, top_k, uniform, token) in [
        (1.0, 0.0, 0, 0, 0),
        (1.0, 0.0, 0, 4 * eighth - eighth / 100, 0),
        (1.0, 0.0, 0, 4 * eighth + eighth / 100, 1),
        (1.0, 0.0, 0, 6 * eighth + eighth / 100, 3),
        (1.0, 0.0, 0, WHOLE - 1, 4),
        (0.8, 0.0, 0, WHOLE - 1, 3),
        (0.7, 0.0, 0, WHOLE - 1, 1),
        (0.49, 0.0, 0, WHOLE - 1, 0),
        (0.0, 0.0, 0, WHOLE - 1, 0),
        (1.0, 0.3, 0, WHOLE - 1, 1),
        (1.0, 1.0, 0, WHOLE - 1, 0),
        (1.0, 0.0, 3, WHOLE - 1, 3),
        (0.5, 0.0, 3, WHOLE - 1, 0),
        (0.6, 0.0, 3, WHOLE - 1, 1),
    ] {
        let draw = at(1.0, top_p, min_p, uniform);
        let got = draw_one(&row, 0, &draw, top_k, &mut Scratch::default());
        assert_eq!(got, token, "top-p {top_p}, min-p {min_p}, top-k {top_k}, {uniform}");
    }
}

#[test]
fn where_nothing_is_possible_it_is_the_first() {
    let draw = at(1.0, 0.9, 0.0, WHOLE - 1);
    for row in [&[f32::NAN; 3][..], &[f32::NEG_INFINITY; 3], &[f32::NEG_INFINITY, f32::NAN], &[]] {
        assert_eq!(draw_any(row, &draw, &mut Scratch::default()), 0, "{row:?}");
    }
    let infinite = [1.0, f32::INFINITY, f32::NAN, f32::INFINITY];
    assert_eq!(draw_any(&infinite, &at(1.0, 1.0, 0.0, WHOLE - 1), &mut Scratch::default()), 3);
}

#[test]
fn devices_draw_what_the_host_draws() {
    let (vocab, rows) = (3001, 24);
    for device in devices() {
        let (mut random, mut scratch, mut others) = (Random::new(11), Scratch::default(), 0);
        let mut logits = |kind: usize| -> Vec<f32> {
            let mut each = |_| match (kind % 4, random.below(30)) {
                (0, n) => n as f32 * 0.5 - 14.0,
                (1, 0) => f32::NAN,
                (1, n) if n < 9 => f32::NEG_INFINITY,
                (2, _) => random.float().powi(7) * 40.0,
                _ => random.float() * 7.0 + random.float() * 7.0,
            };
            (0..vocab).map(&mut each).collect()
        };
        let row = |kind: usize| logits(kind);
        let all: Vec<f32> = (0..rows).flat_map(row).collect();
        let on = device.upload(&all).expect("there is memory");
        let mut greatest = SampleBuffers::new(&device, rows, vocab, 0).expect("there is memory");
        let mut buffers = DrawBuffers::new(&device, rows, vocab).expect("there is memory");
        argmax_on(&mut greatest, on.view(), rows, vocab).expect("it works");
        for turn in 0..6 {
            let rule = |row: usize| {
                let n = row * 6 + turn;
                let top_p = if turn == 0 { 1.0 } else { [0.9, 0.99, 0.3, 1.0, 0.999][n % 5] };
                Rule::new([1.0, 0.6, 2.0, 0.02][n % 4], top_p, [0.0, 0.02, 0.0][n % 3], n as u64)
            };
            let draws: Vec<Draw> = (0..rows).map(|row| rule(row).at(turn + row)).collect();
            buffers.set(draws.iter().copied().map(Some)).expect("it works");
            draw(&mut buffers, &greatest, on.view(), rows, vocab, turn > 0).expect("it works");
            let mut tokens = vec![0; rows];
            buffers.tokens(rows).download(&mut tokens).expect("it works");
            for (row, (draw, token)) in draws.iter().zip(tokens).enumerate() {
                let logits = &all[row * vocab..][..vocab];
                assert_eq!(token as usize, draw_any(logits, draw, &mut scratch), "row {row}: {draw:?}");
                others += usize::from(token as usize != argmax(logits));
            }
        }
        assert!(others > 50, "{others} are not just the greatest");
    }
}
