//! What a `.tflite` file says of itself: tensors and signatures, read from the flatbuffer without TFLite.
//! (Contract; body to be written.)
use crate::manifest::Signature;

/// Signatures with inputs and outputs in the interpreter's order. A file without signatures gets one named
/// `serving_default` from its main graph's tensors. Free dimensions (`shape_signature`) are -1.
pub fn signatures(_bytes: &[u8]) -> Result<Vec<Signature>, TfliteFileError> {
    todo!()
}

#[derive(Debug, thiserror::Error)]
pub enum TfliteFileError {
    #[error("not a TFLite model: {0}")]
    NotTflite(String),
    #[error("tensor {tensor}: {problem}")]
    Tensor { tensor: String, problem: String },
}
