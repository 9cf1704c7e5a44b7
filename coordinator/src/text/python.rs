//! What chat templates expect of Python: its JSON and its dates.

use serde_json::Value;

/// Options of `json.dumps`.
#[derive(Debug, Clone, Default)]
pub(super) struct JsonStyle {
    /// Spaces per level; `None` writes one line.
    pub(super) indent: Option<usize>,
    /// Between items, and between key and value; `None`: Python's own.
    pub(super) separators: Option<(String, String)>,
    /// Keys in order.
    pub(super) sort_keys: bool,
    /// Escape everything beyond ASCII.
    pub(super) ensure_ascii: bool,
}

/// `value` as Python's `json.dumps` writes it.
pub(super) fn json_dumps(value: &Value, style: &JsonStyle) -> String {
    let mut out = String::new();
    write(value, style, 0, &mut out);
    out
}

fn write(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) {
    let (comma, colon) = match (&style.separators, style.indent) {
        (Some((comma, colon)), _) => (comma.as_str(), colon.as_str()),
        (None, Some(_)) => (",", ": "),
        (None, None) => (", ", ": "),
    };
    let line = |depth: usize, out: &mut String| {
        if let Some(width) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out);
                write(item, style, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        Value::Object(fields) if !fields.is_empty() => {
            let mut fields: Vec<_> = fields.iter().collect();
            if style.sort_keys {
                fields.sort_by_key(|(key, _)| *key);
            }
            out.push('{');
            for (i, (key, item)) in fields.into_iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out);
                text(key, style, out);
                out.push_str(colon);
                write(item, style, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        Value::String(value) => text(value, style, out),
        Value::Number(number) => out.push_str(&float_digits(number.to_string())),
        other => out.push_str(&other.to_string()),
    }
}

fn text(value: &str, style: &JsonStyle, out: &mut String) {
    let json = Value::from(value).to_string();
    if !style.ensure_ascii {
        // Python keeps U+007F as it is, and so does serde.
        return out.push_str(&json);
    }
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
}

/// Python writes exponents with a sign and at least two digits.
fn float_digits(number: String) -> String {
    match number.split_once('e') {
        None => number,
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent.trim_start_matches('+')),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

/// A date and time in the letters of Python's `strftime` (C locale). Unknown letters stay as they are.
pub(super) fn strftime(format: &str, now: time::OffsetDateTime) -> String {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        // "%-d": without the leading zero.
        let mut letter = chars.next();
        let bare = letter == Some('-');
        if bare {
            letter = chars.next();
        }
        let part = letter.and_then(|letter| date_part(letter, now));
        match (part, letter) {
            (Some(part), _) if bare => {
                let trimmed = part.trim_start_matches('0');
                out.push_str(if trimmed.is_empty() { "0" } else { trimmed });
            }
            (Some(part), _) => out.push_str(&part),
            (None, letter) => {
                out.push_str(if bare { "%-" } else { "%" });
                out.extend(letter);
            }
        }
    }
    out
}

fn date_part(letter: char, now: time::OffsetDateTime) -> Option<String> {
    let short = |name: String| name.chars().take(3).collect::<String>();
    let hour12 = (now.hour() + 11) % 12 + 1;
    Some(match letter {
        'd' => format!("{:02}", now.day()),
        'e' => format!("{:2}", now.day()),
        'm' => format!("{:02}", u8::from(now.month())),
        'Y' => now.year().to_string(),
        'y' => format!("{:02}", now.year().rem_euclid(100)),
        'H' => format!("{:02}", now.hour()),
        'I' => format!("{hour12:02}"),
        'p' => (if now.hour() < 12 { "AM" } else { "PM" }).into(),
        'M' => format!("{:02}", now.minute()),
        'S' => format!("{:02}", now.second()),
        'B' => now.month().to_string(),
        'b' => short(now.month().to_string()),
        'A' => now.weekday().to_string(),
        'a' => short(now.weekday().to_string()),
        'j' => format!("{:03}", now.ordinal()),
        'F' => strftime("%Y-%m-%d", now),
        'T' => strftime("%H:%M:%S", now),
        '%' => "%".into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_is_pythons() {
        let value = json!({"b": [1, 2.0, 1e-7, 1e22, true, null], "a": {"é\"\n": "😀"}, "e": [], "o": {}});
        let plain = JsonStyle::default();
        assert_eq!(
            json_dumps(&value, &plain),
            r#"{"b": [1, 2.0, 1e-07, 1e+22, true, null], "a": {"é\"\n": "😀"}, "e": [], "o": {}}"#
        );
        let indented = JsonStyle { indent: Some(2), ..JsonStyle::default() };
        let text = "{\n  \"x\": [\n    1,\n    2\n  ],\n  \"y\": {}\n}";
        assert_eq!(json_dumps(&json!({"x": [1, 2], "y": {}}), &indented), text);
        let compact = JsonStyle {
            separators: Some((",".into(), ":".into())),
            sort_keys: true,
            ensure_ascii: true,
            ..JsonStyle::default()
        };
        assert_eq!(
            json_dumps(&json!({"b": "é", "a": "😀"}), &compact),
            r#"{"a":"\ud83d\ude00","b":"\u00e9"}"#
        );
    }

    #[test]
    fn dates_are_written_in_pythons_letters() {
        let date = time::macros::datetime!(2024-07-05 15:03:00 UTC);
        for (format, expected) in [
            ("%d %b %Y, %A %H:%M %% %q", "05 Jul 2024, Friday 15:03 % %q"),
            ("%-d/%-m/%y %I:%M %p", "5/7/24 03:03 PM"),
            ("%F %T|%e|%j", "2024-07-05 15:03:00| 5|187"),
            ("%B %a %", "July Fri %"),
            ("%-", "%-"),
        ] {
            assert_eq!(strftime(format, date), expected, "{format}");
        }
    }
}
