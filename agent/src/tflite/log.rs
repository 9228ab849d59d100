//! TFLite's error texts, caught where the C API would print them to stderr.
//!
//! The reporter gets a `printf` format and a `va_list`; libc formats it. A [`Log`] lives in a box whose
//! address the C side keeps, so whoever owns one must drop it after the object that reports into it.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::sync::Mutex;

use edgefirst_tflite_sys::__va_list_tag;

/// A chatty model must not fill the memory: later texts are dropped.
const MAX_BYTES: usize = 4096;

unsafe extern "C" {
    fn vsnprintf(
        buffer: *mut c_char,
        size: usize,
        format: *const c_char,
        arguments: *mut c_void,
    ) -> c_int;
}

/// Collects error texts until they are taken.
#[derive(Debug, Default)]
pub(super) struct Log(Mutex<String>);

impl Log {
    pub(super) fn new() -> Box<Self> {
        Box::default()
    }

    /// The pointer the C side hands back to [`report`].
    pub(super) fn user_data(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// Adds one text, as one line.
    pub(super) fn add(&self, text: &str) {
        let mut log = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if text.is_empty() || log.len() + text.len() > MAX_BYTES {
            return;
        }
        if !log.is_empty() {
            log.push_str("; ");
        }
        log.push_str(&text);
    }

    /// Everything since the last call, or `otherwise`.
    pub(super) fn take_or(&self, otherwise: impl FnOnce() -> String) -> String {
        let text = std::mem::take(&mut *self.0.lock().unwrap_or_else(|e| e.into_inner()));
        if text.is_empty() { otherwise() } else { text }
    }

    /// Forgets what was said so far.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).clear();
    }
}

/// TFLite's error reporter.
///
/// # Safety
/// `user_data` must come from [`Log::user_data`] of a log that still lives; `format` and `arguments` must
/// be what a C caller passes to `vprintf`.
pub(super) unsafe extern "C" fn report(
    user_data: *mut c_void,
    format: *const c_char,
    arguments: *mut __va_list_tag,
) {
    let mut buffer = [0u8; 1024];
    // SAFETY: the buffer is as long as it says; format and arguments belong together by the C contract. On
    // every ABI we build for, a `va_list` parameter is passed as one pointer-sized value.
    let length = unsafe {
        vsnprintf(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            format,
            arguments.cast(),
        )
    };
    let length = usize::try_from(length).unwrap_or(0).min(buffer.len() - 1);
    // SAFETY: by the contract above this is a living `Log`, shared and internally locked.
    let log = unsafe { &*user_data.cast::<Log>() };
    log.add(&String::from_utf8_lossy(&buffer[..length]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_joined_bounded_and_taken_once() {
        let log = Log::new();
        log.add(" fi\n  rst \n");
        log.add("second");
        log.add(&"x".repeat(MAX_BYTES));
        assert_eq!(log.take_or(String::new), "fi rst; second");
        assert_eq!(log.take_or(|| "nothing".to_owned()), "nothing");
    }
}
