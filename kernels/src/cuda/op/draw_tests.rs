use super::*;
use crate::cuda::op::sample::argmax;
use crate::cuda::testing::{Random, devices};
use crate::op::draw::{Rule, enough, passed, weigh};

/// Tokens that weigh something, best first, and what they weigh.
fn best(row: &[f32], draw: &Draw) -> Vec<(usize, u64)> {
    let greatest = row[crate::op::softmax::argmax(row)];
    if greatest.is_nan() || greatest == f32::NEG_INFINITY {
        return Vec::new();
    }
    let mut weights = Vec::new();
    weigh(row, greatest, draw.scale, draw.least, &mut weights);
    let mut best: Vec<_> = weights.into_iter().enumerate().filter(|(_, weight)| *weight > 0).collect();
    best.sort_by(|(a, _), (b, _)| row[*b].partial_cmp(&row[*a]).unwrap().then(a.cmp(b)));
    best
}

fn sum(tokens: &[(usize, u64)]) -> u64 {
    tokens.iter().map(|(_, weight)| weight).sum()
}

/// How many of these, in their order, weigh at least so much.
fn reaching(tokens: &[(usize, u64)], least: u64) -> usize {
    let mut sum = 0;
    let reached = tokens.iter().position(|(_, weight)| {
        sum += weight;
        sum >= least
    });
    reached.unwrap() + 1
}

/// The contract, word by word.
fn drawn(mut best: Vec<(usize, u64)>, draw: &Draw) -> usize {
    if best.is_empty() {
        return 0;
    }
    best.truncate(reaching(&best, enough(sum(&best), draw.share)));
    best.sort_unstable();
    best[reaching(&best, passed(sum(&best), draw.uniform) + 1) - 1].0
}

/// A share of `total` that is about `part`: that, or a little less.
fn edge(random: &mut Random, part: u64, total: u64) -> u64 {
    let share = (u128::from(part) * u128::from(WHOLE)).div_ceil(u128::from(total)) as u64;
    share.saturating_sub(random.below(2) as u64).min(WHOLE - 1)
}

/// The draw, but so that it goes just so far as some token, or just not so far.
fn at_edges(random: &mut Random, mut best: Vec<(usize, u64)>, cuts: bool, draw: &mut Draw) {
    if best.is_empty() {
        return;
    }
    if cuts {
        let few = best.len().min(50);
        let most = if random.below(2) == 0 { few } else { best.len() };
        let some = random.below(most);
        draw.share = edge(random, sum(&best[..some]), sum(&best));
        best.truncate(reaching(&best, enough(sum(&best), draw.share)));
    }
    best.sort_unstable();
    let some = random.below(best.len());
    draw.uniform = edge(random, sum(&best[..some]), sum(&best));
}

/// Rows as models give them, and such with many equals, with what is not a number or not finite, flat, and steep.
fn logits(random: &mut Random, len: usize, kind: usize) -> Vec<f32> {
    let special = [f32::NAN, f32::NEG_INFINITY, 0.0, -0.0];
    let infinite = kind == 4 && random.below(2) == 0;
    let mut row: Vec<f32> = (0..len)
        .map(|_| match (kind, random.below(20)) {
            (1, n) => n as f32 - 14.0,
            (2, n) if n < 4 => special[n],
            (2, n) => n as f32 * 0.25 - 4.75,
            (3, _) => random.float() * 1e-3,
            (4, _) => random.float().powi(9) * 90.0,
            _ => random.float() * 6.0 + random.float() * 6.0,
        })
        .collect();
    if infinite {
        row[random.below(len)] = f32::INFINITY;
        row[random.below(len)] = f32::INFINITY;
    }
    row
}

fn rule(random: &mut Random, cuts: bool) -> Rule {
    let temperature = [1.0, 0.7, 1.5, 0.01, 5.0, 0.3][random.below(6)];
    let top_p = [0.9, 0.95, 0.5, 0.999, 1.0 - f32::EPSILON / 2.0, 1e-9, 0.0, 1.0, 0.3][random.below(9)];
    let min_p = [0.0, 0.0, 0.05, 1.0, 1e-3][random.below(5)];
    Rule::new(temperature, if cuts { top_p } else { 1.0 }, min_p, random.bits())
}

