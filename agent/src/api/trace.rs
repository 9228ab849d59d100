//! W3C Trace Context: a caller's trace goes through this device.
//!
//! A valid `traceparent` puts the trace's and its parent's ids into the request's span, so that every line of the log
//! about it has them, and the answer says in `traceresponse` (level 2 of the recommendation) under which span of that
//! trace it was worked on. Anything else is ignored, as the recommendation says. A request without one costs a look-up.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng;

const PARENT: HeaderName = HeaderName::from_static("traceparent");
const RESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// Where a request belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Of the whole trace, of the span that asks, and of the one that answers.
    pub trace_id: String,
    pub parent_id: String,
    pub span_id: String,
    flags: u8,
}

impl Trace {
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(PARENT).iter();
        let value = values.next()?.to_str().ok()?;
        if values.next().is_some() {
            return None;
        }
        let mut parts = value.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next()?;
            let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            (part.len() == digits && part.bytes().all(lower_hex)).then_some(part)
        };
        let (version, trace_id, parent_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        // Later versions may say more; this one may not.
        let more = parts.next().is_some();
        let nothing = |id: &str| id.bytes().all(|b| b == b'0');
        if version == "ff" || (version == "00" && more) || nothing(trace_id) || nothing(parent_id) {
            return None;
        }
        Some(Self {
            trace_id: trace_id.to_owned(),
            parent_id: parent_id.to_owned(),
            span_id: format!("{:016x}", rand::rng().random_range(1..=u64::MAX)),
            flags: u8::from_str_radix(flags, 16).ok()?,
        })
    }

    /// Tells the caller where its request was worked on.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let text = format!(
            "00-{}-{}-{:02x}",
            self.trace_id,
            self.span_id,
            self.flags & 1
        );
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(RESPONSE, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn of(value: &str) -> Option<Trace> {
        let mut headers = HeaderMap::new();
        headers.insert(PARENT, value.parse().expect("value"));
        Trace::of(&headers)
    }

    #[test]
    fn a_trace_is_passed_on_with_a_span_of_its_own() {
        for more in [
            "00-{}-b7ad6b7169203331-01",
            "cc-{}-b7ad6b7169203331-01-later",
        ] {
            let trace = of(&more.replace("{}", TRACE)).expect("valid");
            assert_eq!(trace.trace_id, TRACE);
            assert_eq!(trace.parent_id, "b7ad6b7169203331");
            let mut headers = HeaderMap::new();
            trace.tell(&mut headers);
            let told = headers[RESPONSE].to_str().expect("text");
            assert_eq!(told, format!("00-{TRACE}-{}-01", trace.span_id));
            assert_ne!(trace.span_id, trace.parent_id);
        }
    }

    #[test]
    fn what_is_not_a_trace_is_ignored() {
        let zeros = "0".repeat(32);
        for value in [
            "".to_owned(),
            format!("00-{TRACE}-b7ad6b7169203331"),
            format!("00-{TRACE}-b7ad6b7169203331-01-more"),
            format!("ff-{TRACE}-b7ad6b7169203331-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{zeros}-b7ad6b7169203331-01"),
            format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase()),
            format!("00-{TRACE}é-b7ad6b7169203331-01"),
        ] {
            assert_eq!(of(&value), None, "{value}");
        }
        assert_eq!(Trace::of(&HeaderMap::new()), None);
    }
}
