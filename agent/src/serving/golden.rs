//! Known inputs with their answers, and what counts as the same answer.
//!
//! A version brings golden vectors; for one that brings none, inputs are generated here and the built-in
//! kernels' answers take their place. `proof` runs the cases through a worker like any request. Only the
//! comparison decides, and it decides per delegate: its tolerance comes from the manifest.

use edgeward_models::Manifest;
use edgeward_models::manifest::{Datatype, GoldenVector, GoldenVectors, TensorSpec, Tolerance};
use half::f16;

use super::admission::check_shape;

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

/// What one output must be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expected {
    /// Index into the signature's outputs.
    pub(super) output: usize,
    pub(super) name: String,
    pub(super) datatype: Datatype,
    pub(super) shape: Vec<i64>,
    pub(super) values: Vec<f64>,
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
    let bytes = encode(spec.datatype, &tensor.data);
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
    if let Err(problem) = encode(spec.datatype, &tensor.data) {
        return Some(Err(format!("output {:?}: {problem}", spec.name)));
    }
    Some(Ok(Expected {
        output,
        name: spec.name.clone(),
        datatype: spec.datatype,
        shape: signed(&tensor.shape),
        values: tensor.data.clone(),
    }))
}

fn signed(shape: &[u64]) -> Vec<i64> {
    let signed = |&d: &u64| i64::try_from(d).unwrap_or(i64::MAX);
    shape.iter().map(signed).collect()
}

/// Inputs for a version without golden vectors: zeros, then two sets of numbers that look random and are
/// the same on every device. Free dimensions are 1.
pub(super) fn generated(manifest: &Manifest) -> Result<Vec<Case>, String> {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut cases = Vec::new();
    for (index, signature) in manifest.signatures.iter().enumerate() {
        for round in 0..3 {
            let one = |spec: &TensorSpec| {
                let shape: Vec<i64> = spec.shape.iter().map(|&d| d.max(1)).collect();
                let bytes = check_shape(spec, &shape).map_err(|e| e.to_string())?;
                let size = spec.datatype.size().unwrap_or(1) as u64;
                let values: Vec<f64> = (0..bytes / size)
                    .map(|_| match round {
                        0 => 0.0,
                        _ => numbers.next_for(spec.datatype),
                    })
                    .collect();
                let bytes = encode(spec.datatype, &values)
                    .map_err(|e| format!("input {:?}: {e}", spec.name))?;
                Ok::<_, String>(Input { shape, bytes })
            };
            cases.push(Case {
                name: format!("generated input {} of {}", round + 1, signature.name),
                signature: index,
                inputs: signature.inputs.iter().map(one).collect::<Result<_, _>>()?,
            });
        }
    }
    Ok(cases)
}

/// Numbers that look random (xorshift64*), for inputs only.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// Within 0 to 1 for reals, the whole range of bytes, and 0 or 1 for wider integers, which are often
    /// indices into tables of unknown length.
    fn next_for(&mut self, datatype: Datatype) -> f64 {
        let number = self.next();
        match datatype {
            Datatype::Int8 => (number % 256) as f64 - 128.0,
            Datatype::Uint8 => (number % 256) as f64,
            Datatype::Fp16 | Datatype::Fp32 | Datatype::Fp64 => {
                (number % (1 << 20)) as f64 / f64::from(1 << 20)
            }
            _ => (number % 2) as f64,
        }
    }
}

/// The bytes of `values` as a tensor holds them (little-endian, row-major).
fn encode(datatype: Datatype, values: &[f64]) -> Result<Vec<u8>, String> {
    macro_rules! integers {
        ($type:ty) => {{
            let mut bytes = Vec::with_capacity(std::mem::size_of_val(values));
            for &value in values {
                // A float-to-integer cast saturates, so only exact values survive the way back.
                let integer = value as $type;
                if integer as f64 != value {
                    return Err(format!("{value} is not a value of {}", datatype.name()));
                }
                bytes.extend_from_slice(&integer.to_le_bytes());
            }
            bytes
        }};
    }
    Ok(match datatype {
        Datatype::Bool => {
            if let Some(value) = values.iter().find(|v| **v != 0.0 && **v != 1.0) {
                return Err(format!("{value} is not a value of BOOL: write 0 or 1"));
            }
            values.iter().map(|&v| v as u8).collect()
        }
        Datatype::Uint8 => integers!(u8),
        Datatype::Uint16 => integers!(u16),
        Datatype::Uint32 => integers!(u32),
        Datatype::Uint64 => integers!(u64),
        Datatype::Int8 => integers!(i8),
        Datatype::Int16 => integers!(i16),
        Datatype::Int32 => integers!(i32),
        Datatype::Int64 => integers!(i64),
        Datatype::Fp32 => values
            .iter()
            .flat_map(|&v| (v as f32).to_le_bytes())
            .collect(),
        Datatype::Fp64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Datatype::Fp16 => {
            let halves = values.iter().map(|&v| f16::from_f64(v).to_bits());
            halves.flat_map(u16::to_le_bytes).collect()
        }
        Datatype::Bytes => return Err(unproven(datatype)),
    })
}

