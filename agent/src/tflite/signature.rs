//! One named function of a model that has several.
//!
//! Part of an [`super::Interpreter`], which numbers them and lends their tensors. TFLite finds tensors of a
//! signature by name; the names are kept as C strings because that happens at every request.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;

use edgefirst_tflite_sys::{TfLiteSignatureRunner, TfLiteTensor};

use super::TfliteError;
use super::interpreter::Handle;

pub(super) struct SignatureRunner {
    raw: NonNull<TfLiteSignatureRunner>,
    pub(super) inputs: Vec<CString>,
    pub(super) outputs: Vec<CString>,
    /// The interpreter, deleted after this.
    handle: Arc<Handle>,
}

// SAFETY: used by the thread that uses the interpreter it belongs to.
unsafe impl Send for SignatureRunner {}
// SAFETY: through a shared reference it is only read; what changes it is called with the interpreter borrowed
// uniquely.
unsafe impl Sync for SignatureRunner {}

impl SignatureRunner {
    pub(super) fn new(
        handle: &Arc<Handle>,
        key: &str,
        inputs: &[&str],
        outputs: &[&str],
    ) -> Result<Self, TfliteError> {
        let refused = |what: String| TfliteError::Interpreter(format!("signature {key:?}: {what}"));
        let c_text =
            |text: &str| CString::new(text).map_err(|_| refused("a name holds a NUL".into()));
        let c_texts = |texts: &[&str]| texts.iter().map(|t| c_text(t)).collect::<Result<_, _>>();
        let key = c_text(key)?;
        // SAFETY: the interpreter lives, and the key is a C string.
        let raw = unsafe {
            handle
                .model
                .library()
                .sys
                .TfLiteInterpreterGetSignatureRunner(handle.raw.as_ptr(), key.as_ptr())
        };
        let raw = NonNull::new(raw).ok_or_else(|| {
            let said = handle
                .log
                .take_or(|| "the model does not have it".to_owned());
            refused(said)
        })?;
        let runner = Self {
            raw,
            inputs: c_texts(inputs)?,
            outputs: c_texts(outputs)?,
            handle: Arc::clone(handle),
        };
        for (index, name) in inputs.iter().enumerate() {
            if runner.input(index).is_none_or(|tensor| tensor.is_null()) {
                return Err(refused(format!("the model has no input {name:?} in it")));
            }
        }
        for (index, name) in outputs.iter().enumerate() {
            if runner.output(index).is_none_or(|tensor| tensor.is_null()) {
                return Err(refused(format!("the model has no output {name:?} in it")));
            }
        }
        handle.log.clear();
        Ok(runner)
    }

    fn sys(&self) -> &edgefirst_tflite_sys::tensorflowlite_c {
        &self.handle.model.library().sys
    }

    pub(super) fn input(&self, index: usize) -> Option<*const TfLiteTensor> {
        let name = self.inputs.get(index)?.as_ptr();
        // SAFETY: the runner lives and the name is a C string; an unknown one gives null.
        Some(unsafe {
            self.sys()
                .TfLiteSignatureRunnerGetInputTensor(self.raw.as_ptr(), name)
        })
    }

    pub(super) fn output(&self, index: usize) -> Option<*const TfLiteTensor> {
        let name = self.outputs.get(index)?.as_ptr();
        // SAFETY: as for `input`.
        Some(unsafe {
            self.sys()
                .TfLiteSignatureRunnerGetOutputTensor(self.raw.as_ptr(), name)
        })
    }

    /// Status of TFLite, as those below. Callers hold the interpreter uniquely.
    pub(super) fn resize_input(&self, index: usize, shape: &[i32]) -> u32 {
        let Some(name) = self.inputs.get(index) else {
            return edgefirst_tflite_sys::TfLiteStatus_kTfLiteError;
        };
        // SAFETY: the runner lives, the name is one of its inputs, the shape is as long as it says.
        unsafe {
            self.sys().TfLiteSignatureRunnerResizeInputTensor(
                self.raw.as_ptr(),
                name.as_ptr(),
                shape.as_ptr(),
                shape.len() as i32,
            )
        }
    }

    pub(super) fn allocate(&self) -> u32 {
        // SAFETY: the runner lives.
        unsafe {
            self.sys()
                .TfLiteSignatureRunnerAllocateTensors(self.raw.as_ptr())
        }
    }

    pub(super) fn invoke(&self) -> u32 {
        // SAFETY: the runner lives; what is not allocated answers with an error status.
        unsafe { self.sys().TfLiteSignatureRunnerInvoke(self.raw.as_ptr()) }
    }
}

impl Drop for SignatureRunner {
    fn drop(&mut self) {
        // SAFETY: created by this library, deleted once, while its interpreter still lives (`handle`).
        unsafe { self.sys().TfLiteSignatureRunnerDelete(self.raw.as_ptr()) }
    }
}
