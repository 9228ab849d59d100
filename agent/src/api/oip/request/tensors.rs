//! One entry of `inputs` or `outputs`.

use edgeward_models::manifest::MAX_DIMENSIONS;

use super::{Content, Input, Output};
use crate::api::error::ApiError;
use crate::api::json::Reader;

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

pub(super) fn read_input<'a>(
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

pub(super) fn read_output<'a>(
    reader: &mut Reader<'a>,
    index: usize,
) -> Result<Output<'a>, ApiError> {
    let mut name = None;
    let mut output = Output::named("".into());
    let mut problem: Option<String> = None;
    reader.object::<ApiError>("an object that names an output", |reader, key| {
        match key {
            "name" => name = Some(reader.string("the output's name")?),
            "parameters" if reader.null() => {}
            "parameters" => {
                reader.object::<ApiError>("an object of parameters", |reader, key| {
                    let value = reader.scalar()?;
                    if let Err(wrong) = output.parameter(key, &value) {
                        problem.get_or_insert(wrong);
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
        None => Ok(Output { name, ..output }),
    }
}