/// The numbers in a tensor's bytes.
pub(super) fn decode(datatype: Datatype, bytes: &[u8]) -> Result<Vec<f64>, String> {
    macro_rules! numbers {
        ($type:ty) => {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&chunk| <$type>::from_le_bytes(chunk) as f64)
                .collect()
        };
    }
    Ok(match datatype {
        Datatype::Bool | Datatype::Uint8 => bytes.iter().map(|&b| f64::from(b)).collect(),
        Datatype::Uint16 => numbers!(u16),
        Datatype::Uint32 => numbers!(u32),
        Datatype::Uint64 => numbers!(u64),
        Datatype::Int8 => numbers!(i8),
        Datatype::Int16 => numbers!(i16),
        Datatype::Int32 => numbers!(i32),
        Datatype::Int64 => numbers!(i64),
        Datatype::Fp32 => numbers!(f32),
        Datatype::Fp64 => numbers!(f64),
        Datatype::Fp16 => {
            let halves = bytes.as_chunks().0.iter();
            halves
                .map(|&chunk| f16::from_bits(u16::from_le_bytes(chunk)).to_f64())
                .collect()
        }
        Datatype::Bytes => return Err(unproven(datatype)),
    })
}

fn unproven(datatype: Datatype) -> String {
    format!(
        "this agent cannot compare tensors of datatype {}",
        datatype.name()
    )
}

