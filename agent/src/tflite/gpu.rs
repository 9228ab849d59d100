//! TFLite's GPU delegate by its own C API, version 2, which stock builds export instead of the plugin ABI.
//!
//! Options are those of `TfLiteGpuDelegateOptionsV2` (`lite/delegates/gpu/delegate_options.h`): whole numbers, and
//! two texts for its cache of compiled kernels.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use edgefirst_tflite_sys::TfLiteDelegate;
use libloading::os::unix::Library;

/// The C structure, as in the header of TensorFlow 2.17. Headers since 2022 (2.10) have the same fields in the same
/// places; what later ones add stands behind them (a text that forces nodes to full precision, numbers of debugging
/// builds). The library fills the structure in by its own default and reads it, so what is added there keeps its
/// default, in the room at the end.
#[repr(C)]
struct Options {
    is_precision_loss_allowed: i32,
    inference_preference: i32,
    inference_priority1: i32,
    inference_priority2: i32,
    inference_priority3: i32,
    experimental_flags: i64,
    max_delegated_partitions: i32,
    serialization_dir: *const c_char,
    model_token: *const c_char,
    room: [MaybeUninit<u64>; 8],
}

/// In `experimental_flags`: compiled kernels are kept in `serialization_dir`.
const ENABLE_SERIALIZATION: i64 = 1 << 3;
/// What separates models in one directory, where each has its own.
const MODEL_TOKEN: &str = "model";

type Default = unsafe extern "C" fn() -> Options;
type Create = unsafe extern "C" fn(*const Options) -> *mut TfLiteDelegate;
pub(super) type Delete = unsafe extern "C" fn(*mut TfLiteDelegate);

/// The three functions of such a library.
pub(super) struct Gpu {
    default: Default,
    create: Create,
    delete: Delete,
}

impl Gpu {
    /// `None`: the library is of another kind.
    pub(super) fn of(library: &Library) -> Option<Self> {
        // SAFETY: the types are those of the functions in TFLite's header.
        unsafe {
            Some(Self {
                default: *library.get(b"TfLiteGpuDelegateOptionsV2Default\0").ok()?,
                create: *library.get(b"TfLiteGpuDelegateV2Create\0").ok()?,
                delete: *library.get(b"TfLiteGpuDelegateV2Delete\0").ok()?,
            })
        }
    }

    /// Texts are read by the delegate as long as it lives: they come along.
    pub(super) fn create(
        &self,
        options: &BTreeMap<String, String>,
    ) -> Result<(NonNull<TfLiteDelegate>, Delete, Vec<CString>), String> {
        // SAFETY: the function takes nothing and fills a structure of at most our length.
        let mut chosen = unsafe { (self.default)() };
        let mut texts = Vec::new();
        for (key, value) in options {
            match key.as_str() {
                "serialization_dir" => {
                    chosen.serialization_dir = keep(&mut texts, value)?;
                    chosen.experimental_flags |= ENABLE_SERIALIZATION;
                }
                "model_token" => chosen.model_token = keep(&mut texts, value)?,
                _ => set(&mut chosen, key, value)?,
            }
        }
        if !chosen.serialization_dir.is_null() && chosen.model_token.is_null() {
            chosen.model_token = keep(&mut texts, MODEL_TOKEN)?;
        }
        // SAFETY: the structure is the library's own default with other values in it, of which the texts live as
        // long as what is made, and only read.
        let raw = unsafe { (self.create)(&raw const chosen) };
        let raw = NonNull::new(raw);
        let raw = raw.ok_or("the GPU delegate refused to start and gave no reason")?;
        Ok((raw, self.delete, texts))
    }
}

fn keep(texts: &mut Vec<CString>, text: &str) -> Result<*const c_char, String> {
    let text = CString::new(text).map_err(|_| format!("option {text:?} holds a NUL"))?;
    let start = text.as_ptr();
    // Moving the owner does not move the bytes.
    texts.push(text);
    Ok(start)
}

fn set(options: &mut Options, key: &str, value: &str) -> Result<(), String> {
    let number: i64 = value
        .parse()
        .map_err(|_| format!("option {key} is {value:?}; the GPU delegate's are whole numbers"))?;
    let place = match key {
        "experimental_flags" => {
            options.experimental_flags = number;
            return Ok(());
        }
        "is_precision_loss_allowed" => &mut options.is_precision_loss_allowed,
        "inference_preference" => &mut options.inference_preference,
        "inference_priority1" => &mut options.inference_priority1,
        "inference_priority2" => &mut options.inference_priority2,
        "inference_priority3" => &mut options.inference_priority3,
        "max_delegated_partitions" => &mut options.max_delegated_partitions,
        _ => return Err(format!("the GPU delegate has no option {key}")),
    };
    *place = i32::try_from(number).map_err(|_| format!("option {key}: {value} is too large"))?;
    Ok(())
}
