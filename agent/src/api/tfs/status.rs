//! A version's state and its signatures, over HTTP and over gRPC.

use bytes::Bytes;
use edgeward_models::Manifest;
use edgeward_models::manifest::TensorSpec;
use http_body_util::Full;
use hyper::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::messages::{
    DataType, ModelVersionStatus, SignatureDef, SignatureDefMap, State, StatusProto,
};
use super::{DEFAULT_SIGNATURE, number};
use crate::api::oip::metadata;
use crate::serving::Served;

/// gRPC's code and word for what comes back by itself.
const UNAVAILABLE: (i32, &str) = (14, "UNAVAILABLE");

pub fn json(versions: &[Served]) -> Response<Full<Bytes>> {
    let versions = versions.iter().map(|served| {
        let (state, code, text) = if served.ready() {
            ("AVAILABLE", "OK", "")
        } else {
            ("LOADING", UNAVAILABLE.1, NOT_READY)
        };
        json!({
            "version": number(served.manifest()).to_string(),
            "state": state,
            "status": {"error_code": code, "error_message": text},
        })
    });
    let versions: Value = versions.collect();
    metadata::json(StatusCode::OK, &json!({"model_version_status": versions}))
}

const NOT_READY: &str = "its worker is not running now";

pub fn message(served: &Served) -> ModelVersionStatus {
    let (state, error_code, text) = if served.ready() {
        (State::Available, 0, "")
    } else {
        (State::Loading, UNAVAILABLE.0, NOT_READY)
    };
    ModelVersionStatus {
        version: number(served.manifest()),
        state: state.into(),
        status: Some(StatusProto {
            error_code,
            error_message: text.to_owned(),
        }),
    }
}

/// All signatures; the model's first one also under the name that everybody asks for.
fn signatures(manifest: &Manifest) -> Vec<(&str, &edgeward_models::manifest::Signature)> {
    let mut signatures: Vec<_> = manifest
        .signatures
        .iter()
        .map(|s| (s.name.as_str(), s))
        .collect();
    if !signatures
        .iter()
        .any(|(name, _)| *name == DEFAULT_SIGNATURE)
    {
        signatures.push((DEFAULT_SIGNATURE, manifest.default_signature()));
    }
    signatures
}

pub fn signature_map(manifest: &Manifest) -> SignatureDefMap {
    let signatures = signatures(manifest).into_iter();
    SignatureDefMap {
        signature_def: signatures
            .map(|(name, signature)| (name.to_owned(), SignatureDef::from(signature)))
            .collect(),
    }
}

pub fn metadata_json(served: &Served) -> Response<Full<Bytes>> {
    let manifest = served.manifest();
    let signatures: Map<String, Value> = signatures(manifest)
        .into_iter()
        .map(|(name, signature)| {
            let described = json!({
                "inputs": tensors(&signature.inputs),
                "outputs": tensors(&signature.outputs),
                "method_name": "tensorflow/serving/predict",
            });
            (name.to_owned(), described)
        })
        .collect();
    metadata::json(
        StatusCode::OK,
        &json!({
            "model_spec": {
                "name": manifest.model.as_str(),
                "signature_name": "",
                "version": number(manifest).to_string(),
            },
            "metadata": {"signature_def": {"signature_def": signatures}},
        }),
    )
}

fn tensors(specs: &[TensorSpec]) -> Map<String, Value> {
    let tensor = |spec: &TensorSpec| {
        let dimensions = spec.shape.iter();
        let dimensions = dimensions.map(|size| json!({"size": size.to_string(), "name": ""}));
        json!({
            "dtype": DataType::name(spec.datatype),
            "tensor_shape": {"dim": dimensions.collect::<Value>(), "unknown_rank": false},
            "name": spec.name,
        })
    };
    let named = specs.iter().map(|spec| (spec.name.clone(), tensor(spec)));
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_described_under_the_name_that_everybody_asks_for() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../models/samples/digits-1.0.0/manifest.json"
        );
        let bytes = std::fs::read(path).expect("sample");
        let mut manifest = Manifest::parse(&bytes).expect("manifest");
        manifest.signatures[0].name = "run".to_owned();
        let map = signature_map(&manifest).signature_def;
        assert_eq!(map["run"], map[DEFAULT_SIGNATURE]);
        let image = &map["run"].inputs["image"];
        assert_eq!(image.dtype(), DataType::DtFloat);
        let tensors = tensors(&manifest.signatures[0].inputs);
        assert_eq!(
            Value::from(tensors),
            json!({"image": {"dtype": "DT_FLOAT", "name": "image", "tensor_shape": {"unknown_rank": false, "dim": [
                {"size": "-1", "name": ""}, {"size": "8", "name": ""}, {"size": "8", "name": ""}, {"size": "1", "name": ""},
            ]}}})
        );
    }
}
