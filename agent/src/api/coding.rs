//! Content codings: compressed bodies in, compressed answers out (RFC 9110, section 8.4.1).
//!
//! gzip and deflate, which Triton's clients send and ask for, and zstd, which costs least; `deflate` is the zlib format,
//! as the standard says, and a zstd frame's window is at most 8 MiB (RFC 9659). [`Unpacker`] yields a body piece by piece, so that whoever gathers it can stop at the limit: a body
//! that swells a thousandfold costs no more memory than that limit, and other callers get their turn between
//! two pieces. An answer is compressed only when the caller asks, when it is large enough to gain by it, and fast
//! rather than small.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http_body_util::{BodyExt, Full};
use hyper::body::Body as _;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};

use super::error::ApiError;

mod unpack;

pub use unpack::{Corrupt, Unpacker};

/// What is said of a body that cannot be taken.
const KNOWN: &str = "gzip, deflate, zstd";
/// Shorter answers are sent as they are: compression would cost more than it saves.
pub const WORTHWHILE: u64 = 1024;
/// Longer ones are compressed on a thread of their own.
pub const LONG: u64 = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Gzip,
    Deflate,
    Zstd,
}

impl Coding {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            Some(Self::Gzip)
        } else if name.eq_ignore_ascii_case("deflate") {
            Some(Self::Deflate)
        } else if name.eq_ignore_ascii_case("zstd") {
            Some(Self::Zstd)
        } else {
            None
        }
    }

    /// How the body of a request is compressed; 415 if in a way that is not understood here.
    pub fn of_body(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let mut found = None;
        for value in headers.get_all(header::CONTENT_ENCODING) {
            for name in value.to_str().unwrap_or("?").split(',').map(str::trim) {
                match Self::named(name) {
                    _ if name.is_empty() || name.eq_ignore_ascii_case("identity") => {}
                    Some(coding) if found.is_none() => found = Some(coding),
                    Some(_) => return Err(unsupported("more than one".to_owned())),
                    None => return Err(unsupported(format!("{name:?}"))),
                }
            }
        }
        Ok(found)
    }

    /// How the caller would like the answer compressed (RFC 9110, section 12.5.3): of what it likes best the cheapest,
    /// gzip if all is one to it.
    pub fn wanted(headers: &HeaderMap) -> Option<Self> {
        let mut weights = [None; 3];
        let mut others = None;
        for value in headers.get_all(header::ACCEPT_ENCODING) {
            for part in value.to_str().unwrap_or_default().split(',') {
                let (name, parameter) = part.split_once(';').unwrap_or((part, ""));
                let weight = weight(parameter);
                match Self::named(name.trim()) {
                    Some(coding) => weights[coding as usize] = Some(weight),
                    None if name.trim() == "*" => others = Some(weight),
                    None => {}
                }
            }
        }
        let weight_of = |coding: Self| match (weights[coding as usize], coding) {
            (Some(weight), _) => weight,
            // Fewer programs understand it than say that they take everything.
            (None, Self::Zstd) => 0.0,
            (None, _) => others.unwrap_or(0.0),
        };
        let mut best = None;
        for coding in [Self::Zstd, Self::Gzip, Self::Deflate] {
            if weight_of(coding) > best.map_or(0.0, weight_of) {
                best = Some(coding);
            }
        }
        best
    }

    /// Compresses fast rather than small.
    pub fn packed(self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let level = Compression::fast();
        let out = Vec::with_capacity(plain.len() / 2);
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(out, level);
                encoder.write_all(plain)?;
                encoder.finish()
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(out, level);
                encoder.write_all(plain)?;
                encoder.finish()
            }
            Self::Zstd => {
                let mut encoder = zstd::Encoder::new(out, 1)?;
                encoder.include_checksum(true)?;
                encoder.write_all(plain)?;
                encoder.finish()
            }
        }
    }
}

/// The weight of `q=…`; what is no weight counts as none.
fn weight(parameter: &str) -> f32 {
    match parameter.trim().split_once('=') {
        None => 1.0,
        Some((name, value)) if name.trim().eq_ignore_ascii_case("q") => {
            value.trim().parse().unwrap_or(0.0)
        }
        Some(_) => 0.0,
    }
}

fn unsupported(what: String) -> ApiError {
    let text = format!(
        "a body with Content-Encoding {what} is not taken: this server understands one of {KNOWN}"
    );
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)
        .with_header(header::ACCEPT_ENCODING, HeaderValue::from_static(KNOWN))
}

