//! The agent's answers beside those of Google's own interpreter: every sample, and every public model of
//! pyopen-wakeword.

use edgeward_tests::reference::{KERNELS, Subject, assert_equal};
use edgeward_tests::{Site, binaries, python};

/// Samples, with the shapes of their input to compare at; the fixtures' own shape where none is given.
const SAMPLES: [(&str, &str); 6] = [
    ("digits-1.0.0", "1x8x8x1,7x8x8x1"),
    ("digits-2.0.0", "1x8x8x1,7x8x8x1"),
    ("digits-int8-1.0.0", "1x8x8x1,7x8x8x1"),
    ("digits-int8-2.0.0", "1x8x8x1,7x8x8x1"),
    ("breast-cancer-1.0.0", ""),
    ("accumulator-1.0.0", ""),
];

/// Public models; the spectrogram takes any length of sound.
const PUBLIC: [(&str, &str); 7] = [
    ("alexa", ""),
    ("embedding_model", ""),
    ("hey_jarvis", ""),
    ("hey_mycroft", ""),
    ("hey_rhasspy", ""),
    ("melspectrogram", "1x1280,1x12480,1x17920"),
    ("okay_nabu", ""),
];

#[test]
fn answers_are_those_of_the_reference_interpreter_on_the_same_kernels() {
    let site = Site::new(|_| {});
    let samples = SAMPLES.iter().map(|&(sample, shapes)| Subject {
        // Two versions of one model are two names here: both are served at once.
        name: sample.replace(".0.0", ""),
        file: binaries::sample(sample).join("model.tflite"),
        shapes,
        sample: Some(sample),
    });
    let public = PUBLIC.iter().map(|&(name, shapes)| Subject {
        name: name.to_owned(),
        file: python::public_model(name),
        shapes,
        sample: None,
    });
    let subjects: Vec<_> = samples.chain(public).collect();
    let compared = assert_equal(&site, &subjects);
    assert!(compared >= KERNELS.len() * subjects.len(), "{compared}");
}
