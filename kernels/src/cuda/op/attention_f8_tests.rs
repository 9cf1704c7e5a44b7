//! A cache in E4M3: what attention makes of it is what it makes of the same numbers in f16, bit by bit. (Which is compared with exact
//! sums, and with itself however rows are taken, in other tests.)

use super::invariance::{Part, Sequences, check_same};
use super::*;

/// Rows of a prompt at the ends of tiles and spans, and rows alone, by either kind of cache. Where tensor cores add sixteen products
/// at once: there the order of the sixteen, which is not the same, does not matter.
fn check_as_f16(device: &Device, case: &Case) {
    let both = [KvKind::F16, KvKind::F8].map(|kind| {
        let sequences = Sequences::new(device, &Case { kind, few_bits: true, ..case.clone() }, &[330, 90]);
        let together: [Part; 2] = [(0, 250, 20), (1, 0, 17)];
        let alone: [Part; 4] = [(1, 0, 1), (0, 63, 2), (0, 256, 1), (0, 329, 1)];
        let spread = sequences.attend(device, &alone, 64, None);
        let recorded = sequences.attend(device, &alone, 3, Some(7));
        (sequences.attend(device, &together, 80, None), spread, recorded)
    });
    let is_number = |(_, bits): &(_, Vec<u32>)| bits.iter().all(|x| f32::from_bits(*x).is_finite());
    assert!(both[1].0.iter().chain(&both[1].1).all(is_number), "{case:?}");
    assert!(both[0] == both[1], "{case:?}: E4M3 and f16 give different bits");
}

fn devices_that_add_sixteen() -> impl Iterator<Item = Device> {
    devices().into_iter().filter(Device::multiplies_f8)
}

#[test]
fn the_same_numbers_in_f16_give_the_same_bits() {
    for device in devices_that_add_sixteen() {
        for (dim, groups) in [
            (64, vec![2]),
            (80, vec![3]),
            (96, vec![9]),
            (128, vec![4]),
            (128, vec![12]),
            (256, vec![5]),
            // Without tensor cores.
            (20, vec![8]),
            (72, vec![2]),
            (200, vec![3]),
            (400, vec![1]),
        ] {
            check_as_f16(&device, &Case::new(KvKind::F8, &groups, dim, &[]));
        }
    }
}

#[test]
fn so_they_do_with_windows_caps_and_sinks_and_with_values_within_keys() {
    for device in devices_that_add_sixteen() {
        for (dim, values) in [
            (128, Values::Own(128)),
            (256, Values::Own(256)),
            (24, Values::Own(40)),
            (576, Values::InKey(512)),
            (24, Values::InKey(16)),
        ] {
            for (window, softcap, sinks) in [(Some(3), None, true), (Some(270), Some(2.0), false)] {
                let case = Case { values, window, softcap, sinks, ..Case::new(KvKind::F8, &[3], dim, &[]) };
                check_as_f16(&device, &Case { block_size: 7, ..case });
            }
        }
        let latent = Case { values: Values::InKey(512), ..Case::new(KvKind::F8, &[20], 576, &[]) };
        check_as_f16(&device, &latent);
    }
}

#[test]
fn rows_are_the_same_however_they_are_taken() {
    for device in devices() {
        for (dim, groups) in
            [(64, vec![2]), (80, vec![1]), (96, vec![9]), (128, vec![4]), (256, vec![3]), (40, vec![1])]
        {
            check_same(&device, &Case::new(KvKind::F8, &groups, dim, &[]));
        }
        let latent = Case { values: Values::InKey(512), ..Case::new(KvKind::F8, &[3], 576, &[]) };
        check_same(&device, &latent);
        let window = Case { window: Some(270), sinks: true, ..Case::new(KvKind::F8, &[2], 128, &[]) };
        check_same(&device, &window);
    }
}

#[test]
fn blocks_that_are_many_meet_all_spans_of_a_row() {
    for device in devices() {
        let sequences = Sequences::new(&device, &Case::new(KvKind::F8, &[1; 16], 64, &[]), &[600, 40]);
        let long: [Part; 4] = [(0, 599, 1), (0, 255, 1), (0, 256, 1), (0, 300, 1)];
        let combined = || {
            let launches = device.driver().launches();
            launches.iter().find(|(name, _)| *name == "attention_combine").map_or(0, |(_, count)| *count)
        };
        let before = combined();
        let apart = sequences.attend(&device, &long, 64, None);
        assert_eq!(combined(), before + 1, "few rows are cut");
        let short = (0..MANY / 16 - long.len()).map(|i| (1, i % 40, 1));
        let rows: Vec<Part> = long.into_iter().chain(short).collect();
        let all = sequences.attend(&device, &rows, 64, None);
        assert_eq!(combined(), before + 1, "many are not");
        assert!(all[..long.len()] == apart, "the same bits");
    }
}

#[test]
fn sums_are_near_to_exact_ones() {
    for device in devices() {
        for (dim, groups) in [(64, vec![8]), (128, vec![4, 4]), (128, vec![17]), (256, vec![2])] {
            for out in [ActType::F32, ActType::Bf16] {
                let case = Case { out, ..Case::new(KvKind::F8, &groups, dim, &ALONE) };
                check(&device, &case, ON_TENSOR_CORES + if out == ActType::Bf16 { 4e-3 } else { 0.0 });
                let case = Case { runs: vec![(0, 16), (37, 1), (100, 19)], ..case };
                check(&device, &case, ON_TENSOR_CORES + if out == ActType::Bf16 { 4e-3 } else { 0.0 });
            }
        }
        check(&device, &Case::new(KvKind::F8, &[3, 1], 33, &ALONE), 1e-5);
    }
}
