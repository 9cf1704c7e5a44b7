//! What kernels are written in means the same on every device: to the host twin, and to a GPU where there is one.

use half::{bf16, f16};

use super::testing::{Random, assert_close, devices};
use super::{Arg, Device, Launch, from_f8};

fn launch(device: &Device, kernel: &'static str, blocks: u32, threads: u32, shared: u32, args: &[Arg]) {
    let launch = Launch { kernel, grid: [blocks, 1, 1], threads, shared };
    // SAFETY: every test gives the kernel's parameters, and buffers as long as it says.
    unsafe { device.launch(&launch, args) }.unwrap();
}

#[test]
fn shuffles_and_votes_reach_the_lanes_they_name() {
    for device in devices() {
        let threads = 96;
        let mut random = Random::new(1);
        let values: Vec<u32> = (0..threads).map(|_| random.bits() as u32).collect();
        let on_device = device.upload(&values).unwrap();
        let out = device.alloc::<u32>(threads * 8).unwrap();
        let args = [Arg::Ptr(out.view().address()), Arg::Ptr(on_device.view().address())];
        launch(&device, "dialect_shuffles", 1, threads as u32, 0, &args);
        let found = out.download().unwrap();
        for thread in 0..threads {
            let (lane, warp) = (thread % 32, thread / 32 * 32);
            let of = |lane: usize| values[warp + lane];
            let vote = |lanes: std::ops::Range<usize>, bit: u32| {
                lanes.map(|lane| u32::from(of(lane) & bit != 0) << lane).sum::<u32>()
            };
            let largest = (0..32).map(|lane| of(lane) % 1000).max().unwrap();
            let expected = [
                of(lane ^ 5),
                of(if lane + 3 < 32 { lane + 3 } else { lane }),
                of(if lane % 16 >= 7 { lane - 7 } else { lane }),
                of(lane / 8 * 8 + 2),
                of(lane ^ 1),
                vote(0..32, 1),
                if lane < 16 { of(lane ^ 8) } else { vote(16..32, 2) },
                (warp + 31) as u32 + largest,
            ];
            assert_eq!(found[thread * 8..][..8], expected, "thread {thread}");
        }
    }
}

#[test]
fn barriers_hold_all_threads_that_have_not_left() {
    for device in devices() {
        for (threads, live, rounds) in [(32, 32, 3), (256, 77, 10), (1024, 1000, 5), (1024, 1, 2)] {
            let values: Vec<u32> = (0..threads).collect();
            let on_device = device.upload(&values).unwrap();
            let args = [Arg::Ptr(on_device.view().address()), Arg::U32(live), Arg::U32(rounds)];
            launch(&device, "dialect_barriers", 1, threads, 0, &args);
            let expected: Vec<u32> = values
                .iter()
                .map(|&i| if i < live { (i + live * rounds - rounds) % live } else { i })
                .collect();
            assert_eq!(on_device.download().unwrap(), expected, "{live} of {threads} threads");
        }
    }
}

#[test]
fn a_block_has_one_sum() {
    for device in devices() {
        for threads in [32, 96, 1024] {
            let values: Vec<f32> = (0..3 * threads).map(|i| (i % 13) as f32).collect();
            let (on_device, out) =
                (device.upload(&values).unwrap(), device.alloc::<f32>(values.len()).unwrap());
            let args = [Arg::Ptr(out.view().address()), Arg::Ptr(on_device.view().address())];
            launch(&device, "dialect_block_sum", 3, threads, 0, &args);
            let sums = values.chunks(threads as usize).flat_map(|block| {
                let sum = block.iter().map(|x| f64::from(*x)).sum::<f64>() + f64::from(threads);
                block.iter().map(move |_| sum)
            });
            assert_close(&out.download().unwrap(), &sums.collect::<Vec<_>>(), 0.0, &format!("{threads}"));
        }
    }
}

#[test]
fn a_warp_multiplies_tiles() {
    for device in devices() {
        let mut random = Random::new(2);
        let mut tile = || -> Vec<bf16> { (0..256).map(|_| bf16::from_f32(random.float())).collect() };
        let (a, b) = (tile(), tile());
        let bits = |tile: &[bf16]| tile.iter().map(|x| x.to_bits()).collect::<Vec<u16>>();
        let (on_a, on_b) = (device.upload(&bits(&a)).unwrap(), device.upload(&bits(&b)).unwrap());
        for transposed in [false, true] {
            let out = device.alloc::<f32>(256).unwrap();
            let args = [
                Arg::Ptr(out.view().address()),
                Arg::Ptr(on_a.view().address()),
                Arg::Ptr(on_b.view().address()),
                Arg::U32(u32::from(transposed)),
            ];
            launch(&device, "dialect_multiply", 1, 32, 2 * 16 * 24 * 2, &args);
            let expected = (0..256).map(|at| {
                let (row, column) = (at / 16, at % 16);
                let b = |i: usize| if transposed { b[i * 16 + column] } else { b[column * 16 + i] };
                (0..16).map(|i| a[row * 16 + i].to_f64() * b(i).to_f64()).sum::<f64>()
            });
            let expected: Vec<f64> = expected.collect();
            assert_close(&out.download().unwrap(), &expected, 1e-5, &format!("transposed: {transposed}"));
        }
    }
}

