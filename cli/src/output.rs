//! What people read: tables, numbers, errors.

use std::io::Write;

/// An error and its causes on one line, without saying anything twice.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = match cause.downcast_ref::<tonic::Status>() {
            Some(status) => status_text(status),
            None => cause.to_string(),
        };
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

/// A refusal as its sender meant it: the message, and when to try again.
pub(crate) fn status_text(status: &tonic::Status) -> String {
    let message = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    match status.code() {
        tonic::Code::Unauthenticated => {
            format!("{message}; give it with --cluster-token or FOGGARA_CLUSTER_TOKEN")
        }
        _ => message.to_owned(),
    }
}

/// Whether the error is that nobody reads our output any more.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    };
    error.chain().any(broken)
}

/// Rows in columns as wide as their widest cell, two spaces apart.
pub(crate) fn table(out: &mut impl Write, header: &[&str], rows: &[Vec<String>]) -> std::io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "  {}", padded.join("  ").trim_end())
    };
    line(&mut header.iter().copied())?;
    rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
}

/// Bytes with a unit of 1024.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut text = Vec::new();
        let rows = vec![vec!["1".into(), "ready".into()], vec!["12345".into(), "é".into()]];
        table(&mut text, &["id", "state"], &rows).expect("memory");
        assert_eq!(String::from_utf8_lossy(&text), "  id     state\n  1      ready\n  12345  é\n");
    }

    #[test]
    fn errors_say_nothing_twice() {
        let status = anyhow::Error::from(tonic::Status::not_found("model `x` is not served here"));
        assert_eq!(one_line(&status.context("generate")), "generate: model `x` is not served here");
        let twice = anyhow::anyhow!("inner").context("outer: inner");
        assert_eq!(one_line(&twice), "outer: inner");
    }

    #[test]
    fn bytes_have_units() {
        let shown: Vec<String> = [0, 1023, 1536, 5 << 30].into_iter().map(bytes).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
    }
}