/// Compresses an answer if its caller asked for it and it is worth the time.
pub async fn pack(response: Response<Full<Bytes>>, request: &HeaderMap) -> Response<Full<Bytes>> {
    if response.body().size_hint().lower() < WORTHWHILE {
        return response;
    }
    let Some(coding) = Coding::wanted(request) else {
        return response;
    };
    let (mut parts, body) = response.into_parts();
    let Ok(body) = body.collect().await;
    let plain = body.to_bytes();
    let packed = if plain.len() as u64 > LONG {
        let plain = plain.clone();
        tokio::task::spawn_blocking(move || coding.packed(&plain))
            .await
            .ok()
    } else {
        Some(coding.packed(&plain))
    };
    parts
        .headers
        .insert(header::VARY, header::ACCEPT_ENCODING.into());
    let body = match packed {
        Some(Ok(packed)) if packed.len() < plain.len() => {
            let name = HeaderValue::from_static(coding.name());
            parts.headers.insert(header::CONTENT_ENCODING, name);
            packed.into()
        }
        // It does not shrink.
        _ => plain,
    };
    Response::from_parts(parts, Full::new(body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderName;
    use proptest::prelude::*;

    const ALL: [Coding; 3] = [Coding::Gzip, Coding::Deflate, Coding::Zstd];

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), value.parse().expect("value"));
        }
        headers
    }

    fn unpack(coding: Coding, packed: &[u8], step: usize) -> Result<Vec<u8>, Corrupt> {
        let mut unpacker = Unpacker::new(coding);
        let mut out = Vec::new();
        for part in packed.chunks(step) {
            let mut part = Bytes::copy_from_slice(part);
            while !part.is_empty() {
                out.extend(unpacker.unpack(&mut part)?);
            }
        }
        out.extend(unpacker.finish()?);
        Ok(out)
    }

    #[test]
    fn a_body_has_one_coding_that_is_known_or_none() {
        let coding = |values: &[&str]| {
            Coding::of_body(&headers(header::CONTENT_ENCODING, values)).map_err(|e| e.status)
        };
        assert_eq!(coding(&[]), Ok(None));
        assert_eq!(coding(&["identity"]), Ok(None));
        assert_eq!(coding(&["GZip"]), Ok(Some(Coding::Gzip)));
        assert_eq!(coding(&["x-gzip"]), Ok(Some(Coding::Gzip)));
        assert_eq!(coding(&["zstd"]), Ok(Some(Coding::Zstd)));
        assert_eq!(coding(&["identity, deflate"]), Ok(Some(Coding::Deflate)));
        for wrong in [
            &["br"][..],
            &["gzip, gzip"],
            &["gzip", "deflate"],
            &["gzip;q=1"],
        ] {
            assert_eq!(
                coding(wrong),
                Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn answers_are_coded_as_the_caller_weighs_it() {
        for (accepted, coding) in [
            ("gzip", Some(Coding::Gzip)),
            ("deflate", Some(Coding::Deflate)),
            ("gzip, deflate, br", Some(Coding::Gzip)),
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("zstd;q=0.5, gzip", Some(Coding::Gzip)),
            ("gzip;q=0.5, deflate", Some(Coding::Deflate)),
            ("gzip;q=0, *;q=0.1", Some(Coding::Deflate)),
            ("*", Some(Coding::Gzip)),
            ("gzip;q=0", None),
            ("gzip;q=x", None),
            ("br", None),
            ("identity", None),
            ("", None),
        ] {
            let headers = headers(header::ACCEPT_ENCODING, &[accepted]);
            assert_eq!(Coding::wanted(&headers), coding, "{accepted}");
        }
        assert_eq!(Coding::wanted(&HeaderMap::new()), None);
    }

    #[test]
    fn what_is_cut_off_spoilt_or_followed_by_more_is_refused() {
        let plain = b"tensor ".repeat(100);
        for coding in ALL {
            let whole = coding.packed(&plain).expect("packed");
            for length in 0..whole.len() {
                assert!(
                    unpack(coding, &whole[..length], 7).is_err(),
                    "{coding:?} {length}"
                );
            }
            // The checksum stands at the end.
            let mut spoilt = whole.clone();
            let at = spoilt.len() - 2;
            spoilt[at] ^= 1;
            assert!(unpack(coding, &spoilt, 7).is_err(), "{coding:?}");
            let followed = [&whole[..], b"x"].concat();
            for step in [7, followed.len()] {
                assert!(unpack(coding, &followed, step).is_err(), "{coding:?}");
            }
        }
    }

    #[test]
    fn a_frame_that_needs_much_memory_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("encoder");
        encoder.window_log(27).expect("window");
        encoder.write_all(&vec![7; 200 << 20]).expect("write");
        let greedy = encoder.finish().expect("frame");
        let refused = unpack(Coding::Zstd, &greedy, 4096).expect_err("128 MiB");
        assert!(refused.to_string().contains("zstd"), "{refused}");
    }

    #[test]
    fn no_piece_is_large_however_much_a_body_swells() {
        for coding in ALL {
            let mut bomb: Bytes = coding.packed(&vec![0; 64 << 20]).expect("packed").into();
            assert!(bomb.len() < 1 << 20, "{}", bomb.len());
            let mut unpacker = Unpacker::new(coding);
            let mut total = 0;
            while !bomb.is_empty() {
                let piece = unpacker.unpack(&mut bomb).expect("piece").len();
                assert!(piece <= 128 << 10, "{piece}");
                total += piece;
            }
            total += unpacker.finish().expect("end").len();
            assert_eq!(total, 64 << 20);
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks_whatever_its_parts(
            plain in proptest::collection::vec(0u8..4, 0..100_000), step in 1usize..5000,
        ) {
            for coding in ALL {
                let packed = coding.packed(&plain).expect("packed");
                prop_assert_eq!(&unpack(coding, &packed, step).expect("unpacked"), &plain);
            }
        }

        #[test]
        fn any_bytes_are_unpacked_or_refused_in_peace(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for coding in ALL {
                let _ = unpack(coding, &bytes, 50);
            }
        }
    }
}