#[test]
fn copies_arrive_when_they_are_waited_for() {
    for device in devices() {
        let mut random = Random::new(3);
        let (threads, live) = (64, 50);
        let values: Vec<[u32; 4]> = (0..2 * threads).map(|_| [0; 4].map(|_| random.bits() as u32)).collect();
        let (on_device, out) =
            (device.upload(&values).unwrap(), device.alloc::<[u32; 4]>(3 * threads).unwrap());
        let args =
            [Arg::Ptr(out.view().address()), Arg::Ptr(on_device.view().address()), Arg::U32(live as u32)];
        launch(&device, "dialect_copies", 1, threads as u32, (2 * threads * 16) as u32, &args);
        let found = out.download().unwrap();
        for i in 0..threads {
            let mirror = threads - 1 - i;
            assert_eq!(found[i], if mirror < live { values[mirror] } else { [0; 4] }, "first group {i}");
            assert_eq!(found[threads + i], values[threads + mirror], "second group {i}");
            assert_eq!(found[2 * threads + i], values[i], "past the cache {i}");
        }
    }
}

#[test]
fn numbers_become_halves_as_they_do_here() {
    for device in devices() {
        let mut random = Random::new(4);
        let special = [0.0, -0.0, 1e-45, 5.960_464_5e-8, 2.980_232_3e-8, 65504.0, 65520.0, 1e9, f32::MAX];
        let odd = [f32::INFINITY, f32::NEG_INFINITY, 6.097_555e-5, 6.103_515_6e-5, -1e-6];
        let any: Vec<f32> =
            (0..200_000).map(|_| f32::from_bits(random.bits() as u32)).filter(|x| !x.is_nan()).collect();
        let near: Vec<f32> = (0..100_000).map(|_| random.float() * 1e-4).collect();
        let values: Vec<f32> = special.into_iter().chain(odd).chain(any).chain(near).collect();
        let (on_device, out) =
            (device.upload(&values).unwrap(), device.alloc::<[u16; 3]>(values.len()).unwrap());
        let args = [
            Arg::Ptr(out.view().address()),
            Arg::Ptr(on_device.view().address()),
            Arg::U32(values.len() as u32),
        ];
        launch(&device, "dialect_to_halves", 8, 256, 0, &args);
        for (value, found) in values.iter().zip(out.download().unwrap()) {
            let short = bf16::from_f32(*value).to_bits();
            let half = f16::from_f32(value.clamp(-65504.0, 65504.0)).to_bits();
            assert_eq!(found, [half, short, short], "{value:e}");
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so_in_bf16() {
    for device in devices() {
        let values = [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)];
        let (on_device, out) = (device.upload(&values).unwrap(), device.alloc::<[u16; 3]>(3).unwrap());
        let args = [Arg::Ptr(out.view().address()), Arg::Ptr(on_device.view().address()), Arg::U32(3)];
        launch(&device, "dialect_to_halves", 1, 32, 0, &args);
        for found in out.download().unwrap() {
            assert!(bf16::from_bits(found[1]).is_nan() && bf16::from_bits(found[2]).is_nan(), "{found:x?}");
            assert_eq!(found[1], found[2]);
        }
    }
}

#[test]
fn halves_become_numbers_as_they_do_here() {
    for device in devices() {
        let out = device.alloc::<[f32; 3]>(65536).unwrap();
        launch(&device, "dialect_from_halves", 8, 256, 0, &[Arg::Ptr(out.view().address())]);
        for (bits, found) in (0..=u16::MAX).zip(out.download().unwrap()) {
            let own = f32::from_bits(u32::from(bits) << 16);
            let expected = [f16::from_bits(bits).to_f32(), own, from_f8(bits as u8)];
            for (found, expected) in found.into_iter().zip(expected).take(2) {
                let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
                assert!(same, "{bits:#x}: {found} in place of {expected}");
            }
            // The code of NaN is 480 to a kernel: no weight has it.
            let nan = bits & 0x7f == 0x7f;
            assert!(nan || found[2].to_bits() == expected[2].to_bits(), "E4M3 {bits:#x}: {found:?}");
        }
    }
}

#[test]
fn nothing_that_is_added_at_once_is_lost() {
    for device in devices() {
        let threads = 4 * 256;
        let (sum, wide) = (device.zeros::<u32>(2).unwrap(), device.zeros::<u64>(1).unwrap());
        let (parts, largest) = (device.zeros::<f32>(1).unwrap(), device.zeros::<u32>(1).unwrap());
        let places = device.alloc::<u32>(threads).unwrap();
        let addresses = [
            sum.view().address(),
            wide.view().address(),
            parts.view().address(),
            largest.view().address(),
            places.view().address(),
        ];
        launch(&device, "dialect_atomics", 4, 256, 0, &addresses.map(Arg::Ptr));
        let total = threads * (threads - 1) / 2;
        assert_eq!(sum.download().unwrap(), [total as u32, threads as u32]);
        assert_eq!(wide.download().unwrap(), [(total as u64) << 20]);
        assert_eq!(parts.download().unwrap(), [threads as f32 / 2.0]);
        assert_eq!(
            largest.download().unwrap(),
            [(0..threads).map(|i| i * 7919 % 1000).max().unwrap() as u32]
        );
        let mut places = places.download().unwrap();
        places.sort_unstable();
        assert_eq!(places, (0..threads as u32).collect::<Vec<_>>());
    }
}
