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
//! | `sticky_key` | the request | requests with the same one that name no version go to the same one: a text or a whole number |
//! | `binary_data_size` | an input | its bytes follow the JSON, in the order of the inputs |
//! | `binary_data` | an output | binary or JSON |
//! | `classification` | an output | so many of its largest values, as text ([`super::classes`]); 0: the output as it is |

use std::borrow::Cow;
use std::ops::Range;
use std::time::Duration;

use crate::api::destination::MAX_KEY_BYTES;
use crate::api::error::ApiError;
use crate::api::json::{Reader, Scalar};
use crate::serving::{Sequence, SequenceId, StickyKey};

mod tensors;

pub use tensors::tensor_parameter_refused;
use tensors::{read_input, read_output};

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
    pub sticky_key: Option<StickyKey>,
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
    /// Only so many of the largest values, as text.
    pub classes: Option<usize>,
}

impl<'a> Output<'a> {
    /// As it is.
    pub const fn named(name: Cow<'a, str>) -> Self {
        Self {
            name,
            binary: None,
            classes: None,
        }
    }

    /// Honours one parameter of an output, or says what is wrong with it.
    pub fn parameter(&mut self, key: &str, value: &Scalar<'_>) -> Result<(), String> {
        match key {
            "binary_data" => {
                let wish = value.as_bool();
                self.binary = Some(wish.ok_or("parameter binary_data must be true or false")?);
            }
            "classification" => {
                let most = value.as_u64().and_then(|most| usize::try_from(most).ok());
                let most = most.ok_or("parameter classification must be a whole number")?;
                // As Triton has it, 0 asks for none.
                self.classes = (most > 0).then_some(most);
            }
            _ => return Err(tensor_parameter_refused(key)),
        }
        Ok(())
    }
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
            "sticky_key" => {
                self.sticky_key = Some(match value {
                    Scalar::Text(text) if (1..=MAX_KEY_BYTES).contains(&text.len()) => {
                        StickyKey::of(text.as_bytes())
                    }
                    other => {
                        let number = other.as_u64().ok_or_else(|| {
                            wrong_type(key, "a whole number or a string of 1 to 1024 bytes")
                        })?;
                        StickyKey::of(number.to_string().as_bytes())
                    }
                });
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

#[cfg(test)]
mod tests;
