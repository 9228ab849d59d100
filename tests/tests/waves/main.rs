//! Rollouts in waves, on real agents behind a real mosquitto: they widen by themselves, and a version that is not
//! good stops by itself, wherever it shows that it is not.

mod ward;

mod bad_versions;
mod widening;
