//! Which distributed trace a request belongs to: [W3C Trace Context](https://www.w3.org/TR/trace-context/). Pure.

use std::fmt;

/// Longest `tracestate` that is passed on, in bytes: what the specification asks for at least. A longer one is left out, as a whole.
pub const MAX_STATE_BYTES: usize = 512;

/// A span of a trace, to be the parent of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// Of the whole trace; not 0.
    pub trace_id: u128,
    /// Of the span; not 0.
    pub span_id: u64,
    /// Whether it is recorded: what belongs to it should be, too.
    pub sampled: bool,
    /// What tracing systems before us have written beside it (`tracestate`); passed on as it is.
    pub state: String,
}

impl TraceContext {
    /// What `traceparent` and `tracestate` say; `None` if the first makes no sense, and then the second does not count.
    pub fn parse(parent: &str, state: &str) -> Option<Self> {
        let mut parts = parent.trim().split('-');
        let mut field = |digits: usize| {
            let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            parts.next().filter(|part| part.len() == digits && part.bytes().all(lower))
        };
        let (version, trace_id, span_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        // Later versions may say more after the flags; 255 is forbidden.
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace_id, 16).ok().filter(|id| *id != 0)?;
        let span_id = u64::from_str_radix(span_id, 16).ok().filter(|id| *id != 0)?;
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        let usable =
            state.len() <= MAX_STATE_BYTES && state.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let state = if usable { state.trim().to_owned() } else { String::new() };
        Some(Self { trace_id, span_id, sampled, state })
    }

    /// The trace's id as it is written everywhere: 32 hexadecimal digits.
    pub fn trace_id_text(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

/// As `traceparent`, or `traceresponse`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn what_is_written_is_read() {
        for (flags, sampled) in [("00", false), ("01", true), ("03", true), ("02", false)] {
            let read = TraceContext::parse(&format!("00-{TRACE}-{SPAN}-{flags}"), "a=1,b=2").expect("valid");
            assert_eq!((read.sampled, read.state.as_str()), (sampled, "a=1,b=2"));
            assert_eq!(read.trace_id_text(), TRACE);
            assert_eq!(read.to_string(), format!("00-{TRACE}-{SPAN}-{:02x}", u8::from(sampled)));
        }
        let later = format!("cc-{TRACE}-{SPAN}-01-what-comes-later");
        assert!(TraceContext::parse(&later, "").is_some_and(|read| read.sampled), "a later version");
    }

    #[test]
    fn what_makes_no_sense_is_no_trace() {
        let zero = |digits: usize| "0".repeat(digits);
        for wrong in [
            String::new(),
            "00".into(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", zero(32)),
            format!("00-{TRACE}-{}-01", zero(16)),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-+1"),
            format!("0-{TRACE}-{SPAN}-01"),
        ] {
            assert_eq!(TraceContext::parse(&wrong, ""), None, "{wrong}");
        }
        let parent = format!("00-{TRACE}-{SPAN}-01");
        for state in ["x=\u{7f}".to_owned(), "x".repeat(MAX_STATE_BYTES + 1)] {
            let read = TraceContext::parse(&parent, &state).expect("the parent is valid");
            assert_eq!(read.state, "", "only the state is left out");
        }
    }
}
