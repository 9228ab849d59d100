//! The JSON of an infer request, read and checked as far as no model is needed for it.
//!
//! What is understood is honoured, everything else is refused by name: a parameter or member that were
//! quietly ignored would let a client believe in something that does not happen.
//!
//! | parameters | of | meaning |
//! |---|---|---|
//! | `binary_data_output` | the request | outputs come back binary unless they say otherwise |
//! | `timeout` | the request | microseconds from its arrival to its answer; 0: the device's default |
//! | `priority` | the request | only 0: there is one queue |
//! | `signature_name` | the request | which signature of the model; absent: its first |
//! | `sequence_id` | the request | for a model that keeps state: which sequence it belongs to, a number or a text; 0 and "": none |
//! | `sequence_start`, `sequence_end` | the request | it is the first, the last of its sequence |
//! | `binary_data_size` | an input | its bytes follow the JSON, in the order of the inputs |
//! | `binary_data` | an output | binary or JSON |

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use edgeward_models::manifest::MAX_DIMENSIONS;

use crate::api::error::ApiError;
use crate::api::json::{Reader, Scalar};
use crate::serving::{Sequence, SequenceId};

/// More tensors than this in one request are refused.
const MAX_TENSORS: usize = 256;
/// The longest `id` that is echoed.
pub const MAX_ID_BYTES: usize = 1024;

/// An infer request as it stands in the JSON.
#[derive(Debug, Default)]
pub struct InferRequest<'a> {
    pub id: Option<Cow<'a, str>>,
    /// KServe's clients repeat the path here.
    pub model: Option<Cow<'a, str>>,
    pub inputs: Vec<Input<'a>>,
    /// Empty: all.
    pub outputs: Vec<Output<'a>>,
    pub binary_by_default: bool,
    pub timeout: Option<Duration>,
    pub signature: Option<Cow<'a, str>>,
    pub sequence: Option<Sequence>,
}

#[derive(Debug, PartialEq)]
pub struct Input<'a> {
    pub name: Cow<'a, str>,
    pub datatype: Cow<'a, str>,
    pub shape: Vec<i64>,
    pub content: Content,
}

/// Where an input's values are.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A JSON array at this place of the JSON text.
    Json(Range<usize>),
    /// This place of the binary part.
    Binary(Range<usize>),
}

#[derive(Debug, PartialEq)]
pub struct Output<'a> {
    pub name: Cow<'a, str>,
    pub binary: Option<bool>,
}

impl<'a> InferRequest<'a> {
    /// Reads the JSON of a request whose binary part has `binary_bytes` bytes.
    pub fn parse(text: &'a [u8], binary_bytes: usize) -> Result<Self, ApiError> {
        let mut request = Self::default();
        let mut inputs_seen = false;
        let mut binary_end = 0usize;
        let mut reader = Reader::new(text);
        reader.object("a JSON object with inputs", |reader, key| match key {
            "id" => request.read_id(reader),
            "model_name" => {
                request.model = Some(reader.string("the name of a model")?);
                Ok(())
            }
            "parameters" => request.read_parameters(reader),
            "inputs" => {
                inputs_seen = true;
                let inputs = &mut request.inputs;
                reader.array("an array of inputs", |reader| {
                    at_most(inputs.len(), "inputs")?;
                    inputs.push(read_input(reader, inputs.len(), &mut binary_end)?);
                    Ok(())
                })
            }
            "outputs" if reader.null() => Ok(()),
            "outputs" => {
                let outputs = &mut request.outputs;
                reader.array("an array of outputs", |reader| {
                    at_most(outputs.len(), "outputs")?;
                    outputs.push(read_output(reader, outputs.len())?);
                    Ok(())
                })
            }
            other => Err(ApiError::invalid(format!(
                "the request has a member {other:?}; id, model_name, parameters, inputs and outputs are known"
            ))),
        })?;
        reader.end()?;
        if !inputs_seen {
            return Err(ApiError::invalid("the request has no inputs"));
        }
        if binary_end != binary_bytes {
            return Err(ApiError::invalid(format!(
                "the inputs' binary_data_size are {binary_end} bytes together, and {binary_bytes} bytes \
                 follow the JSON"
            )));
        }
        Ok(request)
    }

