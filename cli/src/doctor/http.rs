//! One GET over a connection, as little of HTTP as that takes.

use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes that are read of an answer at most.
const MOST: u64 = 64 << 10;

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    /// When, by the server's clock: the beginning of that second.
    pub(super) date: Option<SystemTime>,
    pub(super) body: Vec<u8>,
}

/// Asks for `path`.
///
/// # Errors
/// Why there is no answer, in words.
pub(super) async fn get(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
) -> Result<Reply, String> {
    // HTTP/1.0: the body ends with the connection, and comes in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nhost: {host}\r\n\r\n");
    let failed = |error: std::io::Error| error.to_string();
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).await.map_err(failed)?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> Result<Reply, String> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.ok_or_else(|| "it speaks no HTTP".to_owned())?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let (status, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    let code = status.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    if code != Some("200") {
        return Err(format!("it answers `{status:.60}`"));
    }
    let mut headers = headers.split("\r\n").filter_map(|line| line.split_once(':'));
    let date = headers.find(|(name, _)| name.eq_ignore_ascii_case("date"));
    Ok(Reply { date: date.and_then(|(_, value)| time_of(value.trim())), body: answer[end + 4..].to_vec() })
}

/// The time of a date as servers write it, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn time_of(date: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let fields: Vec<&str> = date.split([' ', ':']).collect();
    let [_, day, month, year, hour, minute, second, "GMT"] = fields.as_slice() else { return None };
    let month = MONTHS.iter().position(|name| name == month)? as i64;
    let number = |text: &str| text.parse::<u32>().ok().map(i64::from);
    // Years begin in March, so that the leap day is the last; a day's number is then a line over months of 30.6 days.
    let (march, early) = ((month + 10) % 12, i64::from(month < 2));
    let year = number(year)?.checked_sub(early)?;
    let leap_days = year / 4 - year / 100 + year / 400;
    let days = 365 * year + leap_days + (153 * march + 2) / 5 + number(day)? - 1;
    // 1970-01-01, counted the same way.
    let days = days - 719_468;
    let seconds = ((days * 24 + number(hour)?) * 60 + number(minute)?) * 60 + number(second)?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_seconds() {
        // As `date -ud DATE +%s` has them.
        for (date, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Tue, 29 Feb 2000 23:59:59 GMT", Some(951_868_799)),
            ("Fri, 27 Nov 2026 06:10:54 GMT", Some(1_795_759_854)),
            ("Mon, 01 Mar 2100 00:00:00 GMT", Some(4_107_542_400)),
            ("Sun, 06 Nov 1969 08:49:37 GMT", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("yesterday", None),
        ] {
            let expected = seconds.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(time_of(date), expected, "{date}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_date_and_body() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let answered = async {
            theirs
                .write_all(b"HTTP/1.1 200 OK\r\nDATE: Thu, 01 Jan 1970 00:00:09 GMT\r\n\r\n{}")
                .await
                .expect("room");
            drop(theirs);
        };
        let (reply, ()) = tokio::join!(get(ours, "here", "/version"), answered);
        let date = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(9));
        assert_eq!(reply, Ok(Reply { date, body: b"{}".to_vec() }));
        assert!(parse(b"SSH-2.0-OpenSSH\r\n").is_err_and(|why| why.contains("no HTTP")));
        assert!(parse(b"HTTP/1.1 404 Not Found\r\n\r\n").is_err_and(|why| why.contains("404")));
    }
}
