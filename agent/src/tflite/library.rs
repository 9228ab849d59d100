//! The TFLite C library, opened by `dlopen`.
//!
//! One binary then works with the pinned library and with a board vendor's own. Everything the layer calls
//! is looked up at [`Library::open`], so a library that lacks a function is refused by that function's name
//! and never fails later.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgefirst_tflite_sys::experimental_ffi::ExperimentalFunctions;
use edgefirst_tflite_sys::tensorflowlite_c;
use edgefirst_tflite_sys::xnnpack_ffi::XnnPackFunctions;

use super::TfliteError;

/// A loaded TFLite library.
pub struct Library {
    // Declared before `sys`, whose drop unloads the code they point into.
    pub(super) experimental: ExperimentalFunctions,
    pub(super) xnnpack: Option<XnnPackFunctions>,
    pub(super) sys: tensorflowlite_c,
    path: PathBuf,
}

/// Every function of the stable C API that the layer calls.
const REQUIRED: &[&str] = &[
    "TfLiteVersion",
    "TfLiteModelCreateWithErrorReporter",
    "TfLiteModelDelete",
    "TfLiteInterpreterOptionsCreate",
    "TfLiteInterpreterOptionsDelete",
    "TfLiteInterpreterOptionsSetNumThreads",
    "TfLiteInterpreterOptionsAddDelegate",
    "TfLiteInterpreterOptionsSetErrorReporter",
    "TfLiteInterpreterOptionsEnableCancellation",
    "TfLiteInterpreterCreate",
    "TfLiteInterpreterDelete",
    "TfLiteInterpreterGetInputTensorCount",
    "TfLiteInterpreterGetInputTensor",
    "TfLiteInterpreterResizeInputTensor",
    "TfLiteInterpreterAllocateTensors",
    "TfLiteInterpreterInvoke",
    "TfLiteInterpreterCancel",
    "TfLiteInterpreterGetOutputTensorCount",
    "TfLiteInterpreterGetOutputTensor",
    "TfLiteInterpreterGetSignatureRunner",
    "TfLiteSignatureRunnerGetInputTensor",
    "TfLiteSignatureRunnerResizeInputTensor",
    "TfLiteSignatureRunnerAllocateTensors",
    "TfLiteSignatureRunnerInvoke",
    "TfLiteSignatureRunnerGetOutputTensor",
    "TfLiteSignatureRunnerDelete",
    "TfLiteTensorType",
    "TfLiteTensorNumDims",
    "TfLiteTensorDim",
    "TfLiteTensorByteSize",
    "TfLiteTensorData",
    "TfLiteTensorName",
];

impl Library {
    /// Loads a library and checks that it has all that is needed.
    pub fn open(path: &Path) -> Result<Arc<Self>, TfliteError> {
        let sys =
            edgefirst_tflite_sys::discovery::load(path).map_err(|error| TfliteError::Library {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
        let symbol = |symbol| TfliteError::Symbol {
            path: path.to_owned(),
            symbol,
        };
        for name in REQUIRED {
            // SAFETY: the symbol is only looked for, never called, at this type.
            let found = unsafe { sys.library().get::<unsafe extern "C" fn()>(name.as_bytes()) };
            found.map_err(|_| symbol(name))?;
        }
        // SAFETY: both tables live in `Self` beside the library that they point into.
        let (experimental, xnnpack) = unsafe {
            (
                ExperimentalFunctions::try_load(sys.library()),
                XnnPackFunctions::try_load(sys.library()),
            )
        };
        Ok(Arc::new(Self {
            experimental: experimental
                .ok_or_else(|| symbol("TfLiteInterpreterSetCustomAllocationForTensor"))?,
            xnnpack,
            sys,
            path: path.to_owned(),
        }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Such as `2.17.1`.
    pub fn version(&self) -> String {
        // SAFETY: the function was found by `open`, takes nothing and returns a static C string.
        let text = unsafe { CStr::from_ptr(self.sys.TfLiteVersion()) };
        text.to_string_lossy().into_owned()
    }
}
