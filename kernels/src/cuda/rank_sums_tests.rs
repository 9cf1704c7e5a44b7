use std::cell::RefCell;

use super::*;
use crate::collective::{Collective, CollectiveError, SpinPolicy, shm};
use crate::cuda::testing::{Random, host_twin};

/// The host's collectives in NCCL's place.
struct ByHost {
    device: Device,
    host: RefCell<Box<dyn Collective>>,
}

impl ByHost {
    /// Gives each rank a part, and takes one from each.
    fn all_to_all(&self, sent: &[&[f32]]) -> Result<Vec<Vec<f32>>, DeviceError> {
        let mut received = vec![Vec::new(); sent.len()];
        self.host.borrow_mut().all_to_all(sent, &mut received).map_err(|error| self.failed(&error))?;
        Ok(received)
    }

    fn failed(&self, error: &CollectiveError) -> DeviceError {
        DeviceError {
            device: self.device.name(),
            call: "host",
            shape: String::new(),
            reason: error.to_string(),
            lost: false,
        }
    }
}

fn download(view: View<'_, f32>) -> Result<Vec<f32>, DeviceError> {
    let mut values = vec![0.0; view.len()];
    view.download(&mut values).map(|()| values)
}

impl Connected for ByHost {
    fn rank(&self) -> usize {
        self.host.borrow().rank()
    }

    fn ranks(&self) -> usize {
        self.host.borrow().size()
    }

    fn all_reduce(&self, mut values: ViewMut<'_, f32>) -> Result<(), DeviceError> {
        let mut own = download(values.as_view())?;
        self.host.borrow_mut().all_reduce(&mut own).map_err(|error| self.failed(&error))?;
        values.upload(&own)
    }

    fn all_gather(&self, mut out: ViewMut<'_, f32>, from: View<'_, f32>) -> Result<(), DeviceError> {
        let own = download(from)?;
        out.upload(&self.all_to_all(&vec![&own[..]; self.ranks()])?.concat())
    }

    fn exchange(
        &self,
        mut out: ViewMut<'_, f32>,
        received: &[usize],
        from: View<'_, f32>,
        sent: &[usize],
    ) -> Result<(), DeviceError> {
        let own = download(from)?;
        let mut rest = &own[..];
        let parts: Vec<&[f32]> = sent.iter().map(|count| rest.split_off(..*count).expect("all")).collect();
        let got = self.all_to_all(&parts)?;
        assert!(got.iter().map(Vec::len).eq(received.iter().copied()), "what was to be received");
        out.upload(&got.concat())
    }

    fn spread(&self, mut values: ViewMut<'_, f32>, counts: &[usize]) -> Result<(), DeviceError> {
        let all = download(values.as_view())?;
        let before: usize = counts[..self.rank()].iter().sum();
        let own = &all[before..before + counts[self.rank()]];
        values.upload(&self.all_to_all(&vec![own; self.ranks()])?.concat())
    }
}

/// Numbers of many sizes, so that another order of adding up is seen; the same for the same element of a rank, wherever it lies.
fn values(rank: usize, elements: Range<usize>) -> Vec<f32> {
    let one = |i| {
        let mut random = Random::new((rank * 1_000_003 + i) as u64);
        random.float() * [1e-3, 1.0, 3e4][random.below(3)]
    };
    elements.map(one).collect()
}

