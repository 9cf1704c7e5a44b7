//! Reading pages of metrics.

/// Sum of the samples of one family whose labels contain `label`.
pub(crate) fn sum(page: &str, family: &str, label: &str) -> f64 {
    let samples =
        page.lines().filter_map(|line| line.strip_prefix(family)?.strip_prefix('{')?.split_once('}'));
    let wanted = samples.filter(|(labels, _)| labels.contains(label));
    wanted.filter_map(|(_, value)| value.trim().parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn samples_are_summed_over_models() {
        let page = "# HELP foggara_kv_blocks x\nfoggara_kv_blocks{model=\"a\",state=\"live\"} 3\n\
            foggara_kv_blocks{model=\"a\",state=\"free\"} 100\nfoggara_kv_blocks{model=\"b\",state=\"live\"} 4\n\
            foggara_kv_blocks_more{model=\"b\"} 9\n";
        let sum = |label| super::sum(page, "foggara_kv_blocks", label);
        assert!((sum("state=\"live\"") - 7.0).abs() < 1e-9 && (sum("") - 107.0).abs() < 1e-9);
        assert!(super::sum("", "foggara_kv_blocks", "").abs() < 1e-9);
    }
}