    fn read_id(&mut self, reader: &mut Reader<'a>) -> Result<(), ApiError> {
        self.id = match reader.scalar()? {
            Scalar::Null => None,
            Scalar::Text(id) if id.len() <= MAX_ID_BYTES => Some(id),
            Scalar::Text(_) => {
                return Err(ApiError::invalid(format!(
                    "id is longer than {MAX_ID_BYTES} bytes"
                )));
            }
            _ => return Err(ApiError::invalid("id must be a string")),
        };
        Ok(())
    }

    fn read_parameters(&mut self, reader: &mut Reader<'a>) -> Result<(), ApiError> {
        if reader.null() {
            return Ok(());
        }
        let mut sequence = Sequence {
            id: SequenceId::Number(0),
            start: false,
            end: false,
        };
        reader.object("an object of parameters", |reader, key| {
            let value = reader.scalar()?;
            self.parameter(key, value, &mut sequence)
        })?;
        self.in_sequence(sequence)
    }

    /// Honours one parameter of the request, or refuses it.
    pub fn parameter(
        &mut self,
        key: &str,
        value: Scalar<'a>,
        sequence: &mut Sequence,
    ) -> Result<(), ApiError> {
        match key {
            "binary_data_output" => {
                self.binary_by_default = value
                    .as_bool()
                    .ok_or_else(|| wrong_type(key, "true or false"))?;
            }
            "timeout" => {
                let micros = value
                    .as_u64()
                    .ok_or_else(|| wrong_type(key, "a whole number of microseconds"))?;
                self.timeout = (micros > 0).then(|| Duration::from_micros(micros));
            }
            "priority" => match value.as_u64() {
                Some(0) => {}
                Some(_) => {
                    return Err(ApiError::invalid(
                        "parameter priority: this server has one queue and takes only 0",
                    ));
                }
                None => return Err(wrong_type(key, "a whole number")),
            },
            "signature_name" => match value {
                Scalar::Text(name) => self.signature = Some(name),
                _ => return Err(wrong_type(key, "a string")),
            },
            "sequence_id" => {
                sequence.id = match value {
                    Scalar::Text(id) if id.len() <= MAX_ID_BYTES => {
                        SequenceId::Text(id.into_owned())
                    }
                    other => SequenceId::Number(other.as_u64().ok_or_else(|| {
                        wrong_type(key, "a whole number or a string of at most 1024 bytes")
                    })?),
                }
            }
            "sequence_start" | "sequence_end" => {
                let is = value.as_bool();
                let is = is.ok_or_else(|| wrong_type(key, "true or false"))?;
                let place = match key {
                    "sequence_start" => &mut sequence.start,
                    _ => &mut sequence.end,
                };
                *place = is;
            }
            _ => {
                return Err(ApiError::invalid(format!(
                    "parameter {key:?} of the request is not supported by this server"
                )));
            }
        }
        Ok(())
    }

    /// Takes the parameters of a sequence, once all are known.
    pub fn in_sequence(&mut self, sequence: Sequence) -> Result<(), ApiError> {
        let none = match &sequence.id {
            SequenceId::Number(id) => *id == 0,
            SequenceId::Text(id) => id.is_empty(),
        };
        if none && (sequence.start || sequence.end) {
            return Err(ApiError::invalid(
                "parameters sequence_start and sequence_end need a sequence_id other than 0",
            ));
        }
        self.sequence = (!none).then_some(sequence);
        Ok(())
    }
}

