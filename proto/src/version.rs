//! What a program is, and what it speaks: its version, and ranges of numbers that two programs of a cluster compare.
//!
//! The version is for people. What two programs can do together hangs on the numbers alone, which change less often: a release
//! whose protocol, or whose format of the replicated state, is another one speaks the one before, too.

use std::fmt;

/// What this program says of itself. In one place, and as text, so that it can be read off a program that does not run here
/// (by `grep -a`).
///
/// - `protocols`: what processes say to each other. A new number whenever an older program could not do with what a newer one
///   says: a value where there was none before, a field that must be understood.
/// - `formats`: of the replicated state, as it lies on disk and goes between coordinators. It writes any of them, and reads those
///   before them, too.
const TEXT: &str =
    concat!("foggara-build version=", env!("CARGO_PKG_VERSION"), " protocols=3-3 formats=4-5 ");
const TEXT_BYTES: usize = 160;
static EMBEDDED: [u8; TEXT_BYTES] = padded(TEXT);

/// Name of the header in which processes of a cluster tell each other what they are.
pub const HEADER: &str = "foggara-build";

const fn padded(text: &str) -> [u8; TEXT_BYTES] {
    let (mut bytes, text, mut i) = ([b' '; TEXT_BYTES], text.as_bytes(), 0);
    while i < text.len() {
        bytes[i] = text[i];
        i += 1;
    }
    bytes
}

/// Numbers from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The least.
    pub oldest: u32,
    /// The greatest.
    pub newest: u32,
}

impl Range {
    /// Whether there is a number in both.
    pub fn meets(self, other: Self) -> bool {
        self.oldest <= other.newest && other.oldest <= self.newest
    }

    /// `3-4`.
    fn parse(text: &str) -> Option<Self> {
        let (oldest, newest) = text.split_once('-')?;
        let range = Self { oldest: oldest.parse().ok()?, newest: newest.parse().ok()? };
        (range.oldest <= range.newest).then_some(range)
    }
}

/// `3`, or `3 to 4`.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oldest == self.newest {
            true => write!(f, "{}", self.newest),
            false => write!(f, "{} to {}", self.oldest, self.newest),
        }
    }
}

/// What a program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Its release.
    pub version: String,
    /// What it speaks with other processes of a cluster.
    pub protocols: Range,
    /// In what it can write the replicated state.
    pub formats: Range,
}

/// Why two programs cannot be in one cluster, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "foggara {theirs} speaks {what} {their_range}, foggara {ours} here {our_range}: install a release that speaks one of these, or \
     upgrade the others first, one release at a time"
)]
pub struct Incompatible {
    what: &'static str,
    theirs: String,
    their_range: Range,
    ours: String,
    our_range: Range,
}

impl Build {
    /// This program.
    ///
    /// # Panics
    /// If the text above makes no sense.
    pub fn own() -> Self {
        // Looked up each time it runs, never when it is compiled: tests make another release of a program by writing over it.
        let text = String::from_utf8_lossy(std::hint::black_box(&EMBEDDED));
        let (_, said) = text.split_once(' ').expect("it begins with a word");
        Self::parse(said).expect("it says all three")
    }

    /// What a header says. What is not known here is passed over, as a later release may say more.
    pub fn parse(text: &str) -> Option<Self> {
        let field =
            |name: &str| text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        Some(Self {
            version: field("version")?.to_owned(),
            protocols: Range::parse(field("protocols")?)?,
            formats: Range::parse(field("formats")?)?,
        })
    }

    /// Whether this program and a process that speaks `protocols` can work together.
    ///
    /// # Errors
    /// Why not.
    pub fn speaks_with(&self, version: &str, protocols: Range) -> Result<(), Incompatible> {
        self.compare("protocol", version, protocols, self.protocols)
    }

