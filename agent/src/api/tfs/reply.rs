//! The answer as TensorFlow Serving writes it: nested lists, by rows or as whole tensors.

use bytes::Bytes;
use edgeward_models::manifest::{Datatype, TensorSpec};
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use super::request::Answered;
use crate::api::error::ApiError;
use crate::api::numbers;
use crate::api::oip::reply::{Wish, names};
use crate::serving::Answer;
use crate::strings;

/// Outputs whose name ends so are bytes, in base64.
const BYTES_SUFFIX: &str = "_bytes";

/// An output that is being written, value by value.
struct Output<'a> {
    spec: &'a TensorSpec,
    shape: &'a [i64],
    /// What is not written yet.
    rest: &'a [u8],
}

pub fn build(
    answer: &Answer,
    wish: &Wish,
    form: Answered,
) -> Result<Response<Full<Bytes>>, ApiError> {
    let specs = &wish.signature().outputs;
    let outputs = wish.outputs.iter().map(|wished| Output {
        spec: &specs[wished.index],
        shape: answer.shape(wished.index),
        rest: answer.output(wished.index),
    });
    let body = body(outputs.collect(), form)?;
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

fn body(mut outputs: Vec<Output<'_>>, form: Answered) -> Result<Vec<u8>, ApiError> {
    let mut out = Vec::new();
    match form {
        Answered::Columns => {
            out.extend_from_slice(b"{\"outputs\":");
            match outputs.as_mut_slice() {
                [only] => only.nested(only.shape, &mut out)?,
                several => object(
                    several,
                    |output, out| output.nested(output.shape, out),
                    &mut out,
                )?,
            }
        }
        Answered::Rows => {
            let rows = rows(&outputs)?;
            out.extend_from_slice(b"{\"predictions\":");
            match outputs.as_mut_slice() {
                [only] => only.nested(only.shape, &mut out)?,
                several => list(rows, &mut out, |out| {
                    object(
                        several,
                        |output, out| output.nested(&output.shape[1..], out),
                        out,
                    )
                })?,
            }
        }
        Answered::Values => {
            let [only] = outputs.as_mut_slice() else {
                return Err(unfit(&outputs, "one number for each row"));
            };
            if !matches!(only.shape, [_] | [_, 1]) || is_string(only) {
                return Err(unfit(&outputs, "one number for each row"));
            }
            let rows = only.shape[0];
            out.extend_from_slice(b"{\"results\":");
            list(rows, &mut out, |out| only.value(out))?;
        }
        Answered::Classes => {
            out.extend_from_slice(b"{\"results\":");
            classes(outputs, &mut out)?;
        }
    }
    out.push(b'}');
    Ok(out)
}

/// For each row its classes: a label and a score each.
fn classes(mut outputs: Vec<Output<'_>>, out: &mut Vec<u8>) -> Result<(), ApiError> {
    const WANTED: &str = "a score for each class of each row (and their names)";
    outputs.sort_by_key(is_string);
    let (scores, mut labels) = match outputs.as_mut_slice() {
        [scores] => (scores, None),
        [scores, labels] if is_string(labels) && labels.shape == scores.shape => {
            (scores, Some(labels))
        }
        _ => return Err(unfit(&outputs, WANTED)),
    };
    let &[rows, classes] = scores.shape else {
        return Err(unfit(&outputs, WANTED));
    };
    if is_string(scores) {
        return Err(unfit(&outputs, WANTED));
    }
    list(rows, out, |out| {
        let mut class = 0;
        list(classes, out, |out| {
            out.push(b'[');
            match &mut labels {
                Some(labels) => labels.value(out)?,
                None => out.extend_from_slice(format!("\"{class}\"").as_bytes()),
            }
            out.push(b',');
            scores.value(out)?;
            out.push(b']');
            class += 1;
            Ok(())
        })
    })
}

fn is_string(output: &Output<'_>) -> bool {
    output.spec.datatype == Datatype::Bytes
}

/// How many rows all outputs have.
fn rows(outputs: &[Output<'_>]) -> Result<i64, ApiError> {
    let mut counts = outputs.iter().map(|output| output.shape.first());
    let first = counts.next().flatten();
    match first {
        Some(rows) if counts.all(|count| count == Some(rows)) => Ok(*rows),
        _ => Err(unfit(outputs, "a value for each row")),
    }
}

fn unfit(outputs: &[Output<'_>], wanted: &str) -> ApiError {
    let specs: Vec<_> = outputs.iter().map(|output| output.spec.clone()).collect();
    let shapes: Vec<_> = outputs.iter().map(|output| output.shape).collect();
    ApiError::invalid(format!(
        "the outputs {} of the shapes {shapes:?} are not {wanted}: ask with :predict and inputs",
        names(&specs)
    ))
}

fn list(
    count: i64,
    out: &mut Vec<u8>,
    mut element: impl FnMut(&mut Vec<u8>) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    out.push(b'[');
    for number in 0..count {
        if number > 0 {
            out.push(b',');
        }
        element(out)?;
    }
    out.push(b']');
    Ok(())
}

fn object<'a>(
    outputs: &mut [Output<'a>],
    mut value: impl FnMut(&mut Output<'a>, &mut Vec<u8>) -> Result<(), ApiError>,
    out: &mut Vec<u8>,
) -> Result<(), ApiError> {
    for (number, output) in outputs.iter_mut().enumerate() {
        out.push(if number == 0 { b'{' } else { b',' });
        // Writing into memory does not fail.
        let _ = serde_json::to_writer(&mut *out, &output.spec.name);
        out.push(b':');
        value(output, out)?;
    }
    out.push(b'}');
    Ok(())
}

impl<'a> Output<'a> {
    /// The bytes of the next `count` values.
    fn take(&mut self, count: usize) -> &'a [u8] {
        let length = match self.spec.datatype.size() {
            Some(size) => size.saturating_mul(count),
            None => strings::elements(self.rest)
                .take(count)
                .map(|element| strings::LENGTH + element.map_or(0, <[u8]>::len))
                .sum(),
        };
        let (taken, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// The next values as lists of this shape.
    fn nested(&mut self, shape: &[i64], out: &mut Vec<u8>) -> Result<(), ApiError> {
        match shape {
            [] => self.value(out),
            [count] => {
                let count = usize::try_from(*count).unwrap_or(0);
                if is_string(self) && self.spec.name.ends_with(BYTES_SUFFIX) {
                    return list(count as i64, out, |out| self.value(out));
                }
                let values = self.take(count);
                self.write(values, out)
            }
            [count, rest @ ..] => list(*count, out, |out| self.nested(rest, out)),
        }
    }

    /// The next value by itself.
    fn value(&mut self, out: &mut Vec<u8>) -> Result<(), ApiError> {
        let value = self.take(1);
        if is_string(self) && self.spec.name.ends_with(BYTES_SUFFIX) {
            use base64::Engine as _;
            let bytes = value.get(strings::LENGTH..).unwrap_or_default();
            let text = base64::engine::general_purpose::STANDARD.encode(bytes);
            out.extend_from_slice(format!("{{\"b64\":\"{text}\"}}").as_bytes());
            return Ok(());
        }
        let start = out.len();
        self.write(value, out)?;
        // It was written as a list of one.
        out.pop();
        out.remove(start);
        Ok(())
    }

    fn write(&self, values: &[u8], out: &mut Vec<u8>) -> Result<(), ApiError> {
        numbers::write(self.spec.datatype, values, out).map_err(|error| {
            ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!(
                    "output {:?}: {error}, which JSON cannot write: ask over gRPC, or for binary data",
                    self.spec.name
                ),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, datatype: Datatype) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            datatype,
            shape: vec![-1],
            quantization: None,
        }
    }

    fn written(
        outputs: &[(&TensorSpec, &[i64], &[u8])],
        form: Answered,
    ) -> Result<String, ApiError> {
        let outputs = outputs
            .iter()
            .map(|(spec, shape, rest)| Output { spec, shape, rest });
        let body = body(outputs.collect(), form)?;
        Ok(String::from_utf8(body).expect("text"))
    }

    fn words(all: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, word) in all.iter().enumerate() {
            strings::push(&mut bytes, number, word).expect("short");
        }
        bytes
    }

    #[test]
    fn values_are_nested_as_their_shape_says() {
        let numbers = spec("n", Datatype::Int8);
        let text = spec("t", Datatype::Bytes);
        let bytes = spec("image_bytes", Datatype::Bytes);
        let words = words(&[b"a", b"\xff", b"c", b""]);
        let both: &[(&TensorSpec, &[i64], &[u8])] = &[
            (&numbers, &[2, 2], &[1, 2, 3, 0xff]),
            (&bytes, &[2, 1, 2], &words),
        ];
        for (outputs, form, expected) in [
            (
                &both[..1],
                Answered::Columns,
                r#"{"outputs":[[1,2],[3,-1]]}"#,
            ),
            (
                &both[..1],
                Answered::Rows,
                r#"{"predictions":[[1,2],[3,-1]]}"#,
            ),
            (
                both,
                Answered::Columns,
                r#"{"outputs":{"n":[[1,2],[3,-1]],"image_bytes":[[[{"b64":"YQ=="},{"b64":"/w=="}]],[[{"b64":"Yw=="},{"b64":""}]]]}}"#,
            ),
            (
                both,
                Answered::Rows,
                r#"{"predictions":[{"n":[1,2],"image_bytes":[[{"b64":"YQ=="},{"b64":"/w=="}]]},{"n":[3,-1],"image_bytes":[[{"b64":"Yw=="},{"b64":""}]]}]}"#,
            ),
            (
                &both[..1],
                Answered::Classes,
                r#"{"results":[[["0",1],["1",2]],[["0",3],["1",-1]]]}"#,
            ),
            (
                &[(&numbers, &[2, 1], &[7, 8])],
                Answered::Values,
                r#"{"results":[7,8]}"#,
            ),
            (
                &[(&numbers, &[], &[7])],
                Answered::Columns,
                r#"{"outputs":7}"#,
            ),
            (
                &[(&numbers, &[0], &[])],
                Answered::Columns,
                r#"{"outputs":[]}"#,
            ),
        ] {
            assert_eq!(written(outputs, form).expect(expected), expected);
        }
        // Not text, and not called bytes.
        let error = written(&[(&text, &[4], &words)], Answered::Columns).expect_err("no text");
        assert_eq!(error.status, 422);
        for (outputs, form) in [
            (both, Answered::Values),
            (both, Answered::Classes),
            (&both[1..], Answered::Classes),
            (&[(&numbers, &[][..], &[7][..])], Answered::Rows),
            (&[(&numbers, &[2, 2], &[1, 2, 3, 4])], Answered::Values),
        ] {
            let error = written(outputs, form).expect_err("unfit");
            assert_eq!(error.status, 400, "{}", error.text);
        }
    }

    #[test]
    fn names_of_classes_stand_beside_their_scores() {
        let (scores, labels) = (spec("s", Datatype::Uint8), spec("l", Datatype::Bytes));
        let words = words(&[b"cat", b"dog"]);
        let outputs: &[(&TensorSpec, &[i64], &[u8])] =
            &[(&labels, &[1, 2], &words), (&scores, &[1, 2], &[3, 4])];
        let text = written(outputs, Answered::Classes).expect("classes");
        assert_eq!(text, r#"{"results":[[["cat",3],["dog",4]]]}"#);
    }
}