pub fn at_most(count: usize, what: &str) -> Result<(), ApiError> {
    if count < MAX_TENSORS {
        Ok(())
    } else {
        Err(ApiError::invalid(format!("more than {MAX_TENSORS} {what}")))
    }
}

fn wrong_type(key: &str, expected: &str) -> ApiError {
    ApiError::invalid(format!("parameter {key} must be {expected}"))
}

/// Why a tensor parameter is not honoured.
pub fn tensor_parameter_refused(key: &str) -> String {
    match key {
        "shared_memory_region" | "shared_memory_byte_size" | "shared_memory_offset" => {
            format!("parameter {key}: shared memory is not supported by this server")
        }
        "classification" => {
            "parameter classification is not supported by this server: sort the output instead"
                .to_owned()
        }
        _ => format!("parameter {key:?} is not supported by this server"),
    }
}

fn read_input<'a>(
    reader: &mut Reader<'a>,
    index: usize,
    binary_end: &mut usize,
) -> Result<Input<'a>, ApiError> {
    let mut name = None;
    let mut datatype = None;
    let mut shape = None;
    let mut data = None;
    let mut size = None;
    // What is wrong is told with the tensor's name, which may stand further on.
    let mut problem: Option<String> = None;
    reader.object::<ApiError>("an object that describes an input", |reader, key| {
        match key {
            "name" => name = Some(reader.string("the input's name")?),
            "datatype" => datatype = Some(reader.string("the input's datatype")?),
            "shape" => {
                let mut dimensions = Vec::with_capacity(4);
                reader.array::<ApiError>("an array of dimensions", |reader| {
                    let dimension = reader.u64("a dimension, an integer of at least 0")?;
                    if dimensions.len() == MAX_DIMENSIONS {
                        problem.get_or_insert_with(|| {
                            format!("its shape has more than {MAX_DIMENSIONS} dimensions")
                        });
                    } else {
                        dimensions.push(i64::try_from(dimension).unwrap_or(i64::MAX));
                    }
                    Ok(())
                })?;
                shape = Some(dimensions);
            }
            "data" => data = Some(reader.array_extent()?),
            "parameters" if reader.null() => {}
            "parameters" => reader.object::<ApiError>("an object of parameters", |reader, key| {
                let value = reader.scalar()?;
                if key != "binary_data_size" {
                    problem.get_or_insert_with(|| tensor_parameter_refused(key));
                } else if let Some(bytes) = value.as_u64().and_then(|b| usize::try_from(b).ok()) {
                    size = Some(bytes);
                } else {
                    problem.get_or_insert_with(|| {
                        "parameter binary_data_size must be a whole number of bytes".to_owned()
                    });
                }
                Ok(())
            })?,
            other => {
                return Err(ApiError::invalid(format!(
                    "input {index} has a member {other:?}; name, datatype, shape, data and parameters \
                     are known"
                )));
            }
        }
        Ok(())
    })?;
    let name = name.ok_or_else(|| ApiError::invalid(format!("input {index} has no name")))?;
    let fail = |problem: String| Err(ApiError::invalid(format!("input {name:?}: {problem}")));
    if let Some(problem) = problem {
        return fail(problem);
    }
    let Some(datatype) = datatype else {
        return fail("it has no datatype".to_owned());
    };
    let Some(shape) = shape else {
        return fail("it has no shape".to_owned());
    };
    let content = match (data, size) {
        (Some(data), None) => Content::Json(data),
        (None, Some(size)) => {
            let start = *binary_end;
            let Some(end) = start.checked_add(size) else {
                return fail("binary_data_size is absurd".to_owned());
            };
            *binary_end = end;
            Content::Binary(start..end)
        }
        (Some(_), Some(_)) => {
            return fail("it has both data and binary_data_size".to_owned());
        }
        (None, None) => return fail("it has neither data nor binary_data_size".to_owned()),
    };
    Ok(Input {
        name,
        datatype,
        shape,
        content,
    })
}

