//! Which method a call asks for.

use hyper::Method;

use super::SMALL;
use crate::api::body::Limit;
use crate::api::error::ApiError;
use crate::api::oip_grpc;
use crate::api::tfs;
use crate::config::Limits;

const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
const REFLECTION_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";
const INFERENCE: &str = "inference.GRPCInferenceService";
const PREDICTION: &str = "tensorflow.serving.PredictionService";
const MODELS: &str = "tensorflow.serving.ModelService";

/// All services, by their full names.
pub const SERVICES: &[&str] = &[
    HEALTH,
    REFLECTION,
    REFLECTION_ALPHA,
    INFERENCE,
    MODELS,
    PREDICTION,
];

/// A method that is answered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rpc {
    One(Unary),
    Many(Streaming),
}

/// One message is asked and one answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    HealthCheck,
    Inference(oip_grpc::Method),
    Tensorflow(tfs::Method),
}

/// Messages go to and fro.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streaming {
    HealthWatch,
    Reflection,
    Infer,
}

impl Rpc {
    pub fn of(method: &Method, path: &str) -> Result<Self, ApiError> {
        if *method != Method::POST {
            return Err(ApiError::method("POST"));
        }
        let unknown = || {
            let text = format!("there is no method {path:?} here");
            ApiError::new(hyper::StatusCode::NOT_IMPLEMENTED, text)
        };
        let tensorflow = |method| Self::One(Unary::Tensorflow(method));
        let path = path.strip_prefix('/').ok_or_else(unknown)?;
        let (service, method) = path.split_once('/').ok_or_else(unknown)?;
        let found = match (service, method) {
            (HEALTH, "Check") => Some(Self::One(Unary::HealthCheck)),
            (HEALTH, "Watch") => Some(Self::Many(Streaming::HealthWatch)),
            (REFLECTION | REFLECTION_ALPHA, "ServerReflectionInfo") => {
                Some(Self::Many(Streaming::Reflection))
            }
            (INFERENCE, "ModelStreamInfer") => Some(Self::Many(Streaming::Infer)),
            (INFERENCE, method) => {
                let method = oip_grpc::Method::named(method);
                method.map(|method| Self::One(Unary::Inference(method)))
            }
            (PREDICTION, "Predict") => Some(tensorflow(tfs::Method::Predict)),
            (PREDICTION, "GetModelMetadata") => Some(tensorflow(tfs::Method::GetModelMetadata)),
            (MODELS, "GetModelStatus") => Some(tensorflow(tfs::Method::GetModelStatus)),
            (MODELS, "HandleReloadConfigRequest") => {
                Some(tensorflow(tfs::Method::HandleReloadConfigRequest))
            }
            _ => None,
        };
        found.ok_or_else(unknown)
    }

    /// How large a message may be.
    pub fn limit(self, limits: &Limits) -> Limit<'static> {
        match self {
            Self::One(
                Unary::Inference(oip_grpc::Method::ModelInfer)
                | Unary::Tensorflow(tfs::Method::Predict),
            )
            | Self::Many(Streaming::Infer) => Limit {
                bytes: limits.max_body_bytes,
                whose: "this device",
            },
            _ => SMALL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_definitions_is_known_and_no_other() {
        for (package, definition) in [
            (
                "grpc.health.v1",
                include_str!("../../../protos/health.proto"),
            ),
            (
                "grpc.reflection.v1",
                include_str!("../../../protos/reflection_v1.proto"),
            ),
            (
                "grpc.reflection.v1alpha",
                include_str!("../../../protos/reflection_v1alpha.proto"),
            ),
            ("inference", include_str!("../../../protos/inference.proto")),
            (
                "tensorflow.serving",
                include_str!("../../../protos/tensorflow_serving.proto"),
            ),
        ] {
            let mut service = "";
            let mut methods = 0;
            for line in definition.lines() {
                let words: Vec<_> = line.split([' ', '(']).filter(|w| !w.is_empty()).collect();
                match words[..] {
                    ["service", name, ..] => service = name,
                    ["rpc", name, ..] => {
                        let path = format!("/{package}.{service}/{name}");
                        let rpc = Rpc::of(&Method::POST, &path);
                        let streams = line.contains("stream ");
                        assert_eq!(matches!(rpc, Ok(Rpc::Many(_))), streams, "{path}");
                        assert_eq!(matches!(rpc, Ok(Rpc::One(_))), !streams, "{path}");
                        methods += 1;
                    }
                    _ => {}
                }
            }
            assert!(methods > 0, "{package}");
        }
        for path in [
            "/inference.GRPCInferenceService/Nonsense",
            "/inference.GRPCInferenceService/",
            "/nonsense.Service/ModelInfer",
            "/inference.GRPCInferenceService",
            "inference.GRPCInferenceService/ModelInfer",
            "/",
            "",
        ] {
            let error = Rpc::of(&Method::POST, path).expect_err(path);
            assert_eq!(error.status, 501, "{path}");
        }
        let error = Rpc::of(&Method::GET, "/grpc.health.v1.Health/Check").expect_err("GET");
        assert_eq!(error.status, 405);
    }
}
