//! Cores that threads keep to.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Some cores by their numbers, in an order of the user's: `0-3,8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(Arc<[usize]>);

impl Cores {
    /// Those of a list that is not empty and names none twice.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(cores: Vec<usize>) -> Result<Self, String> {
        if cores.is_empty() {
            return Err("no core is named".into());
        }
        for (i, core) in cores.iter().enumerate() {
            if *core >= CpuSet::MAX_CPU {
                return Err(format!("core {core}: the last that can be named is {}", CpuSet::MAX_CPU - 1));
            }
            if cores[..i].contains(core) {
                return Err(format!("core {core} is named twice"));
            }
        }
        Ok(Self(cores.into()))
    }

    /// Those that this process may run on, in order.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn allowed() -> Result<Self, String> {
        let set = sched_getaffinity(None).map_err(|e| format!("asking which cores may be used: {e}"))?;
        Self::new((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
    }

    /// How many there are: at least one.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// `count` of them from the `first` on, if there are so many.
    pub fn part(&self, first: usize, count: usize) -> Option<Self> {
        self.0
            .get(first..first.saturating_add(count))
            .filter(|part| !part.is_empty())
            .map(|part| Self(part.into()))
    }

    /// The first that is not one of `allowed`.
    pub fn not_in(&self, allowed: &Self) -> Option<usize> {
        self.0.iter().copied().find(|core| !allowed.0.contains(core))
    }

    /// Has the calling thread run on the `i`th alone. Where that has been forbidden meanwhile, it runs where it may.
    pub fn keep_to(&self, i: usize) {
        self.set(&self.0[i..=i]);
    }

    /// Has the calling thread, and threads that it starts, run on these alone; as [`keep_to`](Self::keep_to).
    pub fn keep_to_all(&self) {
        self.set(&self.0);
    }

    fn set(&self, cores: &[usize]) {
        let mut set = CpuSet::new();
        cores.iter().for_each(|core| set.set(*core));
        sched_setaffinity(None, &set).ok();
    }
}

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| {
            let number = part.trim().parse::<usize>();
            number.map_err(|_| format!("`{part}` is no core; write numbers and ranges, as in 0-3,8"))
        };
        let mut cores = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => cores.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last || last >= CpuSet::MAX_CPU {
                        return Err(format!(
                            "`{part}` is no range of cores within 0-{}",
                            CpuSet::MAX_CPU - 1
                        ));
                    }
                    cores.extend(first..=last);
                }
            }
        }
        Self::new(cores)
    }
}

/// As it is read, with ranges where numbers follow each other.
impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match run {
                [core] => write!(f, "{comma}{core}")?,
                _ => write!(f, "{comma}{}-{}", run[0], run[run.len() - 1])?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for (text, cores, written) in [
            ("0", vec![0], "0"),
            ("0-3,8", vec![0, 1, 2, 3, 8], "0-3,8"),
            ("4,2,3", vec![4, 2, 3], "4,2-3"),
            (" 1 , 3-3", vec![1, 3], "1,3"),
        ] {
            let read: Cores = text.parse().expect(text);
            assert_eq!(&*read.0, cores, "{text}");
            assert_eq!(read.to_string(), written);
        }
        for (text, why) in [
            ("", "is no core"),
            ("a", "`a` is no core"),
            ("3-1", "`3-1` is no range"),
            ("0-99999999999", "is no range of cores within"),
            ("5000", "the last that can be named"),
            ("1,0-2", "core 1 is named twice"),
            ("-1", "is no core"),
        ] {
            let error = text.parse::<Cores>().expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn parts_and_what_is_allowed() {
        let cores: Cores = "2-5".parse().expect("a list");
        assert_eq!(cores.part(1, 2).map(|part| part.to_string()).as_deref(), Some("3-4"));
        assert_eq!(cores.part(3, 2), None);
        assert_eq!(cores.not_in(&"2-4".parse().expect("a list")), Some(5));
        assert_eq!(cores.not_in(&cores), None);
    }

    #[test]
    fn a_thread_keeps_to_what_it_is_told() {
        let allowed = Cores::allowed().expect("the system says");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let last = allowed.count() - 1;
                allowed.keep_to(last);
                assert_eq!(Cores::allowed().ok(), allowed.part(last, 1));
                // And so do those that it starts.
                let inherited = std::thread::spawn(|| Cores::allowed().ok()).join().expect("no panic");
                assert_eq!(inherited, allowed.part(last, 1));
                allowed.keep_to_all();
                assert_eq!(Cores::allowed().as_ref(), Ok(&allowed));
            });
        });
    }
}
