//! Inputs for a version that brings no golden vectors: zeros, then two sets of values that look random and are the
//! same on every device.

use edgeward_models::Manifest;
use edgeward_models::manifest::{Datatype, Signature, TensorSpec};

use super::{Case, Input, Values};
use crate::serving::admission::check_shape;

/// Sizes that free dimensions are tried at, after 1: what is too small for one model is too large for another.
const SIZES: [i64; 5] = [16, 256, 1024, 4096, 16384];
/// Cases of each signature.
const ROUNDS: usize = 3;

/// Shapes of a signature's inputs.
pub(in crate::serving) type Shapes = Vec<Vec<i64>>;

/// The shapes that a signature may be asked with, smallest first: all free dimensions of one size, and the same
/// with a first dimension (often the batch) of 1. Where none is free there is one. None is larger than a request.
pub(in crate::serving) fn candidates(manifest: &Manifest, signature: &Signature) -> Vec<Shapes> {
    let mut found: Vec<Shapes> = Vec::new();
    let sizes = SIZES.iter().flat_map(|&size| [(1, size), (size, size)]);
    for (first, others) in std::iter::once((1, 1)).chain(sizes) {
        let sized = |(place, &dimension): (usize, &i64)| match (dimension, place) {
            (-1, 0) => first,
            (-1, _) => others,
            (fixed, _) => fixed,
        };
        let shape = |spec: &TensorSpec| spec.shape.iter().enumerate().map(sized).collect();
        let shapes: Shapes = signature.inputs.iter().map(shape).collect();
        let bytes = signature.inputs.iter().zip(&shapes).map(|(spec, shape)| {
            let sized = TensorSpec {
                shape: shape.clone(),
                ..spec.clone()
            };
            sized.room()
        });
        let bytes = bytes.fold(0, u64::saturating_add);
        let fits = bytes <= manifest.request_bytes();
        if (fits || found.is_empty()) && !found.contains(&shapes) {
            found.push(shapes);
        }
    }
    found
}

/// Cases for one signature at these shapes.
pub(in crate::serving) fn generated(
    manifest: &Manifest,
    signature: usize,
    shapes: &Shapes,
) -> Result<Vec<Case>, String> {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let specs = &manifest.signatures[signature];
    (0..ROUNDS)
        .map(|round| {
            let inputs = specs.inputs.iter().zip(shapes);
            let inputs = inputs.map(|(spec, shape)| input(spec, shape, round, &mut numbers));
            Ok(Case {
                name: format!("generated input {} of {}", round + 1, specs.name),
                signature,
                inputs: inputs.collect::<Result<_, String>>()?,
            })
        })
        .collect()
}

fn input(
    spec: &TensorSpec,
    shape: &[i64],
    round: usize,
    numbers: &mut Numbers,
) -> Result<Input, String> {
    check_shape(spec, shape).map_err(|e| e.to_string())?;
    let elements = shape.iter().map(|&d| d as usize).product();
    let values = if spec.datatype == Datatype::Bytes {
        let string = |_| match round {
            0 => Vec::new(),
            _ => numbers.next_string(),
        };
        Values::Strings((0..elements).map(string).collect())
    } else {
        let number = |_| match round {
            0 => 0.0,
            _ => numbers.next_for(spec.datatype),
        };
        Values::Numbers((0..elements).map(number).collect())
    };
    let bytes = values.to_bytes(spec.datatype);
    Ok(Input {
        shape: shape.to_vec(),
        bytes: bytes.map_err(|e| format!("input {:?}: {e}", spec.name))?,
    })
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

    /// A word of small letters.
    fn next_string(&mut self) -> Vec<u8> {
        let length = self.next() % 12;
        let letter = |_| b'a' + (self.next() % 26) as u8;
        (0..length).map(letter).collect()
    }
}
