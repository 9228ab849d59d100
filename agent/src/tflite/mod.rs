//! The only FFI of the program: TFLite's C API, loaded at run time.
//!
//! Only the worker process calls this. The layer is thin and keeps one promise: nothing that the C side
//! still uses can be dropped. An [`Interpreter`] owns its delegate and shares its [`Model`], a model owns
//! the mapping of its file, and all of them keep the [`Library`] loaded. What it cannot promise is that the
//! C++ behind it survives every model: that is why it runs in a process of its own.

mod delegate;
mod gpu;
mod interpreter;
mod library;
mod log;
mod model;
mod signature;
mod spy;
mod strings;
mod tensor;

pub use delegate::Delegate;
pub use interpreter::{Canceller, Graph, Interpreter, Nodes};
pub use library::Library;
pub use model::Model;
pub use tensor::{Tensor, datatype_of};

use std::path::PathBuf;

/// The alignment that TFLite wants of memory it reads tensors from in place.
pub const ALIGNMENT: usize = edgefirst_tflite_sys::experimental_ffi::TENSOR_ALIGNMENT;

/// What TFLite or a delegate said no to, with its own words where it had any.
#[derive(Debug, thiserror::Error)]
pub enum TfliteError {
    #[error("cannot load the library {path}: {reason}")]
    Library { path: PathBuf, reason: String },
    #[error("the library {path} exports no {symbol}: it is not a usable TFLite C library")]
    Symbol { path: PathBuf, symbol: &'static str },
    #[error("TFLite cannot read the model: {0}")]
    Model(String),
    #[error("delegate {library}: {reason}")]
    Delegate { library: String, reason: String },
    #[error("TFLite cannot build an interpreter: {0}")]
    Interpreter(String),
    #[error("{doing}: {reason}")]
    Call {
        doing: &'static str,
        status: Status,
        reason: String,
    },
}

impl TfliteError {
    /// The invoke ended because someone asked for it.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Call { status, .. } if *status == Status::Cancelled)
    }

    /// The model uses operators that this library does not have.
    pub fn is_unresolved(&self) -> bool {
        matches!(self, Self::Call { status, .. } if *status == Status::UnresolvedOps)
    }
}

/// `TfLiteStatus` in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Ok,
    Error,
    DelegateError,
    ApplicationError,
    UnresolvedOps,
    Cancelled,
    Other(u32),
}

impl Status {
    fn of(number: u32) -> Self {
        use edgefirst_tflite_sys as sys;
        match number {
            sys::TfLiteStatus_kTfLiteOk => Self::Ok,
            sys::TfLiteStatus_kTfLiteError => Self::Error,
            sys::TfLiteStatus_kTfLiteDelegateError => Self::DelegateError,
            sys::TfLiteStatus_kTfLiteApplicationError => Self::ApplicationError,
            sys::TfLiteStatus_kTfLiteUnresolvedOps => Self::UnresolvedOps,
            sys::TfLiteStatus_kTfLiteCancelled => Self::Cancelled,
            other => Self::Other(other),
        }
    }

    /// What the number means, for when TFLite gave no text.
    fn words(self) -> String {
        match self {
            Self::Ok => "no error".to_owned(),
            Self::Error => "TFLite reported an error without a reason".to_owned(),
            Self::DelegateError => "the delegate failed".to_owned(),
            Self::ApplicationError => "the model and the delegate do not fit together".to_owned(),
            Self::UnresolvedOps => {
                "the model uses operators that this TFLite library does not have".to_owned()
            }
            Self::Cancelled => "cancelled".to_owned(),
            Self::Other(number) => format!("TFLite status {number}"),
        }
    }
}
