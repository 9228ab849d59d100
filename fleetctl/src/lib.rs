//! What of `fleetctl` reads the bytes of strangers, so that it can be tried without the program.

pub mod request;