    /// Whether this program and another coordinator can keep one replicated state.
    ///
    /// # Errors
    /// Why not.
    pub fn keeps_state_with(&self, other: &Self) -> Result<(), Incompatible> {
        self.speaks_with(&other.version, other.protocols)?;
        self.compare("state format", &other.version, other.formats, self.formats)
    }

    fn compare(
        &self,
        what: &'static str,
        version: &str,
        their_range: Range,
        our_range: Range,
    ) -> Result<(), Incompatible> {
        match our_range.meets(their_range) {
            true => Ok(()),
            false => Err(Incompatible {
                what,
                theirs: version.to_owned(),
                their_range,
                ours: self.version.clone(),
                our_range,
            }),
        }
    }
}

/// As a header says it.
impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, protocols: p, formats: s } = self;
        write!(f, "version={version} protocols={}-{} formats={}-{}", p.oldest, p.newest, s.oldest, s.newest)
    }
}

/// Versions in order of their release: numbers as numbers, what follows them as text.
pub fn in_order(version: &str) -> (Vec<u64>, String) {
    let (numbers, rest) =
        version.split_at(version.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(version.len()));
    let numbers = numbers.split('.').map(|number| number.parse().unwrap_or(0)).collect();
    (numbers, rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(oldest: u32, newest: u32) -> Range {
        Range { oldest, newest }
    }

    fn build(version: &str, protocols: Range, formats: Range) -> Build {
        Build { version: version.into(), protocols, formats }
    }

    #[test]
    fn this_program_says_what_it_is() {
        let own = Build::own();
        assert_eq!(own.version, env!("CARGO_PKG_VERSION"));
        assert_eq!(Build::parse(&own.to_string()), Some(own.clone()));
        assert_eq!(own.keeps_state_with(&own), Ok(()));
        assert!(TEXT_BYTES >= TEXT.len() + 32, "room for longer numbers");
    }

    #[test]
    fn a_header_may_say_more_but_not_less() {
        let said = "version=1.2.3 protocols=4-5 colour=blue formats=7-9";
        assert_eq!(Build::parse(said), Some(build("1.2.3", range(4, 5), range(7, 9))));
        for wrong in [
            "",
            "version=1 protocols=1-2",
            "version=1 protocols=2-1 formats=1-1",
            "version=1 protocols=a-b formats=1-1",
        ] {
            assert_eq!(Build::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn programs_with_a_number_in_common_work_together() {
        let own = build("1.1", range(3, 4), range(4, 5));
        for (protocols, formats, expected) in [
            (range(3, 3), range(4, 4), Ok(())),
            (range(4, 6), range(5, 8), Ok(())),
            (range(1, 9), range(1, 9), Ok(())),
            (range(5, 6), range(4, 4), Err("foggara 9 speaks protocol 5 to 6, foggara 1.1 here 3 to 4: ")),
            (range(1, 2), range(4, 4), Err("foggara 9 speaks protocol 1 to 2, foggara 1.1 here 3 to 4: ")),
            (range(4, 4), range(6, 6), Err("foggara 9 speaks state format 6, foggara 1.1 here 4 to 5: ")),
        ] {
            let other = build("9", protocols, formats);
            let said = own.keeps_state_with(&other).map_err(|error| error.to_string());
            match expected {
                Ok(()) => assert_eq!(said, Ok(())),
                Err(begin) => assert!(said.as_ref().is_err_and(|text| text.starts_with(begin)), "{said:?}"),
            }
            assert_eq!(other.keeps_state_with(&own).is_ok(), expected.is_ok(), "both say the same");
        }
        assert_eq!(own.speaks_with("9", range(4, 4)), Ok(()), "a worker has no state");
    }

    #[test]
    fn later_releases_come_later() {
        let mut versions = ["0.10.0", "0.9.1", "1.0.0-rc1", "0.9.1-dev", "", "0.9"];
        versions.sort_by_key(|version| in_order(version));
        assert_eq!(versions, ["", "0.9", "0.9.1", "0.9.1-dev", "0.10.0", "1.0.0-rc1"]);
    }
}
