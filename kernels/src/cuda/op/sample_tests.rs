use super::*;
use crate::cuda::testing::{Random, devices};

/// Rows of logits with many equals in every other case, and what is not a number or not finite in every third.
fn logits(random: &mut Random, len: usize, case: usize) -> Vec<f32> {
    let special = [f32::NAN, f32::NEG_INFINITY, 0.0, -0.0];
    (0..len)
        .map(|_| match random.below(20) {
            n if n < 4 && case % 3 == 2 => special[n],
            _ if case.is_multiple_of(2) => random.below(50) as f32 - 40.0,
            _ => random.float() * 12.0,
        })
        .collect()
}

/// The order of the host's sampler.
fn sorted(row: &[f32], k: usize) -> Vec<u32> {
    let key = |place: u32| Some(row[place as usize]).filter(|x| !x.is_nan()).unwrap_or(f32::NEG_INFINITY);
    let mut places: Vec<u32> = (0..row.len() as u32).collect();
    places.sort_by(|a, b| key(*b).partial_cmp(&key(*a)).unwrap().then(a.cmp(b)));
    places.truncate(k);
    places
}

/// ln Σ e^(scale · x) in f64.
fn exact_sum(row: &[f32], scale: f32) -> f64 {
    let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !greatest.is_finite() {
        return f64::from(greatest);
    }
    let (greatest, scale) = (f64::from(greatest), f64::from(scale));
    greatest * scale + row.iter().map(|x| ((f64::from(*x) - greatest) * scale).exp()).sum::<f64>().ln()
}

/// Places, and logits.
fn found(view: View<'_, u32>) -> (Vec<u32>, Vec<f32>) {
    let mut words = vec![0; view.len()];
    view.download(&mut words).unwrap();
    let (places, bits) = words.split_at(words.len() / 2);
    (places.to_vec(), bits.iter().map(|bits| f32::from_bits(*bits)).collect())
}

fn check(device: &Device, case: usize, rows: usize, vocab: usize, gap: usize, k: usize) {
    let mut random = Random::new(case as u64);
    let stride = vocab + gap;
    // Between the rows is what would win.
    let mut all = vec![f32::INFINITY; (rows * stride).saturating_sub(gap)];
    for row in 0..rows {
        all[row * stride..][..vocab].copy_from_slice(&logits(&mut random, vocab, case));
    }
    let on = device.upload(&all).unwrap();
    let case = format!("case {case} on {device:?}: the best {k} of {rows} rows of {vocab}, {gap} between");
    let mut buffers = SampleBuffers::new(device, rows + 1, vocab, k).unwrap();
    argmax(&mut buffers, on.view(), rows, stride).unwrap();
    top(&mut buffers, on.view(), rows, stride, k).unwrap();
    log_sum_exp(&mut buffers, on.view(), rows, stride, None).unwrap();
    let sums = buffers.sums.download().unwrap();
    let scales: Vec<f32> = (0..rows).map(|_| random.float() + 1.2).collect();
    let scales_on = device.upload(&scales).unwrap();
    log_sum_exp(&mut buffers, on.view(), rows, stride, Some(scales_on.view())).unwrap();
    let scaled = buffers.sums.download().unwrap();
    let (tokens, values) = found(buffers.greatest(rows));
    let (places, best) = found(buffers.best(rows, k));
    for row in 0..rows {
        let logits = &all[row * stride..][..vocab];
        let token = crate::op::softmax::argmax(logits);
        assert_eq!(tokens[row] as usize, token, "the greatest of row {row}: {case}");
        assert_eq!(values[row].to_bits(), logits[token].to_bits(), "its logit, row {row}: {case}");
        let expected = sorted(logits, k);
        assert_eq!(places[row * k..][..k], expected, "the best of row {row}: {case}");
        for (value, place) in best[row * k..][..k].iter().zip(&expected) {
            assert_eq!(value.to_bits(), logits[*place as usize].to_bits(), "row {row}, {place}: {case}");
        }
        for (got, scale) in [(sums[row], 1.0), (scaled[row], scales[row])] {
            let exact = exact_sum(logits, scale);
            let error = (f64::from(got) - exact).abs();
            let same = f64::from(got) == exact || (got.is_nan() && exact.is_nan());
            assert!(same || error < 3e-6 * exact.abs().max(1.0), "row {row}: {got} for {exact}: {case}");
        }
    }
}

#[test]
fn the_best_and_the_sum_are_those_of_the_host() {
    let cases = [
        (1, 1, 0, 1),
        (2, 7, 0, 3),
        (3, 100, 1, 100),
        (1, 2048, 0, 256),
        (2, 2049, 3, 256),
        (2, 5001, 2, 40),
        (1, 40_000, 0, 256),
        (3, 9000, 4, 1),
        (4, 300, 0, 0),
        (0, 300, 0, 5),
        (1, 50_257, 0, 20),
    ];
    for device in devices() {
        for (case, (rows, vocab, gap, k)) in cases.into_iter().enumerate() {
            for turn in 0..3 {
                check(&device, case + turn * cases.len(), rows, vocab, gap, k);
            }
        }
    }
}

#[test]
fn rows_of_nothing_but_one_value() {
    for device in devices() {
        for (value, sum) in [
            (f32::NAN, f32::NEG_INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (f32::INFINITY, f32::INFINITY),
        ] {
            let on = device.upload(&vec![value; 3000]).unwrap();
            let mut buffers = SampleBuffers::new(&device, 1, 3000, 4).unwrap();
            argmax(&mut buffers, on.view(), 1, 3000).unwrap();
            top(&mut buffers, on.view(), 1, 3000, 4).unwrap();
            log_sum_exp(&mut buffers, on.view(), 1, 3000, None).unwrap();
            assert_eq!(found(buffers.greatest(1)).0, [0], "{value} on {device:?}");
            assert_eq!(found(buffers.best(1, 4)).0, [0, 1, 2, 3], "{value} on {device:?}");
            assert_eq!(buffers.sums.download().unwrap(), [sum], "{value} on {device:?}");
        }
    }
}
