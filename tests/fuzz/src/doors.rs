//! The doors: paths, JSON, tensors as text, bodies in the binary form.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use edgeward_agent::api::body::{Body, check_transfer};
use edgeward_agent::api::coding::{Coding, Unpacker};
use edgeward_agent::api::numbers;
use edgeward_agent::api::oip::infer::{Prepared, number_header, prepare};
use edgeward_agent::api::oip::inputs::Source;
use edgeward_agent::api::oip::reply::HEADER_LENGTH;
use edgeward_agent::api::oip::request::{Content, InferRequest};
use edgeward_agent::api::route::Route;
use edgeward_agent::strings;
use edgeward_models::Manifest;
use edgeward_models::manifest::{Datatype, byte_size};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Splits off the first two bytes as a small number.
fn small(data: &[u8]) -> Option<(u16, &[u8])> {
    let (first, rest) = data.split_first_chunk::<2>()?;
    Some((u16::from_le_bytes(*first), rest))
}

/// Methods and paths: whatever is found lies in the path.
pub fn path(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else {
        return;
    };
    for method in [hyper::Method::GET, hyper::Method::POST] {
        if let Ok(Route::Infer(target)) = Route::of(&method, path) {
            assert!(path.contains(target.model) && !target.model.contains('/'));
        }
    }
}

/// Headers as an HTTP library hands them over, one `name:value` a line: what they say of a body is one thing or
/// refused.
pub fn headers(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else {
            continue;
        };
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    if let Ok(Some(number)) = number_header(&headers, HEADER_LENGTH) {
        let written = headers[HEADER_LENGTH].to_str().expect("digits");
        let stripped = written.trim_start_matches('0');
        assert_eq!(
            stripped,
            if number == 0 {
                String::new()
            } else {
                number.to_string()
            }
        );
        assert_eq!(headers.get_all(HEADER_LENGTH).iter().count(), 1);
    }
    if let Ok(coding) = Coding::of_body(&headers) {
        let mut named = headers.get_all(header::CONTENT_ENCODING).iter();
        let named = named.any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
        assert!(coding.is_none() || named, "a coding that no header names");
    }
    let asks = headers.contains_key(header::ACCEPT_ENCODING);
    assert!(asks || Coding::wanted(&headers).is_none());
    if check_transfer(&headers).is_ok() {
        assert!(headers.get_all(header::TRANSFER_ENCODING).iter().count() <= 1);
    }
}

/// A compressed body in two parts, the first of the length that the second and third byte say. However it comes, it
/// swells in small pieces and becomes the same.
pub fn content_coding(data: &[u8]) {
    let Some((coding, rest)) = data.split_first() else {
        return;
    };
    let Some((cut, packed)) = small(rest) else {
        return;
    };
    let coding = if coding % 2 == 0 {
        Coding::Gzip
    } else {
        Coding::Deflate
    };
    let unpacked = |parts: [&[u8]; 2]| {
        let mut unpacker = Unpacker::new(coding);
        let mut whole = Vec::new();
        for part in parts {
            let mut part = Bytes::copy_from_slice(part);
            while !part.is_empty() {
                // A few megabytes are enough of a bomb.
                if whole.len() > 4 << 20 {
                    return None;
                }
                let piece = unpacker.unpack(&mut part).ok()?;
                assert!(piece.len() <= 128 << 10, "a piece of {} bytes", piece.len());
                whole.extend_from_slice(&piece);
            }
        }
        whole.extend_from_slice(&unpacker.finish().ok()?);
        Some(whole)
    };
    let parts = packed.split_at(usize::from(cut).min(packed.len()));
    assert_eq!(unpacked([packed, b""]), unpacked(parts.into()));
}

/// The JSON of an infer request with so many binary bytes behind it.
pub fn infer_json(data: &[u8]) {
    let Some((binary, text)) = small(data) else {
        return;
    };
    let binary = usize::from(binary);
    let Ok(request) = InferRequest::parse(text, binary) else {
        return;
    };
    let mut end = 0;
    for input in &request.inputs {
        match &input.content {
            Content::Json(range) => {
                let data = &text[range.clone()];
                assert!(data.starts_with(b"[") && data.ends_with(b"]"));
            }
            Content::Binary(range) => {
                assert_eq!(range.start, end, "a gap between binary tensors");
                end = range.end;
            }
        }
    }
    assert_eq!(end, binary, "binary bytes that belong to no tensor");
}

/// A whole body against the models that it may be for: where its JSON ends, the rest.
pub fn infer_body(data: &[u8]) {
    let Some((length, body)) = small(data) else {
        return;
    };
    // All ones: no header, the whole body is JSON.
    let length = (length != u16::MAX).then_some(u64::from(length));
    let whole = Bytes::copy_from_slice(body);
    let body = Body::from(whole.clone());
    for manifest in manifests() {
        if let Ok(prepared) = prepare(manifest, &body, length) {
            check(&prepared, whole.len());
        }
    }
}

