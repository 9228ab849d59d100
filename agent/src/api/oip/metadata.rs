//! What the server and its models say about themselves, and whether they are ready.

use std::collections::BTreeMap;

use bytes::Bytes;
use edgeward_models::Manifest;
use edgeward_models::manifest::TensorSpec;
use http_body_util::Full;
use hyper::Response;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::serving::{Engine, Served, ServedModel};

/// What models are made for.
pub const PLATFORM: &str = "tensorflow_lite";

/// What is there beyond the protocol's core, by Triton's names.
pub const EXTENSIONS: [&str; 6] = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "parameters",
    "sequence",
    "statistics",
];

pub type Answered = Result<Response<Full<Bytes>>, ApiError>;

/// A JSON answer.
pub fn json(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

pub fn server() -> Answered {
    Ok(json(
        StatusCode::OK,
        &json!({
            "name": "edgeward",
            "version": crate::VERSION,
            "extensions": EXTENSIONS,
        }),
    ))
}

pub fn live() -> Answered {
    Ok(json(StatusCode::OK, &json!({ "live": true })))
}

/// Why this device is not ready, model by model; empty if it is.
pub fn unready(engine: &Engine) -> Vec<String> {
    engine
        .models()
        .iter()
        .filter(|m| !m.ready)
        .map(why)
        .chain(
            engine
                .lacking()
                .iter()
                .map(|(model, reason)| not_ready(model.as_str(), reason)),
        )
        .collect()
}

pub fn ready(engine: &Engine) -> Answered {
    let unready = unready(engine);
    if unready.is_empty() {
        return Ok(json(StatusCode::OK, &json!({ "ready": true })));
    }
    Ok(json(
        StatusCode::SERVICE_UNAVAILABLE,
        &json!({ "ready": false, "error": unready.join("; ") }),
    ))
}

fn why(model: &ServedModel) -> String {
    let reason = model.reason.as_deref();
    not_ready(
        model.model.as_str(),
        reason.unwrap_or("it does not answer now"),
    )
}

fn not_ready(model: &str, reason: &str) -> String {
    format!("model {model} is not ready: {reason}")
}

pub fn models(engine: &Engine) -> Answered {
    let names: Vec<String> = engine
        .models()
        .iter()
        .map(|m| m.model.to_string())
        .collect();
    Ok(json(StatusCode::OK, &json!({ "models": names })))
}

pub fn model(engine: &Engine, served: &Served) -> Answered {
    let manifest = served.manifest();
    let versions = versions(engine, manifest);
    Ok(json(StatusCode::OK, &describe(manifest, &versions)))
}

/// The versions of a model that a request may name.
pub fn versions(engine: &Engine, manifest: &Manifest) -> Vec<String> {
    // One that is being replaced this very moment may be gone.
    let served = engine
        .resolve_all(manifest.model.as_str())
        .unwrap_or_default();
    let versions = served.iter().map(|s| s.manifest().version.to_string());
    versions.collect()
}

fn describe(manifest: &Manifest, versions: &[String]) -> Value {
    let signature = manifest.default_signature();
    let properties = properties(manifest);
    let mut description = json!({
        "name": manifest.model.as_str(),
        "versions": versions,
        "platform": PLATFORM,
        "inputs": tensors(&signature.inputs),
        "outputs": tensors(&signature.outputs),
        "properties": properties,
    });
    if manifest.signatures.len() > 1 {
        // The protocol knows one signature.
        let all = manifest.signatures.iter().map(|signature| {
            json!({
                "name": signature.name,
                "inputs": tensors(&signature.inputs),
                "outputs": tensors(&signature.outputs),
            })
        });
        description["signatures"] = all.collect();
    }
    description
}

/// What is told of a model beside its tensors.
pub fn properties(manifest: &Manifest) -> BTreeMap<String, String> {
    let signature = manifest.default_signature();
    let mut properties = BTreeMap::new();
    properties.insert("release".to_owned(), manifest.release.to_string());
    properties.insert("signature_name".to_owned(), signature.name.clone());
    if manifest.signatures.len() > 1 {
        // What the parameter `signature_name` may say.
        let names = manifest.signatures.iter().map(|s| s.name.as_str());
        let names = names.collect::<Vec<_>>().join(",");
        properties.insert("signature_names".to_owned(), names);
    }
    if let Some(licence) = &manifest.licence {
        properties.insert("licence".to_owned(), licence.clone());
    }
    properties
}

fn tensors(specs: &[TensorSpec]) -> Vec<Value> {
    specs
        .iter()
        .map(|spec| {
            json!({
                "name": spec.name,
                "datatype": spec.datatype.name(),
                "shape": spec.shape,
            })
        })
        .collect()
}

pub fn model_ready(engine: &Engine, served: &Served) -> Answered {
    let manifest = served.manifest();
    let name = manifest.model.as_str();
    if served.ready() {
        return Ok(json(
            StatusCode::OK,
            &json!({ "name": name, "ready": true }),
        ));
    }
    let reason = engine
        .versions()
        .iter()
        .find(|m| m.model == manifest.model && m.active.version == manifest.version)
        .map_or_else(|| format!("model {name} is not ready"), why);
    Ok(json(
        StatusCode::SERVICE_UNAVAILABLE,
        &json!({ "name": name, "ready": false, "error": reason }),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_described_in_the_protocols_words() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../models/samples/digits-1.0.0/manifest.json"
        );
        let manifest = Manifest::parse(&std::fs::read(path).expect("sample")).expect("manifest");
        let description = describe(&manifest, &["1.0.0".to_owned()]);
        assert_eq!(description["name"], "digits");
        assert_eq!(description["versions"], json!(["1.0.0"]));
        assert_eq!(
            description["inputs"],
            json!([{"name": "image", "datatype": "FP32", "shape": [-1, 8, 8, 1]}])
        );
        assert!(description.get("signatures").is_none());
    }

    #[test]
    fn a_model_with_several_signatures_describes_each() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../models/samples/digits-1.0.0/manifest.json"
        );
        let mut manifest =
            Manifest::parse(&std::fs::read(path).expect("sample")).expect("manifest");
        let mut other = manifest.default_signature().clone();
        other.name = "other".to_owned();
        other.inputs[0].shape = vec![8];
        manifest.signatures.push(other);
        let description = describe(&manifest, &[]);
        let first = manifest.default_signature().name.as_str();
        assert_eq!(
            description["properties"]["signature_names"],
            format!("{first},other")
        );
        assert_eq!(
            description["signatures"][0]["inputs"],
            description["inputs"]
        );
        assert_eq!(description["signatures"][1]["name"], "other");
        assert_eq!(
            description["signatures"][1]["inputs"][0]["shape"],
            json!([8])
        );
    }
}