fn read_output<'a>(reader: &mut Reader<'a>, index: usize) -> Result<Output<'a>, ApiError> {
    let mut name = None;
    let mut binary = None;
    let mut problem: Option<String> = None;
    reader.object::<ApiError>("an object that names an output", |reader, key| {
        match key {
            "name" => name = Some(reader.string("the output's name")?),
            "parameters" if reader.null() => {}
            "parameters" => {
                reader.object::<ApiError>("an object of parameters", |reader, key| {
                    let value = reader.scalar()?;
                    if key != "binary_data" {
                        problem.get_or_insert_with(|| tensor_parameter_refused(key));
                    } else if let Some(wish) = value.as_bool() {
                        binary = Some(wish);
                    } else {
                        problem.get_or_insert_with(|| {
                            "parameter binary_data must be true or false".to_owned()
                        });
                    }
                    Ok(())
                })?
            }
            other => {
                return Err(ApiError::invalid(format!(
                    "output {index} has a member {other:?}; name and parameters are known"
                )));
            }
        }
        Ok(())
    })?;
    let name = name.ok_or_else(|| ApiError::invalid(format!("output {index} has no name")))?;
    match problem {
        Some(problem) => Err(ApiError::invalid(format!("output {name:?}: {problem}"))),
        None => Ok(Output { name, binary }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(text: &str, binary: usize) -> String {
        match InferRequest::parse(text.as_bytes(), binary) {
            Ok(_) => panic!("{text} was taken"),
            Err(error) => {
                assert_eq!(error.status, 400);
                error.text
            }
        }
    }

    #[test]
    fn members_may_come_in_any_order() {
        let text = r#"{"outputs":[{"parameters":{"binary_data":true},"name":"y"}],
            "inputs":[{"data":[1,2],"shape":[2],"name":"x","datatype":"FP32"},
                      {"parameters":{"binary_data_size":8},"datatype":"INT64","shape":[],"name":"n"}],
            "parameters":{"timeout":1500,"binary_data_output":true,"priority":0,"signature_name":"s"},
            "id":"a\u0042","model_name":"m"}"#;
        let request = InferRequest::parse(text.as_bytes(), 8).expect("request");
        assert_eq!(request.id.as_deref(), Some("aB"));
        assert_eq!(request.model.as_deref(), Some("m"));
        assert_eq!(request.timeout, Some(Duration::from_micros(1500)));
        assert_eq!(request.signature.as_deref(), Some("s"));
        assert!(request.binary_by_default);
        assert_eq!(request.inputs[0].shape, [2]);
        let Content::Json(data) = request.inputs[0].content.clone() else {
            panic!("json");
        };
        assert_eq!(&text[data], "[1,2]");
        assert_eq!(request.inputs[1].content, Content::Binary(0..8));
        assert_eq!(request.outputs[0].binary, Some(true));
    }

    #[test]
    fn every_wrong_request_says_what_is_wrong_and_with_which_tensor() {
        let input = |members: &str| format!(r#"{{"inputs":[{{{members}}}]}}"#);
        for (text, says) in [
            ("".to_owned(), "a JSON object"),
            ("[]".to_owned(), "a JSON object"),
            ("{}".to_owned(), "no inputs"),
            (r#"{"inputs":[]}x"#.to_owned(), "follows"),
            (r#"{"inputs":[],"inputs":[]}"#.to_owned(), "twice"),
            (r#"{"inputs":[],"output":[]}"#.to_owned(), "\"output\""),
            (r#"{"inputs":[],"id":5}"#.to_owned(), "id must be a string"),
            (
                r#"{"inputs":[],"parameters":{"sequence_id":-1}}"#.to_owned(),
                "sequence_id",
            ),
            (
                r#"{"inputs":[],"parameters":{"sequence_id":1,"sequence_end":1}}"#.to_owned(),
                "sequence_end",
            ),
            (
                r#"{"inputs":[],"parameters":{"sequence_start":true}}"#.to_owned(),
                "need a sequence_id",
            ),
            (
                r#"{"inputs":[],"parameters":{"priority":1}}"#.to_owned(),
                "priority",
            ),
            (
                r#"{"inputs":[],"parameters":{"timeout":-1}}"#.to_owned(),
                "timeout",
            ),
            (
                r#"{"inputs":[],"parameters":{"foo":1}}"#.to_owned(),
                "\"foo\"",
            ),
            (
                r#"{"inputs":[],"parameters":{"foo":{}}}"#.to_owned(),
                "expected a string",
            ),
            (input(r#""datatype":"FP32""#), "no name"),
            (
                input(r#""name":"x","shape":[1],"data":[1]"#),
                "input \"x\": it has no datatype",
            ),
            (
                input(r#""name":"x","datatype":"FP32","data":[1]"#),
                "input \"x\": it has no shape",
            ),
            (
                input(r#""name":"x","datatype":"FP32","shape":[1]"#),
                "input \"x\": it has neither",
            ),
            (
                input(r#""name":"x","datatype":"FP32","shape":[-1],"data":[1]"#),
                "a dimension",
            ),
            (
                input(r#""name":"x","datatype":"FP32","shape":[1.5],"data":[1]"#),
                "a dimension",
            ),
            (
                input(r#""name":"x","datatype":"FP32","shape":[1,1,1,1,1,1,1,1,1],"data":[1]"#),
                "input \"x\": its shape has more than 8",
            ),
            (
                input(r#""parameters":{"shared_memory_region":"r"},"name":"x""#),
                "input \"x\": parameter shared_memory_region",
            ),
            (
                input(
                    r#""name":"x","datatype":"FP32","shape":[1],"data":[1],"parameters":{"binary_data_size":4}"#,
                ),
                "input \"x\": it has both",
            ),
            (
                input(
                    r#""name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4.0}"#,
                ),
                "input \"x\": parameter binary_data_size",
            ),
            (
                r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":3}}]}"#
                    .to_owned(),
                "output \"y\": parameter classification",
            ),
            (input(r#""name":"x","dta":[1]"#), "\"dta\""),
        ] {
            let refusal = refusal(&text, 0);
            assert!(refusal.contains(says), "{text}: {refusal}");
        }
    }

    #[test]
    fn binary_sizes_must_be_the_bytes_that_follow() {
        let text = |size: &str| {
            format!(
                r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"parameters":{{"binary_data_size":{size}}}}}]}}"#
            )
        };
        assert!(InferRequest::parse(text("4").as_bytes(), 4).is_ok());
        assert!(refusal(&text("4"), 5).contains("5 bytes follow"));
        assert!(refusal(&text("18446744073709551615"), 4).contains("18446744073709551615"));
        assert!(refusal(&text("18446744073709551616"), 4).contains("binary_data_size"));
        let two = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":18446744073709551615}},
            {"name":"z","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}"#;
        assert!(refusal(two, 3).contains("absurd"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused_in_peace(text in proptest::collection::vec(any::<u8>(), 0..300), binary in any::<usize>()) {
            let _ = InferRequest::parse(&text, binary);
        }

        #[test]
        fn almost_right_requests_are_taken_or_refused_in_peace(
            cut in 0usize..200, insert in "[\\[\\]{},:\"0-9a-z.]{0,3}",
        ) {
            let mut text = r#"{"id":"1","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[[1,2]]},{"name":"b","shape":[4],"datatype":"INT8","parameters":{"binary_data_size":4}}]}"#.to_owned();
            let at = cut.min(text.len());
            text.insert_str(at, &insert);
            if let Ok(request) = InferRequest::parse(text.as_bytes(), 4) {
                for input in request.inputs {
                    if let Content::Json(range) = input.content {
                        prop_assert!(text.as_bytes().get(range).is_some());
                    }
                }
            }
        }
    }
}
