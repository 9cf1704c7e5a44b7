use super::*;
use crate::cuda::testing::{Random, assert_close, devices};
use crate::cuda::{Acts, Device};

const TYPES: [ActType; 2] = [ActType::F32, ActType::Bf16];

fn exact(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Of `ty`, NaN.
fn poisoned(device: &Device, ty: ActType, len: usize) -> Acts {
    let mut acts = Acts::alloc(device, ty, len).unwrap();
    acts.view_mut().fill(0xff).unwrap();
    acts
}

#[test]
fn embeds_tokens_of_every_kind() {
    for device in devices() {
        let mut random = Random::new(2);
        for kind in WeightKind::WITHOUT_BLOCKS {
            for width in [1, 7, 64, 577, 4100] {
                let (table_rows, first, scale) = (1 + random.below(20), random.below(9) as u32, 1.5);
                // Small integers and their halves: every kind holds them exactly, F8 up to the rounding of its scale.
                let values: Vec<f32> =
                    (0..table_rows * width).map(|_| random.below(15) as f32 * 0.5 - 3.5).collect();
                let table = DeviceMatrix::from_f32(&device, kind, table_rows, width, &values).unwrap();
                let tokens: Vec<u32> =
                    (0..11).map(|_| random.below(table_rows + first as usize + 2) as u32).collect();
                let expected = tokens.iter().flat_map(|&token| {
                    let row =
                        token.checked_sub(first).map(|row| row as usize).filter(|&row| row < table_rows);
                    let row = row.map_or(vec![0.0; width], |row| exact(&values[row * width..][..width]));
                    row.into_iter().map(|value| value * f64::from(scale))
                });
                let expected: Vec<f64> = expected.collect();
                let on_device = device.upload(&tokens).unwrap();
                let mut out = device.alloc(tokens.len() * width).unwrap();
                out.view_mut().fill(0xff).unwrap();
                embed(out.view_mut(), on_device.view(), &table, first, scale).unwrap();
                let tolerance = if kind == WeightKind::F8 { 0.4 } else { 0.0 };
                let what = format!("{kind:?}, {table_rows} × {width} from {first}");
                assert_close(&out.download().unwrap(), &expected, tolerance, &what);
            }
        }
    }
}

#[test]
fn rows_of_f8_are_scaled() {
    for device in devices() {
        let mut table = DeviceMatrix::empty(&device, WeightKind::F8, 3, 5).unwrap();
        let codes: Vec<u8> = (0..15).map(|i| i * 8 + 3).collect();
        table.put_rows(0, &codes).unwrap();
        table.put_scales(0, &[1.0, -0.5, 3.0]).unwrap();
        let tokens = device.upload(&[2u32, 0, 1]).unwrap();
        let mut out = device.alloc(15).unwrap();
        embed(out.view_mut(), tokens.view(), &table, 0, 2.0).unwrap();
        let expected: Vec<f64> = [(2, 3.0), (0, 1.0), (1, -0.5)]
            .into_iter()
            .flat_map(|(row, scale)| {
                codes[row * 5..][..5]
                    .iter()
                    .map(move |&code| f64::from(crate::cuda::from_f8(code) * scale * 2.0))
            })
            .collect();
        assert_close(&out.download().unwrap(), &expected, 0.0, "F8 with scales");
    }
}

fn activated(activation: GatedActivation, g: f64, u: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        GatedActivation::Silu => g * sigmoid(g) * u,
        GatedActivation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044_715 * g.powi(3));
            0.5 * g * (1.0 + inner.tanh()) * u
        }
        GatedActivation::ClampedSwiglu { alpha, limit } => {
            let limit = f64::from(limit);
            let (g, u) = (g.min(limit), u.clamp(-limit, limit));
            g * sigmoid(f64::from(alpha) * g) * (u + 1.0)
        }
    }
}

const ACTIVATIONS: [GatedActivation; 3] = [
    GatedActivation::Silu,
    GatedActivation::GeluTanh,
    GatedActivation::ClampedSwiglu { alpha: 1.702, limit: 7.0 },
];

/// Expects every number to be off by a part of itself, or by next to nothing.
fn assert_near(found: &[f32], expected: &[f64], ty: ActType, what: &str) {
    let tolerance = match ty {
        ActType::F32 => 2e-6,
        _ => 1.0 / 256.0 + 1e-5,
    };
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(*found) - expected).abs();
        assert!(off <= tolerance * expected.abs() + 1e-5, "{what}: at {i} {found} in place of {expected}");
    }
}