/// The models that a request may be for.
pub fn manifests() -> &'static [Arc<Manifest>] {
    static MANIFESTS: OnceLock<Vec<Arc<Manifest>>> = OnceLock::new();
    let manifests = MANIFESTS.get_or_init(|| {
        let digits = include_bytes!("../../../models/samples/digits-1.0.0/manifest.json");
        let accumulator = include_bytes!("../../../models/samples/accumulator-1.0.0/manifest.json");
        let parsed = [&digits[..], accumulator].map(Manifest::parse);
        let mut parsed: Vec<Manifest> = parsed.into_iter().flatten().collect();
        // The same with strings.
        let mut words = parsed[0].clone();
        words.signatures[0].inputs[0].datatype = Datatype::Bytes;
        words.signatures[0].inputs[0].shape = vec![-1];
        parsed.push(words);
        parsed.into_iter().map(Arc::new).collect()
    });
    assert_eq!(manifests.len(), 3, "the samples are gone");
    manifests
}

/// What is promised of a request that was let through, whose body has `length` bytes.
pub fn check(prepared: &Prepared, length: usize) {
    let signature = prepared.wish.signature();
    let mut total = 0;
    for (spec, fill) in signature.inputs.iter().zip(&prepared.fills) {
        let shape = fill.shape.iter().map(|d| *d as u64);
        let needed = byte_size(spec.datatype, shape);
        assert!(needed.is_none_or(|needed| needed == fill.bytes as u64));
        total += fill.bytes;
        match &fill.source {
            Source::Binary(range) => {
                assert_eq!(range.len(), fill.bytes);
                assert!(range.end <= length, "a tensor outside the body");
            }
            Source::Json(range) => {
                assert!(prepared.json.get(range.clone()).is_some());
            }
            Source::Strings(bytes) => {
                strings::check(bytes, &fill.shape).expect("strings of this shape");
            }
            Source::OneString(range) => assert_eq!(range.len(), length),
        }
    }
    assert_eq!(total, prepared.bytes);
}

/// Strings as JSON text. The first byte says how many.
pub fn strings_json(data: &[u8]) {
    let Some((count, text)) = data.split_first() else {
        return;
    };
    let count = usize::from(*count);
    let Ok(bytes) = numbers::read_strings(text, count) else {
        return;
    };
    let json: Result<serde_json::Value, _> = serde_json::from_slice(text);
    json.expect("what is taken is JSON");
    strings::check(&bytes, &[count as i64]).expect("as many as were asked for");
    let mut written = Vec::new();
    numbers::write(Datatype::Bytes, &bytes, &mut written).expect("what was read can be written");
    let again = numbers::read_strings(&written, count).expect("what was written can be read");
    assert_eq!(bytes, again);
}

/// Tensor data as JSON text. The first byte says which datatype, the second how many values.
pub fn tensor_json(data: &[u8]) {
    const DATATYPES: [Datatype; 6] = [
        Datatype::Fp32,
        Datatype::Fp64,
        Datatype::Int64,
        Datatype::Uint64,
        Datatype::Int8,
        Datatype::Bool,
    ];
    let [datatype, count, text @ ..] = data else {
        return;
    };
    let datatype = DATATYPES[usize::from(*datatype) % DATATYPES.len()];
    let size = datatype.size().expect("a size");
    let mut values = vec![0; usize::from(*count) * size];
    if numbers::read(datatype, text, &mut values).is_err() {
        return;
    }
    let json: Result<&serde_json::value::RawValue, _> = serde_json::from_slice(text);
    json.expect("what is taken is JSON");
    let mut written = Vec::new();
    numbers::write(datatype, &values, &mut written).expect("what was read can be written");
    let mut again = vec![0; values.len()];
    numbers::read(datatype, &written, &mut again).expect("what was written can be read");
    assert_eq!(values, again);
}

/// A tensor of strings in the binary form, of so many elements as the first byte says. What is taken is written again
/// as it was; what is text becomes JSON and comes back from it.
pub fn strings(data: &[u8]) {
    let Some((count, bytes)) = data.split_first() else {
        return;
    };
    let count = usize::from(*count);
    if strings::check(bytes, &[count as i64]).is_err() {
        return;
    }
    let mut again = Vec::new();
    for (number, element) in strings::elements(bytes).enumerate() {
        let element = element.expect("an element that was counted");
        strings::push(&mut again, number, element).expect("as long as it was");
    }
    assert_eq!(again, bytes);
    let mut json = Vec::new();
    if numbers::write(Datatype::Bytes, bytes, &mut json).is_ok() {
        let back = numbers::read_strings(&json, count).expect("what was written can be read");
        assert_eq!(back, bytes);
    }
}
