//! Reading Prometheus's text format, strictly.

use std::collections::BTreeMap;

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Full name, with `_bucket`, `_sum` or `_count` if it has one.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// Everything an endpoint says.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Kind of each family ("counter", "gauge", "histogram").
    pub kinds: BTreeMap<String, String>,
    /// Families with a help line.
    pub help: BTreeMap<String, String>,
    /// All lines.
    pub samples: Vec<Sample>,
}

impl Metrics {
    /// Parses, or says which line is wrong.
    ///
    /// # Errors
    /// The first line that is not of the format.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').ok_or_else(|| format!("no text: {line}"))?;
                metrics.help.insert(name.into(), help.into());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or_else(|| format!("no type: {line}"))?;
                metrics.kinds.insert(name.into(), kind.into());
            } else if !line.starts_with('#') {
                metrics.samples.push(sample(line).ok_or_else(|| format!("not a sample: {line}"))?);
            }
        }
        Ok(metrics)
    }

    /// The sum of all samples of `name` that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|label| label == value))
        };
        self.samples.iter().filter(has).map(|sample| sample.value).sum()
    }

    /// The family a sample belongs to.
    pub fn family<'a>(&self, name: &'a str) -> &'a str {
        let suffixes = ["_bucket", "_sum", "_count"];
        let base = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
        base.filter(|base| self.kinds.get(*base).is_some_and(|kind| kind == "histogram")).unwrap_or(name)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (head, value) = line.rsplit_once(' ')?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        number => number.parse().ok()?,
    };
    let (name, labels) = match head.split_once('{') {
        None => (head, BTreeMap::new()),
        Some((name, rest)) => (name, labels(rest.strip_suffix('}')?)?),
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    (!name.is_empty() && name.chars().all(valid)).then(|| Sample { name: name.into(), labels, value })
}

/// `a="x",b="y"`.
fn labels(mut text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (key, rest) = text.split_once("=\"")?;
        let end = rest.char_indices().scan(false, |escaped, (at, c)| {
            let ends = c == '"' && !*escaped;
            *escaped = c == '\\' && !*escaped;
            Some((at, ends))
        });
        let end = end.filter(|(_, ends)| *ends).map(|(at, _)| at).next()?;
        labels.insert(key.into(), rest[..end].into());
        text = rest[end + 1..].strip_prefix(',').unwrap_or(&rest[end + 1..]);
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_and_nonsense_is_refused() {
        let text = "# HELP a_total Things.\n# TYPE a_total counter\na_total{m=\"x\\\"y\",s=\"ok\"} 3\na_total{m=\"z\",s=\"ok\"} 4\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("a_total", &[("s", "ok")]), 7.0);
        assert_eq!(metrics.sum("a_total", &[("m", "z")]), 4.0);
        for bad in ["a", "a{x=\"1\" 2", "a b", "{} 1", "a{x=1} 2"] {
            assert!(Metrics::parse(bad).is_err(), "{bad}");
        }
    }
}
