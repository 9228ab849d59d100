//! Known inputs with their answers.
//!
//! A version brings golden vectors; for one that brings none, inputs are [`generated`] and the built-in kernels'
//! answers take their place. `proof` runs the cases through a worker like any request. Only the comparison
//! decides, and it decides per delegate: its tolerance comes from the manifest.

use edgeward_models::Manifest;
use edgeward_models::manifest::{
    Datatype, GoldenTensor, GoldenVector, GoldenVectors, Signature, TensorSpec,
};

use crate::worker::Answer;

mod generated;
mod values;

pub(super) use generated::{candidates, generated};
pub(super) use values::{Deviation, Values, compare, deviation};

/// Inputs for one invoke, ready to be copied into a slot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Case {
    /// What to call it in a reason: `golden vector 2`.
    pub(super) name: String,
    /// Index into the manifest's signatures.
    pub(super) signature: usize,
    /// In the signature's order.
    pub(super) inputs: Vec<Input>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Input {
    pub(super) shape: Vec<i64>,
    pub(super) bytes: Vec<u8>,
}

impl Case {
    /// Of all inputs.
    pub(super) fn bytes(&self) -> usize {
        self.inputs.iter().map(|input| input.bytes.len()).sum()
    }
}

/// What one output must be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expected {
    /// Index into the signature's outputs.
    pub(super) output: usize,
    pub(super) name: String,
    pub(super) datatype: Datatype,
    pub(super) shape: Vec<i64>,
    pub(super) values: Values,
}

impl Expected {
    /// What an answer says, as what further answers must say.
    pub(super) fn of(signature: &Signature, answer: &Answer) -> Result<Vec<Self>, String> {
        let outputs = signature.outputs.iter().enumerate();
        outputs
            .map(|(output, spec)| {
                Ok(Self {
                    output,
                    name: spec.name.clone(),
                    datatype: spec.datatype,
                    shape: answer.shape(output).to_vec(),
                    values: Values::of(spec.datatype, answer.output(output))?,
                })
            })
            .collect()
    }
}

/// Turns a version's golden vectors into cases with expected answers. That names, shapes and lengths fit the
/// manifest was checked when they were read; values that no tensor of their datatype can hold are found here.
pub(super) fn cases(
    manifest: &Manifest,
    vectors: &GoldenVectors,
) -> Result<Vec<(Case, Vec<Expected>)>, String> {
    if vectors.vectors.is_empty() {
        return Err("the golden file holds no vector".to_owned());
    }
    let mut cases = Vec::new();
    for (number, vector) in vectors.vectors.iter().enumerate() {
        let name = format!("golden vector {}", number + 1);
        let wanted = vector.signature.as_ref();
        let signature = manifest
            .signatures
            .iter()
            .position(|s| wanted.is_none_or(|wanted| s.name == *wanted))
            .ok_or_else(|| format!("{name}: the model has no such signature"))?;
        let specs = &manifest.signatures[signature];
        let inputs = specs.inputs.iter().map(|spec| input(spec, vector));
        let inputs: Result<_, String> = inputs.collect();
        let expected = specs.outputs.iter().enumerate();
        let expected = expected.filter_map(|(output, spec)| expected_output(output, spec, vector));
        let expected: Result<_, String> = expected.collect();
        cases.push((
            Case {
                inputs: inputs.map_err(|e| format!("{name}: {e}"))?,
                signature,
                name: name.clone(),
            },
            expected.map_err(|e| format!("{name}: {e}"))?,
        ));
    }
    Ok(cases)
}

fn input(spec: &TensorSpec, vector: &GoldenVector) -> Result<Input, String> {
    let tensor = vector.inputs.get(&spec.name);
    let tensor = tensor.ok_or_else(|| format!("input {:?} is missing", spec.name))?;
    let bytes = given(tensor).to_bytes(spec.datatype);
    Ok(Input {
        shape: signed(&tensor.shape),
        bytes: bytes.map_err(|e| format!("input {:?}: {e}", spec.name))?,
    })
}

/// `None`: the vector leaves this output out, since nobody uses it.
fn expected_output(
    output: usize,
    spec: &TensorSpec,
    vector: &GoldenVector,
) -> Option<Result<Expected, String>> {
    let tensor = vector.outputs.get(&spec.name)?;
    let values = given(tensor);
    if let Err(problem) = values.to_bytes(spec.datatype) {
        return Some(Err(format!("output {:?}: {problem}", spec.name)));
    }
    Some(Ok(Expected {
        output,
        name: spec.name.clone(),
        datatype: spec.datatype,
        shape: signed(&tensor.shape),
        values,
    }))
}

/// Which of the two a vector may bring was checked when it was read.
fn given(tensor: &GoldenTensor) -> Values {
    if tensor.strings.is_empty() {
        Values::Numbers(tensor.data.clone())
    } else {
        let strings = tensor.strings.iter().map(|s| s.as_bytes().to_vec());
        Values::Strings(strings.collect())
    }
}

fn signed(shape: &[u64]) -> Vec<i64> {
    let signed = |&d: &u64| i64::try_from(d).unwrap_or(i64::MAX);
    shape.iter().map(signed).collect()
}

#[cfg(test)]
mod tests;