#[test]
fn activations_agree_with_double_precision() {
    for device in devices() {
        let mut random = Random::new(3);
        for (round, width) in [1, 2, 33, 256, 1025, 3000].into_iter().enumerate() {
            for (activation, ty, with_bias) in
                ACTIVATIONS.iter().flat_map(|&a| TYPES.map(|ty| (a, ty, round % 2 == 0)))
            {
                let rows = 1 + random.below(4);
                let what = format!("{activation:?} {ty:?} {rows} × {width} bias {with_bias}");
                let gate_up: Vec<f32> = random.floats(rows * 2 * width).iter().map(|x| x * 20.0).collect();
                let bias = random.floats(2 * width);
                let expected: Vec<f64> = (0..rows * width)
                    .map(|at| {
                        let (row, i) = (at / width, at % width);
                        let of = |i: usize| {
                            // The sum is rounded once, as on the device.
                            let bias = if with_bias { bias[i] } else { 0.0 };
                            f64::from(gate_up[row * 2 * width + i] + bias)
                        };
                        activated(activation, of(i), of(width + i))
                    })
                    .collect();
                let (gate_up, bias) = (device.upload(&gate_up).unwrap(), device.upload(&bias).unwrap());
                let mut out = poisoned(&device, ty, rows * width);
                let bias = with_bias.then(|| bias.view());
                gated(out.view_mut(), gate_up.view(), bias, None, rows, width, activation).unwrap();
                assert_near(&out.download().unwrap(), &expected, ty, &what);
            }
        }
    }
}

