//! A look at one tensor of an interpreter.
#![allow(unsafe_code)]

use std::borrow::Cow;
use std::ffi::CStr;
use std::marker::PhantomData;

use edgefirst_tflite_sys::{self as sys, TfLiteTensor};
use edgeward_models::manifest::{Datatype, MAX_DIMENSIONS};

use super::{Library, strings};

/// One input or output. Valid until the interpreter is resized, allocated or invoked, which the borrow
/// rules out.
pub struct Tensor<'a> {
    raw: *const TfLiteTensor,
    library: &'a Library,
    interpreter: PhantomData<&'a ()>,
}

impl<'a> Tensor<'a> {
    /// # Safety
    /// `raw` must be a tensor of an interpreter of `library` that outlives `'a` and is not changed in it.
    pub(super) unsafe fn new(raw: *const TfLiteTensor, library: &'a Library) -> Self {
        Self {
            raw,
            library,
            interpreter: PhantomData,
        }
    }

    /// `None`: a type that the manifest has no word for.
    pub fn datatype(&self) -> Option<Datatype> {
        // SAFETY: the tensor is valid by `new`.
        datatype_of(unsafe { self.library.sys.TfLiteTensorType(self.raw) })
    }

    pub fn name(&self) -> String {
        // SAFETY: the tensor is valid by `new`; its name is null or a C string that it owns.
        unsafe {
            let name = self.library.sys.TfLiteTensorName(self.raw);
            if name.is_null() {
                return String::new();
            }
            CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    }

    pub fn rank(&self) -> usize {
        // SAFETY: the tensor is valid by `new`.
        usize::try_from(unsafe { self.library.sys.TfLiteTensorNumDims(self.raw) }).unwrap_or(0)
    }

    /// The dimensions; those beyond [`MAX_DIMENSIONS`] are left out.
    pub fn shape(&self) -> impl Iterator<Item = i32> + '_ {
        let rank = self.rank().min(MAX_DIMENSIONS) as i32;
        // SAFETY: the tensor is valid by `new` and the index is below its rank.
        (0..rank).map(|i| unsafe { self.library.sys.TfLiteTensorDim(self.raw, i) })
    }

    /// An allocated tensor that holds nothing. One whose size is known only after an invoke does not count, nor does
    /// any where the library cannot tell them apart.
    pub fn is_planned_empty(&self) -> bool {
        if self.shape().all(|dimension| dimension != 0)
            || self
                .library
                .sys
                .TfLiteOpaqueTensorGetAllocationType
                .is_err()
        {
            return false;
        }
        // SAFETY: the tensor is valid by `new`; an opaque tensor is the same one under another name.
        let kind = unsafe {
            let tensor = self.raw.cast::<sys::TfLiteOpaqueTensor>();
            self.library.sys.TfLiteOpaqueTensorGetAllocationType(tensor)
        };
        kind != sys::TfLiteAllocationType_kTfLiteDynamic
    }

    pub fn byte_size(&self) -> usize {
        // SAFETY: the tensor is valid by `new`.
        unsafe { self.library.sys.TfLiteTensorByteSize(self.raw) }
    }

    /// `None` while the tensor has no memory (before allocation).
    pub fn bytes(&self) -> Option<&[u8]> {
        let length = self.byte_size();
        if length == 0 {
            return Some(&[]);
        }
        // SAFETY: the tensor is valid by `new`; TFLite's data is null or holds `byte_size` bytes.
        unsafe {
            let data = self.library.sys.TfLiteTensorData(self.raw).cast::<u8>();
            (!data.is_null()).then(|| std::slice::from_raw_parts(data, length))
        }
    }

    /// Copies `bytes` into the tensor's own memory; false if the lengths differ or it has none.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        if self.byte_size() != bytes.len() {
            return false;
        }
        // SAFETY: the tensor is valid by `new`; non-null data holds `byte_size` bytes, which is our length,
        // and is not part of `bytes`, which is memory of the caller.
        unsafe {
            let data = self.library.sys.TfLiteTensorData(self.raw).cast::<u8>();
            if data.is_null() {
                return bytes.is_empty();
            }
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, bytes.len());
        }
        true
    }
}

impl Tensor<'_> {
    /// The values as they travel: an allocated tensor's bytes as they are, strings in the form of
    /// [`crate::strings`]. The error says what is wrong with them.
    pub fn values(&self) -> Result<Cow<'_, [u8]>, String> {
        let bytes = self.bytes().ok_or("it has no data")?;
        if self.datatype() != Some(Datatype::Bytes) {
            return Ok(Cow::Borrowed(bytes));
        }
        let elements = strings::from_tflite(bytes).map_err(|e| e.to_string())?;
        Ok(Cow::Owned(elements))
    }

    /// Gives an allocated tensor of strings its elements, in the form of [`crate::strings`].
    pub fn write_strings(&mut self, elements: &[u8]) -> Result<(), String> {
        if self.datatype() != Some(Datatype::Bytes) {
            return Err("it is no tensor of strings".to_owned());
        }
        if self.library.sys.TfLiteTensorRealloc.is_err() {
            return Err(format!(
                "the library {} exports no TfLiteTensorRealloc, without which strings cannot be given to a model",
                self.library.path().display()
            ));
        }
        let buffer = strings::to_tflite(elements).map_err(|e| e.to_string())?;
        // SAFETY: the tensor is valid by `new` and ours alone (`&mut`); memory that it is given is its own. One that
        // TFLite does not let grow keeps its size, and `write` refuses.
        unsafe {
            let tensor = self.raw.cast_mut();
            self.library.sys.TfLiteTensorRealloc(buffer.len(), tensor);
        }
        if self.write(&buffer) {
            return Ok(());
        }
        Err("TFLite gives it no memory for strings".to_owned())
    }
}

/// `TfLiteType` in the manifest's words.
pub fn datatype_of(number: u32) -> Option<Datatype> {
    Some(match number {
        sys::TfLiteType_kTfLiteFloat32 => Datatype::Fp32,
        sys::TfLiteType_kTfLiteInt32 => Datatype::Int32,
        sys::TfLiteType_kTfLiteUInt8 => Datatype::Uint8,
        sys::TfLiteType_kTfLiteInt64 => Datatype::Int64,
        sys::TfLiteType_kTfLiteString => Datatype::Bytes,
        sys::TfLiteType_kTfLiteBool => Datatype::Bool,
        sys::TfLiteType_kTfLiteInt16 => Datatype::Int16,
        sys::TfLiteType_kTfLiteInt8 => Datatype::Int8,
        sys::TfLiteType_kTfLiteFloat16 => Datatype::Fp16,
        sys::TfLiteType_kTfLiteFloat64 => Datatype::Fp64,
        sys::TfLiteType_kTfLiteUInt64 => Datatype::Uint64,
        sys::TfLiteType_kTfLiteUInt32 => Datatype::Uint32,
        sys::TfLiteType_kTfLiteUInt16 => Datatype::Uint16,
        _ => return None,
    })
}
