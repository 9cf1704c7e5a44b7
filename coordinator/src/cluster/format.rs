//! In which format the replicated state is written, while coordinators of several versions keep it: pure.
//!
//! Each coordinator says which formats it knows when it connects to another one. What is in the log and in snapshots tells, over
//! any restart, which one was agreed on: nothing is written in a format that some member could not read.

use foggara_proto::version::Range;

/// Formats that a program writes; it reads the newest of them and all before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formats {
    /// The oldest that it still writes.
    pub oldest: u8,
    /// The newest that it reads and writes.
    pub newest: u8,
}

impl From<Range> for Formats {
    fn from(range: Range) -> Self {
        let byte = |number| u8::try_from(number).unwrap_or(u8::MAX);
        Self { oldest: byte(range.oldest), newest: byte(range.newest) }
    }
}

/// The format to write in. `agreed`: the newest that is in the log or in the snapshot; 0 for none. `others`: the newest that each of the
/// other members reads, where that is known by now.
///
/// It is the newest that all of them read; as long as somebody is missing, the one that was agreed on last, for whoever is away may
/// come back as it was. It never goes back: what has been written cannot be unwritten.
pub(super) fn written(own: Formats, agreed: u8, mut others: impl Iterator<Item = Option<u8>>) -> u8 {
    let read_by_all = others.try_fold(own.newest, |least, other| Some(least.min(other?)));
    read_by_all.unwrap_or(0).max(agreed).max(own.oldest).min(own.newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_all_read_is_written_and_never_an_older_one_again() {
        let (old, new) = (Formats { oldest: 4, newest: 4 }, Formats { oldest: 4, newest: 5 });
        let far = Formats { oldest: 5, newest: 7 };
        for (own, agreed, others, expected) in [
            // Everybody is old, or new.
            (old, 4, &[Some(4), Some(4)][..], 4),
            (new, 4, &[Some(5), Some(5)], 5),
            // A cluster of one.
            (new, 4, &[], 5),
            // Some are old.
            (new, 4, &[Some(5), Some(4)], 4),
            (old, 4, &[Some(5), Some(5)], 4),
            // Somebody has not been heard of: what was agreed on, if anything was.
            (new, 4, &[Some(5), None], 4),
            (new, 0, &[Some(5), None], 4),
            (new, 0, &[None, None], 4),
            (new, 5, &[None, Some(5)], 5),
            // It has been agreed on: whoever comes back older cannot read what is there anyway.
            (new, 5, &[Some(4), Some(5)], 5),
            // Releases that are further apart: no step is left out that somebody needs.
            (far, 5, &[Some(6), Some(7)], 6),
            (far, 0, &[Some(7), None], 5),
            // After a stop of the whole cluster, what it wrote before may be older than anything that is written now.
            (far, 2, &[Some(7), Some(7)], 7),
            (far, 2, &[None, Some(7)], 5),
        ] {
            let format = written(own, agreed, others.iter().copied());
            assert_eq!(format, expected, "{own:?}, agreed {agreed}, others {others:?}");
        }
    }
}
