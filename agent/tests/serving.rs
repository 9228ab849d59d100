//! The engine with real workers and the real TFLite library: proving, swapping, refusing, crashing.

#[path = "serving/batching.rs"]
mod batching;
#[path = "serving/crashes.rs"]
mod crashes;
#[path = "serving/delegates.rs"]
mod delegates;
#[path = "serving/limits.rs"]
mod limits;
#[path = "serving/memory.rs"]
mod memory;
#[path = "serving/scale.rs"]
mod scale;
#[path = "serving/shadow.rs"]
mod shadow;
#[path = "serving/support.rs"]
mod support;
#[path = "serving/swaps.rs"]
mod swaps;
#[path = "serving/versions.rs"]
mod versions;