fn in_order(ranks: usize, elements: Range<usize>) -> Vec<f32> {
    let all = (0..ranks).map(|rank| values(rank, elements.clone()));
    let add = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(b).map(|(a, b)| a + b).collect();
    all.reduce(add).expect("ranks")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn parts_follow_each_other_and_are_even_where_they_can_be() {
    let of = |len, ranks| (0..ranks).map(|rank| part(len, ranks, rank)).collect::<Vec<_>>();
    assert_eq!(of(24, 3), [0..8, 8..16, 16..24]);
    assert_eq!(of(4096 * 5, 4), [0..5120, 5120..10240, 10240..15360, 15360..20480]);
    assert_eq!(of(25, 3), [0..12, 12..24, 24..25], "whole fours, and the rest");
    assert_eq!(of(9, 4), [0..4, 4..8, 8..9, 9..9], "some have nothing");
    assert_eq!(of(0, 3), [0..0, 0..0, 0..0]);
    for (len, ranks) in (0..200).flat_map(|len| (1..9).map(move |ranks| (len, ranks))) {
        let mut next = 0;
        for part in of(len, ranks) {
            assert_eq!(part.start, next, "{len} over {ranks}");
            assert!(part.len() <= part_room(len, ranks), "{len} over {ranks}");
            next = part.end;
        }
        assert_eq!(next, len, "{len} over {ranks}");
    }
}

/// What one rank has room for, of each other.
fn part_room(longest: usize, ranks: usize) -> usize {
    Limits { direct: 0, piece: usize::MAX }.room(longest, ranks) / ranks
}

#[test]
fn there_is_room_for_every_sum_that_is_not_longer() {
    let limits = Limits { direct: 10, piece: 50 };
    for (ranks, longest) in (3..7).flat_map(|ranks| (0..120).map(move |longest| (ranks, longest))) {
        let room = limits.room(longest, ranks);
        for len in 0..=longest.min(limits.piece) {
            let each = if len <= limits.direct { len } else { part(len, ranks, 0).len() };
            assert!(ranks * each <= room, "{len} of {longest} over {ranks}: room for {room}");
        }
    }
    let room = LIMITS.room(usize::MAX, 8) * size_of::<f32>();
    assert_eq!(room, 32 << 20, "bytes at most, whatever the longest step");
}

/// Runs `f` on a thread for each rank, with its sums.
fn group(ranks: usize, limits: Limits, longest: usize, f: impl Fn(RankSums<ByHost>, &Device) + Sync) {
    let name = format!("foggara-rank-sums-{}-{ranks}-{}", std::process::id(), limits.direct);
    std::thread::scope(|scope| {
        for rank in 0..ranks {
            let config =
                shm::ShmConfig { spin: SpinPolicy::Park, ..shm::ShmConfig::new(name.clone(), rank, ranks) };
            let f = &f;
            scope.spawn(move || {
                let device = host_twin();
                let host = RefCell::new(shm::connect(&config).expect("connects"));
                let connected = ByHost { device: device.clone(), host };
                let sums = RankSums::with_limits(&device, connected, longest, limits).expect("memory");
                f(sums, &device);
            });
        }
    });
}

#[test]
fn sums_have_the_bits_of_the_order_of_ranks_however_long_they_are() {
    // Everything at once, in parts, and in several pieces of which the last is short.
    let limits = Limits { direct: 40, piece: 300 };
    let lengths = [0, 1, 5, 39, 40, 41, 43, 44, 128, 299, 300, 301, 341, 640];
    for ranks in [1, 2, 3, 4, 7] {
        group(ranks, limits, 640, |mut sums, device| {
            let rank = sums.connected().rank();
            for len in lengths {
                // The same elements elsewhere and beside others.
                for first in [0, 3, 64] {
                    let elements = first..first + len;
                    let mut buffer = device.upload(&values(rank, elements.clone())).expect("uploads");
                    sums.sum(buffer.view_mut()).expect("all ranks are there");
                    let found = buffer.download().expect("downloads");
                    let expected = in_order(ranks, elements);
                    assert_eq!(bits(&found), bits(&expected), "{len} from {first}, rank {rank} of {ranks}");
                }
            }
        });
    }
}

#[test]
fn devices_give_the_bits_of_the_host() {
    // Long enough for the host to cut it up, too.
    let len = 3 * LIMITS.direct / 4 * 4 + 20;
    group(3, LIMITS, len, |mut sums, device| {
        let mut own = values(sums.connected().rank(), 0..len);
        let mut buffer = device.upload(&own).expect("uploads");
        sums.sum(buffer.view_mut()).expect("all ranks are there");
        sums.connected().host.borrow_mut().all_reduce(&mut own).expect("all ranks are there");
        assert!(bits(&buffer.download().expect("downloads")) == bits(&own), "the bits of the host");
    });
}
