//! What kernels do on the way, beside a product, can be left to launches of its own: for measurements.

use std::sync::OnceLock;

/// `1`: everything that can be; or names with commas between them.
const SWITCH: &str = "FOGGARA_CUDA_APART";

/// Rotation and the cache at the end of the product that gives queries, keys and values.
pub(super) const CACHED: &str = "cached";
/// Spans of attention that are put together where the output projection begins.
pub(super) const ATTENDED: &str = "attended";
/// Keys and values that attention of one row asks for before the kernel before has ended.
pub(super) const EARLY: &str = "early";

/// Whether this is to be done by itself.
pub(super) fn is_apart(what: &str) -> bool {
    static SAID: OnceLock<String> = OnceLock::new();
    names(SAID.get_or_init(|| std::env::var(SWITCH).unwrap_or_default()), what)
}

fn names(said: &str, what: &str) -> bool {
    said == "1" || said.split(',').any(|name| name == what)
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn all_none_or_some_are_apart() {
        for (said, cached, early) in
            [("", false, false), ("1", true, true), ("early", false, true), ("cached,early", true, true)]
        {
            assert_eq!((names(said, "cached"), names(said, "early")), (cached, early), "{said}");
        }
    }
}
