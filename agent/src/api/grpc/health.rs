//! `grpc.health.v1.Health`: what probes of orchestrators and load balancers ask.
//!
//! The device as a whole (`service` empty) and each service that is answered here are *serving* when the device is
//! ready, in the sense of `/v2/health/ready`. `Watch` tells it at once and then whenever it changes.

use super::rpc::SERVICES;
use crate::api::error::ApiError;
use crate::api::oip::metadata;
use crate::serving::Engine;

#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// How a service is just now.
pub fn status(engine: &Engine, service: &str) -> ServingStatus {
    if !service.is_empty() && !SERVICES.contains(&service) {
        ServingStatus::ServiceUnknown
    } else if metadata::unready(engine).is_empty() {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

pub fn check(
    engine: &Engine,
    request: &HealthCheckRequest,
) -> Result<HealthCheckResponse, ApiError> {
    match status(engine, &request.service) {
        ServingStatus::ServiceUnknown => Err(ApiError::not_found(format!(
            "there is no service {:?} here",
            request.service
        ))),
        status => Ok(HealthCheckResponse {
            status: status.into(),
        }),
    }
}
