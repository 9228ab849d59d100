//! A version and who may have it: model files, manifests, golden vectors, rollout documents, names.

use std::fmt::Display;
use std::str::FromStr;

use edgeward_models::fleet::rollout::{DesiredState, Membership};
use edgeward_models::manifest::{MAX_DIMENSIONS, byte_size};
use edgeward_models::name::{DelegateName, FileName, RolloutId};
use edgeward_models::package::parse_golden;
use edgeward_models::{
    DeviceId, Digest, FleetName, GroupName, Manifest, ModelName, Version, tflite_file,
};

/// A model file: what its tensors say is bounded.
pub fn model_file(data: &[u8]) {
    let _ = tflite_file::keeps_state(data);
    let Ok(signatures) = tflite_file::signatures(data) else {
        return;
    };
    for tensor in signatures
        .iter()
        .flat_map(|s| s.inputs.iter().chain(&s.outputs))
    {
        assert!(tensor.shape.len() <= MAX_DIMENSIONS, "{tensor:?}");
        assert!(tensor.name.len() <= data.len(), "{tensor:?}");
    }
}

/// A manifest: what is taken can be served, and means the same when it is written and read again.
pub fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::parse(data) else {
        return;
    };
    let again = Manifest::parse(&manifest.to_json()).expect("what was read can be written");
    assert_eq!(
        without_fractions(again),
        without_fractions(manifest.clone())
    );
    assert!(manifest.files.contains_key(&manifest.model_file));
    for name in manifest.files.keys() {
        assert!(!name.as_str().contains('/') && !name.as_str().starts_with('.'));
    }
    let least = &manifest.default_signature().inputs;
    let sum = least.iter().map(|input| input.least_bytes().unwrap_or(0));
    assert!(manifest.request_bytes() >= sum.fold(0, u64::saturating_add));
}

/// Fractions are read to the last digit but one.
fn without_fractions(mut manifest: Manifest) -> Manifest {
    for delegate in &mut manifest.delegates {
        delegate.tolerance.float = 0.0;
        delegate.least_share = 0.0;
    }
    for signature in &mut manifest.signatures {
        for tensor in signature.inputs.iter_mut().chain(&mut signature.outputs) {
            if let Some(quantization) = &mut tensor.quantization {
                quantization.scale = 1.0;
            }
        }
    }
    manifest
}

/// Golden vectors of the samples.
pub fn golden(data: &[u8]) {
    let samples = [
        &include_bytes!("../../../models/samples/digits-1.0.0/manifest.json")[..],
        include_bytes!("../../../models/samples/accumulator-1.0.0/manifest.json"),
    ];
    let name: FileName = "golden.json".parse().expect("a name");
    for sample in samples {
        let manifest = Manifest::parse(sample).expect("a sample's manifest");
        let Ok(golden) = parse_golden(&manifest, &name, data) else {
            continue;
        };
        for vector in &golden.vectors {
            for (name, tensor) in vector.inputs.iter().chain(&vector.outputs) {
                let spec = manifest
                    .signatures
                    .iter()
                    .flat_map(|s| s.inputs.iter().chain(&s.outputs))
                    .find(|spec| spec.name == *name)
                    .expect("a tensor that the model has");
                let size = spec.datatype.size().expect("numbers") as u64;
                let bytes = byte_size(spec.datatype, tensor.shape.iter().copied());
                assert_eq!(bytes, Some(tensor.data.len() as u64 * size));
            }
        }
    }
}

/// Wishes and memberships, as they stand in signed targets.
pub fn rollout(data: &[u8]) {
    let device: DeviceId = "ct-1".parse().expect("a name");
    if let Ok(desired) = serde_json::from_slice::<DesiredState>(data) {
        let again = serde_json::to_vec(&desired).expect("what was read can be written");
        let again: DesiredState = serde_json::from_slice(&again).expect("and read");
        assert_eq!(again, desired);
        for wish in desired.models.values() {
            let included = wish.includes(&device);
            assert!(
                included || !wish.reaches_everybody(),
                "everybody is not somebody"
            );
            let most = u64::from(wish.jitter_seconds);
            assert!(wish.start_delay(&device).as_secs() <= most);
        }
    }
    if let Ok(membership) = serde_json::from_slice::<Membership>(data) {
        let again = serde_json::to_vec(&membership).expect("what was read can be written");
        let again: Membership = serde_json::from_slice(&again).expect("and read");
        assert_eq!(again, membership);
    }
}

/// Names, which become paths and topics: what is taken is one plain part of either, and is written the same again.
pub fn name(data: &[u8]) {
    fn check<T: FromStr + Display>(text: &str) {
        let Ok(name) = text.parse::<T>() else {
            return;
        };
        assert_eq!(name.to_string(), text);
        assert!(!text.is_empty() && text != "." && text != "..");
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        assert!(text.bytes().all(plain), "{text:?}");
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    check::<ModelName>(text);
    check::<Version>(text);
    check::<DeviceId>(text);
    check::<GroupName>(text);
    check::<FleetName>(text);
    check::<FileName>(text);
    check::<DelegateName>(text);
    check::<RolloutId>(text);
    check::<Digest>(text);
}
