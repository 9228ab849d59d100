//! The JSON of a request: rows or whole tensors, read into what the Open Inference Protocol knows.
//!
//! A tensor's datatype is the model's and its shape that of its lists. Where a tensor stands in the text as a whole
//! it is read from there; rows that are objects, and single values, are put together as lists first. Nothing here
//! takes more memory than a few times the body.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use edgeward_models::Manifest;
use edgeward_models::manifest::{Datatype, Signature, TensorSpec};

use super::{shape, signature};
use crate::api::body::Body;
use crate::api::error::ApiError;
use crate::api::grpc::values::Out;
use crate::api::json::{JsonError, Reader};
use crate::api::oip::infer::{Prepared, checked};
use crate::api::oip::reply::names;
use crate::api::oip::request::{Content, InferRequest, Input};

/// Which question a body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Predict,
    Classify,
    Regress,
}

/// In which form the answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// `predictions`, one for each row.
    Rows,
    /// `outputs`, whole tensors.
    Columns,
    /// `results`: labels and scores for each row.
    Classes,
    /// `results`: a number for each row.
    Values,
}

/// A name and where its value stands.
type Named<'a> = (Cow<'a, str>, Range<usize>);

/// A body as it stands there; ranges are places of its text.
#[derive(Default)]
struct Request<'a> {
    signature: Option<Cow<'a, str>>,
    tensors: Option<(Answered, Tensors<'a>)>,
    context: Vec<Named<'a>>,
}

enum Tensors<'a> {
    /// The only input of the model.
    One(Range<usize>),
    Named(Vec<Named<'a>>),
    /// So many rows; of each input, the value in each.
    Rows(usize, Vec<(Cow<'a, str>, Vec<Range<usize>>)>),
}

/// Reads a whole body for the model of `manifest`. The body that comes back is what the prepared request stands in.
pub fn prepare(
    manifest: &Arc<Manifest>,
    body: Body,
    form: Form,
) -> Result<(Prepared, Body, Answered), ApiError> {
    let text = body.joined();
    let request = Request::parse(&text, form)?;
    let wanted = signature(request.signature.as_deref(), manifest);
    let known = match wanted {
        None => manifest.default_signature(),
        // One that is not there is refused with all that are.
        Some(name) => {
            let mut signatures = manifest.signatures.iter();
            let found = signatures.find(|signature| signature.name == name);
            found.unwrap_or_else(|| manifest.default_signature())
        }
    };
    let Some((answered, tensors)) = request.tensors else {
        return Err(missing(form));
    };
    let rows = match &tensors {
        Tensors::Rows(rows, _) => *rows,
        _ => 0,
    };
    let (json, places) = laid_out(tensors, request.context, &text, known)?;
    let mut typed = Vec::new();
    let mut inputs = Vec::with_capacity(places.len());
    for (name, place) in places {
        let problem = |what: String| ApiError::invalid(format!("input {name:?}: {what}"));
        let spec = known.inputs.iter().find(|spec| spec.name == name);
        let value = json.get(place.clone()).unwrap_or_default();
        let nested = shape::of(value).map_err(problem)?;
        let shape = match spec {
            // Features are lists of values, whatever shape the model gives them.
            Some(spec) if form != Form::Predict => features_shape(spec, rows, nested.shape),
            _ => nested.shape,
        };
        let content = match spec.filter(|spec| nested.has_objects && is_string(spec)) {
            None => Content::Json(place),
            Some(_) => {
                let start = typed.len();
                let mut out = Out::new(&mut typed, manifest);
                strings(&mut Reader::new(value), &mut out).map_err(|e| problem(e.text))?;
                Content::Binary(start..typed.len())
            }
        };
        inputs.push(Input {
            datatype: spec.map_or("", |spec| spec.datatype.name()).into(),
            name,
            shape,
            content,
        });
    }
    let request = InferRequest {
        inputs,
        signature: wanted.map(Cow::Borrowed),
        ..InferRequest::default()
    };
    let prepared = checked(manifest, request, json.clone())?;
    let mut body = body.rewritten(json.clone());
    body.append(typed);
    Ok((prepared, body, answered))
}

fn missing(form: Form) -> ApiError {
    ApiError::invalid(match form {
        Form::Predict => "the request has neither instances nor inputs",
        Form::Classify | Form::Regress => "the request has no examples",
    })
}

fn is_string(spec: &TensorSpec) -> bool {
    spec.datatype == Datatype::Bytes
}

fn features_shape(spec: &TensorSpec, rows: usize, nested: Vec<i64>) -> Vec<i64> {
    match spec.shape.split_first() {
        Some((_, rest)) if rest.iter().all(|dimension| *dimension > 0) => {
            let rows = i64::try_from(rows).unwrap_or(i64::MAX);
            [&[rows], rest].concat()
        }
        _ => nested,
    }
}

/// Where each tensor stands as one list, and in which text.
fn laid_out<'a>(
    tensors: Tensors<'a>,
    context: Vec<Named<'a>>,
    text: &Bytes,
    signature: &Signature,
) -> Result<(Bytes, Vec<Named<'a>>), ApiError> {
    let whole = match tensors {
        Tensors::One(place) => {
            let [only] = signature.inputs.as_slice() else {
                return Err(ApiError::invalid(format!(
                    "this model has the inputs {}: each value needs its input's name",
                    names(&signature.inputs)
                )));
            };
            vec![(Cow::Owned(only.name.clone()), place)]
        }
        Tensors::Named(named) => named,
        Tensors::Rows(rows, mut columns) => {
            columns.extend(
                context
                    .into_iter()
                    .map(|(name, place)| (name, vec![place; rows])),
            );
            let mut lists = Vec::new();
            let places = columns.into_iter().map(|(name, values)| {
                let values = values.into_iter().map(|place| &text[place]);
                (name, push_list(values, &mut lists))
            });
            let places = places.collect();
            return Ok((lists.into(), places));
        }
    };
    let is_list = |place: &Range<usize>| text.get(place.start) == Some(&b'[');
    if whole.iter().all(|(_, place)| is_list(place)) {
        return Ok((text.clone(), whole));
    }
    // A single value is read as a list of one, and keeps its shape.
    let mut lists = Vec::new();
    let places = whole.into_iter().map(|(name, place)| {
        let value = &text[place.clone()];
        let place = if is_list(&place) {
            let start = lists.len();
            lists.extend_from_slice(value);
            start..lists.len()
        } else {
            push_list(std::iter::once(value), &mut lists)
        };
        (name, place)
    });
    let places = places.collect();
    Ok((lists.into(), places))
}

fn push_list<'t>(values: impl Iterator<Item = &'t [u8]>, lists: &mut Vec<u8>) -> Range<usize> {
    let start = lists.len();
    lists.push(b'[');
    for (number, value) in values.enumerate() {
        if number > 0 {
            lists.push(b',');
        }
        lists.extend_from_slice(value);
    }
    lists.push(b']');
    start..lists.len()
}

