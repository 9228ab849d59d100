//! Delegates: XNNPACK out of the TFLite library, TFLite's GPU delegate (`gpu`), and plugin libraries with the
//! external-delegate ABI.
//!
//! A plugin exports `tflite_plugin_create_delegate` and `tflite_plugin_destroy_delegate` and gets options as
//! texts. Its reasons go to an error callback without any user data, so they are kept in one static log.
//! A library of the stable-delegate kind has another ABI and is refused by name.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use edgefirst_tflite_sys::TfLiteDelegate;
use libloading::os::unix::{Library as PluginLibrary, RTLD_LOCAL, RTLD_NOW};

use super::gpu::Gpu;
use super::{Library, TfliteError};

type CreatePlugin = unsafe extern "C" fn(
    *const *const c_char,
    *const *const c_char,
    usize,
    Option<unsafe extern "C" fn(*const c_char)>,
) -> *mut TfLiteDelegate;
type DestroyPlugin = unsafe extern "C" fn(*mut TfLiteDelegate);

/// What plugins said through their error callback, newest last.
static PLUGIN_ERRORS: Mutex<String> = Mutex::new(String::new());
const MAX_PLUGIN_ERROR_BYTES: usize = 4096;

/// A delegate that is ready to be given to one interpreter.
pub struct Delegate {
    raw: NonNull<TfLiteDelegate>,
    kind: Kind,
}

enum Kind {
    XnnPack(Arc<Library>),
    Plugin(DestroyPlugin),
    /// With the texts that it reads as long as it lives.
    Gpu(DestroyPlugin, #[allow(dead_code)] Vec<CString>),
}

// SAFETY: a delegate belongs to one interpreter and is used by the thread that uses that one; TFLite's
// delegates are not bound to the thread that created them.
unsafe impl Send for Delegate {}
// SAFETY: a shared reference gives nothing but the address.
unsafe impl Sync for Delegate {}

impl Delegate {
    /// The XNNPACK delegate. More threads than free cores make it a hundred times slower.
    pub fn xnnpack(library: &Arc<Library>, threads: usize) -> Result<Self, TfliteError> {
        let error = |reason: &str| TfliteError::Delegate {
            library: "xnnpack".to_owned(),
            reason: reason.to_owned(),
        };
        let functions = library
            .xnnpack
            .as_ref()
            .ok_or_else(|| error("the TFLite library was built without it"))?;
        // SAFETY: both functions belong to the loaded library and the structure has its layout; the default
        // values, weights cache null among them, are the library's own.
        let raw = unsafe {
            let mut options = (functions.options_default)();
            options.num_threads = c_int::try_from(threads).unwrap_or(1).max(1);
            (functions.create)(&raw const options)
        };
        let raw = NonNull::new(raw).ok_or_else(|| error("it could not be created"))?;
        Ok(Self {
            raw,
            kind: Kind::XnnPack(Arc::clone(library)),
        })
    }

    /// Loads a plugin library and creates its delegate with `options`.
    pub fn plugin(path: &Path, options: &BTreeMap<String, String>) -> Result<Self, TfliteError> {
        let error = |reason: String| TfliteError::Delegate {
            library: path.display().to_string(),
            reason,
        };
        // SAFETY: loading runs the library's constructors. They come from a library that the device's owner
        // configured, and this process is sandboxed by now.
        let plugin = unsafe { PluginLibrary::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|e| error(format!("cannot be loaded: {e}")))?;
        // Never unloaded: drivers leave threads and exit handlers behind that point into it.
        let plugin = std::mem::ManuallyDrop::new(plugin);
        // SAFETY: only the presence of the symbol is asked for.
        if unsafe { plugin.get::<*const ()>(b"TFL_TheStableDelegate\0") }.is_ok() {
            return Err(error(
                "it is a stable delegate (TFL_TheStableDelegate), which is another kind of library: \
                 use one that exports tflite_plugin_create_delegate"
                    .to_owned(),
            ));
        }
        if let Some(gpu) = Gpu::of(&plugin) {
            let (raw, delete, texts) = gpu.create(options).map_err(error)?;
            return Ok(Self {
                raw,
                kind: Kind::Gpu(delete, texts),
            });
        }
        // SAFETY: the types are those of TFLite's external-delegate ABI.
        let symbols = unsafe {
            plugin
                .get::<CreatePlugin>(b"tflite_plugin_create_delegate\0")
                .and_then(|create| {
                    let destroy = plugin.get::<DestroyPlugin>(b"tflite_plugin_destroy_delegate\0");
                    Ok((*create, *destroy?))
                })
        };
        let (create, destroy) = symbols.map_err(|_| {
            error(
                "it does not export tflite_plugin_create_delegate and \
                 tflite_plugin_destroy_delegate: it is no delegate plugin"
                    .to_owned(),
            )
        })?;
        let c_text = |text: &String| {
            CString::new(text.as_str()).map_err(|_| error(format!("option {text:?} holds a NUL")))
        };
        let keys: Vec<CString> = options.keys().map(c_text).collect::<Result<_, _>>()?;
        let values: Vec<CString> = options.values().map(c_text).collect::<Result<_, _>>()?;
        let key_pointers: Vec<_> = keys.iter().map(|k| k.as_ptr()).collect();
        let value_pointers: Vec<_> = values.iter().map(|v| v.as_ptr()).collect();
        take_plugin_errors();
        // SAFETY: both arrays hold as many valid C strings as the count says, for the length of the call;
        // the callback is a plain function that is always there.
        let raw = unsafe {
            create(
                key_pointers.as_ptr(),
                value_pointers.as_ptr(),
                options.len(),
                Some(keep_plugin_error),
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| {
            let said = take_plugin_errors();
            if said.is_empty() {
                error("it refused to start and gave no reason".to_owned())
            } else {
                error(format!("it refused to start: {said}"))
            }
        })?;
        Ok(Self {
            raw,
            kind: Kind::Plugin(destroy),
        })
    }

    pub(super) fn as_ptr(&self) -> *mut TfLiteDelegate {
        self.raw.as_ptr()
    }
}

impl Drop for Delegate {
    fn drop(&mut self) {
        match &self.kind {
            Kind::XnnPack(library) => {
                if let Some(functions) = &library.xnnpack {
                    // SAFETY: created by this library; the interpreter that used it is gone (field order).
                    unsafe { (functions.delete)(self.raw.as_ptr()) }
                }
            }
            // SAFETY: created by the same plugin, which is never unloaded.
            Kind::Plugin(destroy) | Kind::Gpu(destroy, _) => unsafe { destroy(self.raw.as_ptr()) },
        }
    }
}

/// What plugins reported since the last call.
pub(super) fn take_plugin_errors() -> String {
    std::mem::take(&mut *PLUGIN_ERRORS.lock().unwrap_or_else(|e| e.into_inner()))
}

unsafe extern "C" fn keep_plugin_error(text: *const c_char) {
    if text.is_null() {
        return;
    }
    // SAFETY: the plugin ABI passes a C string that is valid during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let mut errors = PLUGIN_ERRORS.lock().unwrap_or_else(|e| e.into_inner());
    if errors.len() + text.len() <= MAX_PLUGIN_ERROR_BYTES {
        if !errors.is_empty() {
            errors.push_str("; ");
        }
        errors.push_str(text.trim());
    }
}
