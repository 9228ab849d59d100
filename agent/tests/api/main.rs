//! The doors as a client meets them: real sockets, real models, real TLS.

mod activation;
mod client;
mod commands;
mod device;
mod hostile;
mod infer;
mod limits;
mod overload;
mod peers;
mod tls;