impl<'a> Request<'a> {
    fn parse(text: &'a [u8], form: Form) -> Result<Self, ApiError> {
        let mut request = Self::default();
        let mut reader = Reader::new(text);
        reader.object("a JSON object", |reader, key| match (key, form) {
            ("signature_name", _) if reader.null() => Ok(()),
            ("signature_name", _) => {
                request.signature = Some(reader.string("the name of a signature")?);
                Ok(())
            }
            ("instances", Form::Predict) => {
                let tensors = rows(reader, "an array of instances")?;
                request.set(Answered::Rows, tensors)
            }
            ("inputs", Form::Predict) => {
                let start = at(reader);
                let named = match reader.peek() {
                    Some(b'{') => members(reader)?,
                    _ => {
                        value(reader)?;
                        Vec::new()
                    }
                };
                let tensors = if named.is_empty() || is_b64(&named) {
                    Tensors::One(start..reader.at())
                } else {
                    Tensors::Named(named)
                };
                request.set(Answered::Columns, tensors)
            }
            ("examples", Form::Classify | Form::Regress) => {
                let tensors = rows(reader, "an array of examples")?;
                if !matches!(tensors, Tensors::Rows(..)) {
                    return Err(ApiError::invalid(
                        "each example must be an object of features",
                    ));
                }
                let classes = form == Form::Classify;
                let answered = if classes {
                    Answered::Classes
                } else {
                    Answered::Values
                };
                request.set(answered, tensors)
            }
            ("context", Form::Classify | Form::Regress) => {
                request.context = members(reader)?;
                Ok(())
            }
            (other, _) => Err(ApiError::invalid(format!(
                "the request has a member {other:?}; {} are known",
                match form {
                    Form::Predict => "signature_name, instances and inputs",
                    Form::Classify | Form::Regress => "signature_name, context and examples",
                }
            ))),
        })?;
        reader.end()?;
        Ok(request)
    }