#[test]
fn groups_have_biases_of_their_own_and_an_end() {
    for device in devices() {
        let mut random = Random::new(4);
        let (rows, width, offsets) = (9, 37, [0u32, 3, 3, 7]);
        let group_of_row: Vec<u32> = vec![0, 0, 0, 2, 2, 2, 2, u32::MAX, u32::MAX];
        let (gate_up, bias) = (random.floats(rows * 2 * width), random.floats(3 * 2 * width));
        let groups = Groups {
            count: 3,
            offsets: device.upload(&offsets).unwrap(),
            max_rows: rows,
            most_of_one: rows,
            group_of_row: device.upload(&group_of_row).unwrap(),
            token_of_row: device.zeros(rows).unwrap(),
        };
        let (on_device, biases) = (device.upload(&gate_up).unwrap(), device.upload(&bias).unwrap());
        for ty in TYPES {
            let mut out = poisoned(&device, ty, rows * width);
            let activation = GatedActivation::Silu;
            let bias_view = Some(biases.view());
            gated(out.view_mut(), on_device.view(), bias_view, Some(&groups), rows, width, activation)
                .unwrap();
            let found = out.download().unwrap();
            let expected: Vec<f64> = (0..7 * width)
                .map(|at| {
                    let (row, i) = (at / width, at % width);
                    let bias = &bias[group_of_row[row] as usize * 2 * width..];
                    let of = |i: usize| f64::from(gate_up[row * 2 * width + i] + bias[i]);
                    activated(activation, of(i), of(width + i))
                })
                .collect();
            assert_near(&found[..7 * width], &expected, ty, "groups");
            assert!(found[7 * width..].iter().all(|x| x.is_nan()), "rows behind the end: {ty:?}");
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    for device in devices() {
        for activation in ACTIVATIONS {
            let gate_up = device.upload(&[f32::NAN, 1.0, 1.0, 1.0, f32::NAN, 1.0]).unwrap();
            let mut out = Acts::upload(&device, ActType::F32, &[0.0; 3]).unwrap();
            gated(out.view_mut(), gate_up.view(), None, None, 1, 3, activation).unwrap();
            let found = out.download().unwrap();
            assert!(
                found[0].is_nan() && found[1].is_nan() && found[2].is_finite(),
                "{activation:?} {found:?}"
            );
        }
    }
}

#[test]
fn biases_are_added_to_strided_rows_only() {
    for device in devices() {
        let mut random = Random::new(5);
        for (rows, width, stride) in [(1_usize, 1, 1), (3, 5, 9), (4, 300, 300), (2, 1000, 1003), (0, 5, 5)] {
            // As short as it may be: nothing behind the last row's end.
            let len = (rows * stride).saturating_sub(stride - width);
            let (x, bias) = (random.floats(len), random.floats(width));
            let expected: Vec<f64> = (0..len)
                .map(|at| match at % stride < width {
                    true => f64::from(x[at] + bias[at % stride]),
                    false => f64::from(x[at]),
                })
                .collect();
            let (mut on_device, bias) = (device.upload(&x).unwrap(), device.upload(&bias).unwrap());
            add_bias(on_device.view_mut(), stride, rows, bias.view()).unwrap();
            assert_close(&on_device.download().unwrap(), &expected, 0.0, &format!("{rows} {width} {stride}"));
        }
    }
}

#[test]
fn numbers_are_capped_softly() {
    for device in devices() {
        let mut random = Random::new(8);
        for len in [0, 1, 1023, 1024, 1025, 5000] {
            let x: Vec<f32> = random.floats(len).iter().map(|x| x * 90.0).collect();
            let expected: Vec<f64> = x.iter().map(|x| 30.0 * (f64::from(*x) / 30.0).tanh()).collect();
            let mut on_device = device.upload(&x).unwrap();
            soft_cap(on_device.view_mut(), 30.0).unwrap();
            assert_close(&on_device.download().unwrap(), &expected, 1e-5, &format!("{len} on {device:?}"));
        }
    }
}

#[test]
fn rows_are_picked() {
    for device in devices() {
        let mut random = Random::new(6);
        for (ty, width) in TYPES.into_iter().flat_map(|ty| [1, 3, 8, 64, 100, 4096].map(|width| (ty, width)))
        {
            let x_rows = 1 + random.below(6);
            let x = Acts::upload(&device, ty, &random.floats(x_rows * width)).unwrap();
            let values = x.download().unwrap();
            let rows: Vec<u32> = (0..7).map(|_| random.below(x_rows + 1) as u32).chain([u32::MAX]).collect();
            let expected: Vec<f64> = rows
                .iter()
                .flat_map(|&row| match (row as usize) < x_rows {
                    true => exact(&values[row as usize * width..][..width]),
                    false => vec![0.0; width],
                })
                .collect();
            let on_device = device.upload(&rows).unwrap();
            let mut out = poisoned(&device, ty, rows.len() * width);
            gather_rows(out.view_mut(), x.view(), on_device.view(), width).unwrap();
            assert_close(&out.download().unwrap(), &expected, 0.0, &format!("{ty:?} {x_rows} × {width}"));
        }
    }
}

#[test]
fn tokens_of_the_step_before_take_their_places() {
    for device in devices() {
        let greatest: Vec<u32> = (0..300).map(|row| 1000 + row).collect();
        let drawn: Vec<u32> = (0..5).map(|row| 90 + row).collect();
        for rows in [1, 7, 300] {
            let mut tokens: Vec<u32> = (0..rows as u32).collect();
            let mut expected = tokens.clone();
            for i in (0..rows).step_by(3) {
                (tokens[i], expected[i]) = (fed_token(rows - 1 - i, false), 1000 + (rows - 1 - i) as u32);
            }
            for i in (0..rows).skip(1).step_by(7) {
                (tokens[i], expected[i]) = (fed_token(i % 5, true), 90 + (i % 5) as u32);
            }
            let mut fed = device.upload(&tokens).unwrap();
            let (from, also) = (device.upload(&greatest).unwrap(), device.upload(&drawn).unwrap());
            feed(fed.view_mut(), from.view(), also.view()).unwrap();
            assert_eq!(fed.download().unwrap(), expected, "{rows} rows");
        }
        // What is not there is not read.
        for missing in [fed_token(300, false), fed_token(5, true)] {
            let mut tokens = device.upload(&[missing]).unwrap();
            let (from, also) = (device.upload(&greatest).unwrap(), device.upload(&drawn).unwrap());
            feed(tokens.view_mut(), from.view(), also.view()).unwrap();
            assert_eq!(tokens.download().unwrap(), [missing]);
        }
    }
}

#[test]
fn what_is_fetched_is_what_was_there_when_it_was_asked_for() {
    for device in devices() {
        let mut buffer = device.upload(&[1u32, 2, 3]).unwrap();
        let first = buffer.view().fetch().unwrap();
        buffer.view_mut().upload(&[4, 5, 6]).unwrap();
        let second = buffer.view().slice(1..2).fetch().unwrap();
        buffer.view_mut().fill(0).unwrap();
        drop(buffer.view().fetch().unwrap());
        let nothing = buffer.view().slice(0..0).fetch().unwrap();
        device.synchronize().unwrap();
        assert!(first.is_here().unwrap() && second.is_here().unwrap() && nothing.is_here().unwrap());
        assert_eq!(second.take().unwrap(), [5]);
        assert_eq!(first.take().unwrap(), [1, 2, 3]);
        assert!(nothing.take().unwrap().is_empty());
    }
}
