//! Parts of any length from everyone to everyone, through the slots.
//!
//! What a rank sends to its peers is one stream, in order of the peers. The first phase's slot begins with the lengths of
//! the parts, so that everyone knows how many phases it takes; the stream follows, and goes on in the slots of the phases
//! after it. Readers pick their parts out of it.

use std::ops::Range;

use super::super::segment::SLOT_BYTES;
use super::super::{CollectiveError, MAX_PART};
use super::{Call, Shm};

/// Elements of a slot.
const SLOT: usize = SLOT_BYTES / 4;

/// Where a reader's part lies in a sender's stream.
struct Sender {
    rank: usize,
    /// Elements of the reader's part.
    mine: Range<usize>,
    /// Elements of the whole stream.
    total: usize,
}

impl Sender {
    /// From the lengths of the parts of `rank`, for `reader`.
    fn of(rank: usize, reader: usize, lengths: impl Iterator<Item = usize>) -> Self {
        let (mut total, mut mine) = (0, 0..0);
        for (peer, length) in lengths.enumerate().filter(|(peer, _)| *peer != rank) {
            if peer == reader {
                mine = total..total + length;
            }
            total += length;
        }
        Self { rank, mine, total }
    }
}

/// Elements of a stream that slots carry in phase `number`; the first gives up `head` elements to the lengths.
fn span(number: usize, head: usize) -> Range<usize> {
    (number * SLOT).saturating_sub(head)..(number + 1) * SLOT - head
}

/// Phases that a stream of `total` elements takes.
fn phases(total: usize, head: usize) -> usize {
    (total + head).div_ceil(SLOT)
}

/// What `a` and `b` have in common.
fn common(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

impl Shm {
    pub(super) fn exchange(&mut self, send: &[&[f32]], recv: &mut [Vec<f32>]) -> Result<(), CollectiveError> {
        let (rank, size) = (self.rank, self.segment.size);
        // The lengths are as wide as elements.
        let head = size;
        let own = Sender::of(rank, rank, send.iter().map(|part| part.len()));
        recv.iter_mut().for_each(Vec::clear);
        recv[rank].extend_from_slice(send[rank]);
        let mut senders: Vec<Sender> = Vec::with_capacity(size);
        let mut longest = phases(own.total, head);
        let mut number = 0;
        while number < longest {
            let span = span(number, head);
            let bytes = common(&span, &(0..own.total)).len() * 4;
            self.publish(Call::AllToAll, bytes, |slot| {
                let slot: &mut [f32] = bytemuck::cast_slice_mut(slot);
                let (lengths, stream) = slot.split_at_mut(if number == 0 { head } else { 0 });
                for (to, part) in lengths.iter_mut().zip(send) {
                    *to = f32::from_bits(u32::try_from(part.len()).unwrap_or(u32::MAX));
                }
                let mut start = 0;
                for part in send.iter().enumerate().filter(|(peer, _)| *peer != rank).map(|(_, part)| part) {
                    let piece = common(&span, &(start..start + part.len()));
                    if !piece.is_empty() {
                        stream[piece.start - span.start..][..piece.len()]
                            .copy_from_slice(&part[piece.start - start..piece.end - start]);
                    }
                    start += part.len();
                }
            })?;
            if number == 0 {
                for peer in (0..size).filter(|peer| *peer != rank) {
                    let slot: &[f32] = bytemuck::cast_slice(self.peer(Call::AllToAll, peer, None)?);
                    let lengths = slot[..size].iter().map(|length| length.to_bits() as usize);
                    if let Some(length) = lengths.clone().find(|length| *length > MAX_PART) {
                        let reason = format!("a part of {length} elements, at most {MAX_PART}");
                        return Err(CollectiveError::Mismatch { rank: peer, reason });
                    }
                    let sender = Sender::of(peer, rank, lengths);
                    longest = longest.max(phases(sender.total, head));
                    recv[peer].reserve(sender.mine.len());
                    senders.push(sender);
                }
            }
            for sender in &senders {
                // A peer whose stream has ended takes part all the same: its slots may not be written again before.
                let slot: &[f32] = bytemuck::cast_slice(self.peer(Call::AllToAll, sender.rank, None)?);
                let stream = if number == 0 { &slot[head..] } else { slot };
                let piece = common(&span, &sender.mine);
                if !piece.is_empty() {
                    let part = &stream[piece.start - span.start..][..piece.len()];
                    recv[sender.rank].extend_from_slice(part);
                }
            }
            self.done();
            number += 1;
        }
        Ok(())
    }
}
