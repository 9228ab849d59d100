//! A model, mapped from a file descriptor.
//!
//! Mapping instead of reading lets all workers and interpreters of a version share its pages. The mapping
//! is read-only and private, and lives as long as the model that TFLite keeps pointers into.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use edgefirst_tflite_sys::TfLiteModel;
use rustix::mm::{MapFlags, ProtFlags};

use super::log::{self, Log};
use super::{Library, TfliteError};

/// A flatbuffer that TFLite's verifier has accepted.
pub struct Model {
    pub(super) raw: NonNull<TfLiteModel>,
    // Dropped after `drop` has deleted the model: first the memory it reads, then where it reports to, then
    // the code.
    mapping: Mapping,
    _log: Box<Log>,
    library: Arc<Library>,
}

// SAFETY: TFLite never changes a model after its creation, and the log is locked.
unsafe impl Send for Model {}
// SAFETY: as above; interpreters on several threads may read one model.
unsafe impl Sync for Model {}

impl Model {
    /// Maps `file` from its beginning to its end and lets TFLite verify it.
    pub fn map(library: &Arc<Library>, file: impl AsFd) -> Result<Arc<Self>, TfliteError> {
        let mapping = Mapping::new(file)
            .map_err(|error| TfliteError::Model(format!("its file cannot be mapped: {error}")))?;
        let log = Log::new();
        // SAFETY: the mapping and the log outlive the model (field order and `drop`).
        let raw = unsafe {
            library.sys.TfLiteModelCreateWithErrorReporter(
                mapping.address.as_ptr(),
                mapping.length,
                Some(log::report),
                log.user_data(),
            )
        };
        let Some(raw) = NonNull::new(raw) else {
            return Err(TfliteError::Model(
                log.take_or(|| "it is not a valid TFLite flatbuffer".to_owned()),
            ));
        };
        Ok(Arc::new(Self {
            raw,
            mapping,
            _log: log,
            library: Arc::clone(library),
        }))
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        let Mapping { address, length } = self.mapping;
        // SAFETY: the mapping is as long as it says, is read-only and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(address.as_ptr().cast::<u8>(), length) }
    }

    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: created by this library, deleted once; interpreters hold an `Arc` of this model.
        unsafe { self.library.sys.TfLiteModelDelete(self.raw.as_ptr()) }
    }
}

struct Mapping {
    address: NonNull<c_void>,
    length: usize,
}

impl Mapping {
    fn new(file: impl AsFd) -> std::io::Result<Self> {
        let length = usize::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        if length == 0 {
            return Err(std::io::Error::other("the file is empty"));
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory. Should the
        // file shrink under us, reading ends this process, which holds nothing but this model.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                file,
                0,
            )?
        };
        let address =
            NonNull::new(address).ok_or_else(|| std::io::Error::other("mapped at address zero"))?;
        Ok(Self { address, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; the model that read it is gone.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr(), self.length) };
    }
}
