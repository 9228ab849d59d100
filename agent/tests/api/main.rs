//! The doors as a client meets them: real sockets, real models, real TLS.

mod activation;
mod client;
mod coding;
mod commands;
mod device;
mod grpc;
mod hostile;
mod http2;
mod infer;
mod limits;
mod overload;
mod peers;
mod rates;
mod records;
mod sequences;
mod smuggling;
mod tls;
mod versions;