/// Whether an output is what it must be, by the formula of [`Tolerance`]. The error says where it is not.
pub(super) fn compare(
    expected: &Expected,
    shape: &[i64],
    bytes: &[u8],
    tolerance: Tolerance,
) -> Result<(), String> {
    let Expected { name, datatype, .. } = expected;
    let answer = decode(*datatype, bytes)?;
    if shape != expected.shape || answer.len() != expected.values.len() {
        return Err(format!(
            "output {name:?} has shape {shape:?} where {:?} is expected",
            expected.shape
        ));
    }
    let allowed = match datatype {
        Datatype::Bool => 0.0,
        Datatype::Fp16 | Datatype::Fp32 | Datatype::Fp64 => {
            let finite = expected.values.iter().filter(|v| v.is_finite());
            tolerance.float * finite.fold(1.0, |most: f64, v| most.max(v.abs()))
        }
        _ => f64::from(tolerance.integer_steps),
    };
    let mut worst: Option<(usize, f64)> = None;
    for (place, (&got, &wanted)) in answer.iter().zip(&expected.values).enumerate() {
        // Equal infinities and a NaN where a NaN is expected are right; any other is infinitely wrong.
        let difference = if got == wanted || (got.is_nan() && wanted.is_nan()) {
            0.0
        } else if got.is_finite() && wanted.is_finite() {
            (got - wanted).abs()
        } else {
            f64::INFINITY
        };
        if difference > allowed && worst.is_none_or(|(_, most)| difference > most) {
            worst = Some((place, difference));
        }
    }
    match worst {
        None => Ok(()),
        Some((place, difference)) => Err(format!(
            "output {name:?} differs by {difference:.3e} where {allowed:.3e} is allowed (element {place} is {}, \
             expected {})",
            answer[place], expected.values[place]
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str) -> (Manifest, GoldenVectors) {
        let directory = format!("{}/../models/samples/{name}", env!("CARGO_MANIFEST_DIR"));
        let read = |file: &str| std::fs::read(format!("{directory}/{file}")).expect("sample file");
        (
            Manifest::parse(&read("manifest.json")).expect("manifest"),
            serde_json::from_slice(&read("golden.json")).expect("golden"),
        )
    }

    fn expect(datatype: Datatype, values: &[f64]) -> Expected {
        Expected {
            output: 0,
            name: "y".to_owned(),
            datatype,
            shape: vec![values.len() as i64],
            values: values.to_vec(),
        }
    }

    fn try_compare(
        expected: &Expected,
        answer: &[f64],
        tolerance: Tolerance,
    ) -> Result<(), String> {
        let bytes = encode(expected.datatype, answer).expect("encode");
        compare(expected, &[answer.len() as i64], &bytes, tolerance)
    }

    #[test]
    fn every_sample_has_golden_vectors_that_fit_its_manifest() {
        for name in [
            "digits-1.0.0",
            "digits-int8-1.0.0",
            "breast-cancer-1.0.0",
            "accumulator-1.0.0",
        ] {
            let (manifest, vectors) = sample(name);
            let cases = cases(&manifest, &vectors).expect(name);
            assert_eq!(cases.len(), vectors.vectors.len());
            let (case, expected) = &cases[0];
            assert_eq!(case.inputs.len(), manifest.signatures[0].inputs.len());
            assert_eq!(expected.len(), 1);
        }
    }

    #[test]
    fn a_value_that_its_datatype_cannot_hold_is_refused_with_vector_and_tensor_named() {
        let (manifest, mut vectors) = sample("digits-int8-1.0.0");
        let image = vectors.vectors[1].inputs.get_mut("image").expect("image");
        image.data[3] = 0.5;
        let error = cases(&manifest, &vectors).expect_err("half a step");
        assert!(
            error.starts_with("golden vector 2: input \"image\": 0.5"),
            "{error}"
        );
        let none = GoldenVectors { vectors: vec![] };
        assert!(cases(&manifest, &none).is_err());
    }

    #[test]
    fn integers_outside_their_type_and_halves_are_refused() {
        for (datatype, value) in [
            (Datatype::Int8, 128.0),
            (Datatype::Uint8, -1.0),
            (Datatype::Int32, 0.5),
            (Datatype::Bool, 2.0),
            (Datatype::Uint16, f64::NAN),
        ] {
            assert!(encode(datatype, &[value]).is_err(), "{datatype:?} {value}");
        }
    }

    #[test]
    fn float_tolerance_grows_with_the_largest_expected_value_but_not_below_one() {
        let tolerance = Tolerance {
            float: 0.01,
            integer_steps: 0,
        };
        let small = expect(Datatype::Fp32, &[0.5, 0.0]);
        assert!(try_compare(&small, &[0.5, 0.0099], tolerance).is_ok());
        let error = try_compare(&small, &[0.5, 0.02], tolerance).expect_err("too far");
        assert!(error.contains("element 1"), "{error}");
        let large = expect(Datatype::Fp64, &[-1000.0, 0.0]);
        assert!(try_compare(&large, &[-1000.0, 9.0], tolerance).is_ok());
        assert!(try_compare(&large, &[-1000.0, 11.0], tolerance).is_err());
    }

    #[test]
    fn integer_steps_are_exact_and_booleans_must_be_equal() {
        let one = Tolerance {
            float: 1e9,
            integer_steps: 1,
        };
        let bytes = expect(Datatype::Int8, &[-128.0, 127.0]);
        assert!(try_compare(&bytes, &[-127.0, 126.0], one).is_ok());
        assert!(try_compare(&bytes, &[-126.0, 127.0], one).is_err());
        let flags = expect(Datatype::Bool, &[0.0, 1.0]);
        assert!(try_compare(&flags, &[0.0, 1.0], one).is_ok());
        assert!(try_compare(&flags, &[1.0, 1.0], one).is_err());
    }

    #[test]
    fn a_nan_is_right_only_where_one_is_expected() {
        let loose = Tolerance {
            float: 1e300,
            integer_steps: 0,
        };
        let plain = expect(Datatype::Fp32, &[1.0]);
        assert!(try_compare(&plain, &[f64::NAN], loose).is_err());
        assert!(try_compare(&plain, &[f64::INFINITY], loose).is_err());
        let nan = expect(Datatype::Fp32, &[f64::NAN]);
        assert!(try_compare(&nan, &[f64::NAN], loose).is_ok());
        assert!(try_compare(&nan, &[0.0], loose).is_err());
    }

    #[test]
    fn another_shape_or_a_short_answer_is_wrong() {
        let expected = expect(Datatype::Fp32, &[1.0, 2.0]);
        let bytes = encode(Datatype::Fp32, &[1.0, 2.0]).expect("encode");
        let exact = Tolerance::default();
        assert!(compare(&expected, &[2], &bytes, exact).is_ok());
        assert!(compare(&expected, &[1, 2], &bytes, exact).is_err());
        assert!(compare(&expected, &[2], &bytes[..4], exact).is_err());
    }

    #[test]
    fn generated_inputs_are_the_same_every_time_and_fill_their_tensors() {
        let (manifest, _) = sample("digits-int8-1.0.0");
        let cases = generated(&manifest).expect("generate");
        assert_eq!(cases, generated(&manifest).expect("generate"));
        assert_eq!(cases.len(), 3);
        assert!(cases[0].inputs[0].bytes.iter().all(|&b| b == 0));
        assert_eq!(cases[1].inputs[0].bytes.len(), 64);
        assert_ne!(cases[1].inputs, cases[2].inputs);
    }
}
