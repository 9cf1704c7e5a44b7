//! The caches that this machine says it has.

use std::collections::BTreeMap;
use std::path::Path;

/// Sizes, in bytes; 0: not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caches {
    /// Of all last-level caches together. A virtual machine is told of the whole of one that it shares with others.
    pub last: u64,
    /// Of the largest cache that a core has to itself, or shares with few, before those.
    pub before: u64,
    /// Cores (threads of them counted apart) that these are of.
    pub cores: usize,
}

/// One cache, as a core sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    level: u32,
    bytes: u64,
    /// Cores that see the same one.
    cores: String,
}

/// What the kernel tells in `/sys/devices/system/cpu` (its documentation: ABI/testing/sysfs-devices-system-cpu).
pub fn caches() -> Caches {
    let text = |path: &Path| Some(std::fs::read_to_string(path).ok()?.trim().to_owned());
    let folders = |path: &Path, prefix: &str| {
        let entries = path.read_dir().into_iter().flatten().flatten();
        let named = entries.filter(|entry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
            number.is_some_and(|number| number.parse::<u32>().is_ok())
        });
        named.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let seen = |index: &Path| {
        let data = text(&index.join("type"))? != "Instruction";
        let level = text(&index.join("level"))?.parse().ok()?;
        let bytes = size(&text(&index.join("size"))?)?;
        let cores = text(&index.join("shared_cpu_list"))?;
        data.then_some(Seen { level, bytes, cores })
    };
    let cores = folders(Path::new("/sys/devices/system/cpu"), "cpu").into_iter().map(|core| {
        folders(&core.join("cache"), "index").iter().filter_map(|index| seen(index)).collect::<Vec<_>>()
    });
    of(&cores.filter(|seen| !seen.is_empty()).collect::<Vec<_>>())
}

/// Of what each core sees.
fn of(cores: &[Vec<Seen>]) -> Caches {
    let all = || cores.iter().flatten();
    let level = all().map(|cache| cache.level).max().unwrap_or(0);
    let last: BTreeMap<&str, u64> =
        all().filter(|cache| cache.level == level).map(|cache| (cache.cores.as_str(), cache.bytes)).collect();
    let before = all().filter(|cache| cache.level < level).map(|cache| cache.bytes).max();
    Caches { last: last.values().sum(), before: before.unwrap_or(0), cores: cores.len() }
}

/// "307200K".
fn size(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix(['K', 'M']) {
        Some(number) => (number, if text.ends_with('K') { 1 << 10 } else { 1 << 20 }),
        None => (text, 1),
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(first: &str, last: &str) -> Vec<Seen> {
        let seen = |level, bytes, cores: &str| Seen { level, bytes, cores: cores.into() };
        vec![seen(1, 32 << 10, first), seen(2, 512 << 10, first), seen(3, 32 << 20, last)]
    }

    #[test]
    fn last_level_caches_are_counted_once_each() {
        let two = [core("0", "0-1"), core("1", "0-1"), core("2", "2")];
        assert_eq!(of(&two), Caches { last: 64 << 20, before: 512 << 10, cores: 3 });
        assert_eq!(of(&[]), Caches::default());
        let only = [vec![core("0", "0").remove(0)]];
        assert_eq!(of(&only), Caches { last: 32 << 10, before: 0, cores: 1 });
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("307200K", Some(307_200 << 10)),
            ("2M", Some(2 << 20)),
            ("64", Some(64)),
            ("", None),
            ("K", None),
            ("18446744073709551615M", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
    }
}
