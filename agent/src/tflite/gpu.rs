//! TFLite's GPU delegate by its own C API, version 2, which stock builds export instead of the plugin ABI.
//!
//! Options are those of `TfLiteGpuDelegateOptionsV2` (TFLite 2.17, `lite/delegates/gpu/delegate_options.h`),
//! as whole numbers. Its cache of compiled kernels is left out: a worker writes no file.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ptr::NonNull;

use edgefirst_tflite_sys::TfLiteDelegate;
use libloading::os::unix::Library;

/// The C structure. The library fills it in by its own default and reads it; newer ones may be longer, for
/// which there is room.
#[repr(C)]
struct Options {
    is_precision_loss_allowed: i32,
    inference_preference: i32,
    inference_priority1: i32,
    inference_priority2: i32,
    inference_priority3: i32,
    experimental_flags: i64,
    max_delegated_partitions: i32,
    serialization_dir: *const std::ffi::c_char,
    model_token: *const std::ffi::c_char,
    room: [u64; 8],
}

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

    pub(super) fn create(
        &self,
        options: &BTreeMap<String, String>,
    ) -> Result<(NonNull<TfLiteDelegate>, Delete), String> {
        // SAFETY: the function takes nothing and fills a structure of at most our length.
        let mut chosen = unsafe { (self.default)() };
        for (key, value) in options {
            set(&mut chosen, key, value)?;
        }
        // SAFETY: the structure is the library's own default with other numbers in it, and only read.
        let raw = unsafe { (self.create)(&raw const chosen) };
        let raw = NonNull::new(raw);
        let raw = raw.ok_or("the GPU delegate refused to start and gave no reason")?;
        Ok((raw, self.delete))
    }
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
