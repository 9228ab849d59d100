//! Worker processes: the real binary, the real TFLite library, real models.

mod answers;
mod batching;
mod cancel;
mod faults;
mod interpreters;
mod plugin;
mod sandbox;
mod signatures;
mod strings;
mod support;