/// Draws several times from each of these rows, between which lies what would win; returns how often it was not the greatest.
fn check(device: &Device, case: usize, rows: usize, vocab: usize, gap: usize) -> usize {
    let (mut random, mut others) = (Random::new(case as u64), 0);
    let stride = vocab + gap;
    let mut all = vec![f32::INFINITY; rows * stride - gap];
    for row in 0..rows {
        all[row * stride..][..vocab].copy_from_slice(&logits(&mut random, vocab, (case + row) % 5));
    }
    let on = device.upload(&all).unwrap();
    let mut greatest = SampleBuffers::new(device, rows, vocab, 0).unwrap();
    let mut buffers = DrawBuffers::new(device, rows + 1, vocab).unwrap();
    argmax(&mut greatest, on.view(), rows, stride).unwrap();
    // Many chunks take long.
    for turn in 0..if vocab > 100_000 { 2 } else { 7 } {
        let cuts = turn > 0;
        let mut one = |row: usize| {
            let mut draw = rule(&mut random, cuts).at(turn);
            match turn % 3 {
                0 => at_edges(&mut random, best(&all[row * stride..][..vocab], &draw), cuts, &mut draw),
                // Of long rows, whose logits are of few values, in the middle of many that are as good.
                1 if vocab > 100_000 => {
                    draw = Draw { share: WHOLE / 2, uniform: WHOLE - 1, ..Rule::new(5.0, 1.0, 0.0, 0).at(0) };
                }
                1 => draw.uniform = WHOLE - 1,
                _ => (),
            }
            ((row + turn) % 7 != 6 || rows == 1).then_some(draw)
        };
        let draws: Vec<Option<Draw>> = (0..rows).map(&mut one).collect();
        let before = buffers.tokens.download().unwrap();
        buffers.set(draws.iter().copied()).unwrap();
        draw(&mut buffers, &greatest, on.view(), rows, stride, cuts).unwrap();
        let mut tokens = vec![0; rows];
        buffers.tokens(rows).download(&mut tokens).unwrap();
        for (row, draw) in draws.iter().enumerate() {
            let logits = &all[row * stride..][..vocab];
            let expected = draw.as_ref().map_or(before[row], |draw| drawn(best(logits, draw), draw) as u32);
            let what = format!("row {row} of {rows}, {vocab} logits, case {case} on {device:?}: {draw:?}");
            assert_eq!(tokens[row], expected, "{what}");
            others += usize::from(draw.is_some() && expected as usize != crate::op::softmax::argmax(logits));
        }
    }
    others
}

#[test]
fn tokens_are_those_that_the_host_draws() {
    for device in devices() {
        let mut others = 0;
        for (case, (rows, vocab, gap)) in [
            (1, 1, 0),
            (7, 5, 2),
            (16, 300, 0),
            (5, 2048, 0),
            (5, 2049, 3),
            (10, 5001, 2),
            (5, 40_000, 0),
            (1, 530_000, 1),
        ]
        .into_iter()
        .enumerate()
        {
            others += check(&device, case, rows, vocab, gap);
        }
        assert!(others > 100, "{others} are not just the greatest");
    }
}

#[test]
fn where_nothing_is_possible_it_is_the_first() {
    for device in devices() {
        for value in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
            let on = device.upload(&vec![value; 3000]).unwrap();
            let mut greatest = SampleBuffers::new(&device, 1, 3000, 0).unwrap();
            let mut buffers = DrawBuffers::new(&device, 1, 3000).unwrap();
            argmax(&mut greatest, on.view(), 1, 3000).unwrap();
            for cuts in [false, true] {
                let draw = Rule::new(1.0, if cuts { 0.5 } else { 1.0 }, 0.0, 3).at(9);
                buffers.set(std::iter::once(Some(draw))).unwrap();
                super::draw(&mut buffers, &greatest, on.view(), 1, 3000, cuts).unwrap();
                let token = buffers.tokens.download().unwrap()[0];
                let expected = drawn(best(&[value; 3000], &draw), &draw);
                assert_eq!(token as usize, expected, "{value} on {device:?}");
                assert_eq!(token > 0, value == f32::INFINITY, "one of many that are as good");
            }
        }
    }
}