    fn set(&mut self, answered: Answered, tensors: Tensors<'a>) -> Result<(), ApiError> {
        if self.tensors.is_some() {
            let text = "the request has both instances and inputs: one or the other";
            return Err(ApiError::invalid(text));
        }
        self.tensors = Some((answered, tensors));
        Ok(())
    }
}

/// Rows: values, or objects that all have the same members.
fn rows<'a>(reader: &mut Reader<'a>, what: &str) -> Result<Tensors<'a>, ApiError> {
    let start = at(reader);
    let mut columns: Vec<(Cow<'a, str>, Vec<Range<usize>>)> = Vec::new();
    let mut count = 0;
    let mut values = 0;
    reader.array::<ApiError>(what, |reader| {
        let named = match reader.peek() {
            Some(b'{') => members(reader)?,
            _ => {
                value(reader)?;
                Vec::new()
            }
        };
        if named.is_empty() || is_b64(&named) {
            values += 1;
        } else if count == 0 {
            let first = named.into_iter().map(|(name, place)| (name, vec![place]));
            columns = first.collect();
        } else {
            if named.len() != columns.len() {
                return Err(uneven(count));
            }
            for (name, place) in named {
                let column = columns.iter_mut().find(|(known, _)| *known == name);
                column.ok_or_else(|| uneven(count))?.1.push(place);
            }
        }
        count += 1;
        Ok(())
    })?;
    match (values, columns.is_empty()) {
        (0, false) => Ok(Tensors::Rows(count, columns)),
        (_, true) => Ok(Tensors::One(start..reader.at())),
        _ => Err(uneven(count)),
    }
}

fn uneven(row: usize) -> ApiError {
    ApiError::invalid(format!("row {row} has other members than those before it"))
}

/// The members of an object and where their values stand.
fn members<'a>(reader: &mut Reader<'a>) -> Result<Vec<Named<'a>>, ApiError> {
    let mut members = Vec::new();
    reader.object::<ApiError>("an object", |reader, key| {
        members.push((Cow::Owned(key.to_owned()), value(reader)?));
        Ok(())
    })?;
    Ok(members)
}

/// An object that is a value: bytes in base64.
fn is_b64(members: &[Named<'_>]) -> bool {
    matches!(members, [(name, _)] if name == B64)
}

const B64: &str = "b64";

/// Steps over a value of any kind.
fn value(reader: &mut Reader<'_>) -> Result<Range<usize>, JsonError> {
    let start = at(reader);
    match reader.peek() {
        Some(b'[') => return reader.array_extent(),
        Some(b'{') => {
            reader.object::<JsonError>("an object", |reader, _| reader.scalar().map(|_| ()))?
        }
        _ => {
            reader.scalar()?;
        }
    }
    Ok(start..reader.at())
}

/// Where the next value begins.
fn at(reader: &mut Reader<'_>) -> usize {
    reader.peek();
    reader.at()
}

/// Nested lists of texts and of bytes in base64. (How deep they are is known by now.)
fn strings(reader: &mut Reader<'_>, out: &mut Out<'_>) -> Result<(), ApiError> {
    match reader.peek() {
        Some(b'[') => reader.array("a list", |reader| strings(reader, out)),
        Some(b'{') => {
            let mut bytes = None;
            reader.object::<ApiError>("bytes in base64", |reader, key| {
                if key == B64 {
                    let text = reader.string("a text in base64")?;
                    let decoded = STANDARD.decode(text.as_bytes());
                    let wrong = |_| ApiError::invalid("a member b64 is not base64");
                    bytes = Some(decoded.map_err(wrong)?);
                } else {
                    let text = "a value is an object, and not of one member b64";
                    return Err(ApiError::invalid(text));
                }
                Ok(())
            })?;
            push_string(&bytes.unwrap_or_default(), out)
        }
        _ => {
            let text = reader.string("a text, or an object with b64")?;
            push_string(text.as_bytes(), out)
        }
    }
}

fn push_string(bytes: &[u8], out: &mut Out<'_>) -> Result<(), ApiError> {
    let length =
        u32::try_from(bytes.len()).map_err(|_| ApiError::invalid("a text is longer than 4 GiB"))?;
    out.push(&length.to_le_bytes())?;
    out.push(bytes)
}
