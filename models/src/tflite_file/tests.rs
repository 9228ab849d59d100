//! Real files read right, and any bytes at all read without a panic.

use super::*;
use crate::manifest::Manifest;
use proptest::prelude::*;
use std::path::PathBuf;

const SAMPLES: [&str; 6] = [
    "digits-1.0.0",
    "digits-2.0.0",
    "digits-int8-1.0.0",
    "digits-int8-2.0.0",
    "breast-cancer-1.0.0",
    "accumulator-1.0.0",
];

fn sample(name: &str, file: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("samples")
        .join(name)
        .join(file);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_sample_says_what_its_manifest_says() {
    for name in SAMPLES {
        let manifest = Manifest::parse(&sample(name, "manifest.json")).expect(name);
        let mut stated = manifest.signatures;
        // Their authors freed the first dimension by hand; the files themselves say 1.
        for tensor in stated
            .iter_mut()
            .flat_map(|s| s.inputs.iter_mut().chain(&mut s.outputs))
        {
            if tensor.shape[0] == -1 {
                tensor.shape[0] = 1;
            }
        }
        let own = signatures(&sample(name, "model.tflite")).expect(name);
        assert_eq!(own, stated, "{name}");
    }
}

#[test]
fn only_a_model_with_variables_keeps_state() {
    for name in SAMPLES {
        let found = keeps_state(&sample(name, "model.tflite")).expect(name);
        assert_eq!(found, name.starts_with("accumulator"), "{name}");
    }
}

#[test]
fn other_files_and_cut_off_models_are_refused_with_a_reason() {
    let model = sample("digits-1.0.0", "model.tflite");
    for bytes in [
        &b""[..],
        b"TFL3",
        b"{\"format\": 1}",
        b"\x7fELF\x02\x01\x01\0\0\0\0\0",
        &[0; 64],
    ] {
        let error = signatures(bytes).expect_err("refused").to_string();
        assert!(error.contains("identifier"), "{error}");
    }
    let whole = signatures(&model).expect("whole");
    let mut refused = 0;
    for length in (8..model.len()).step_by(97) {
        // What lies behind the tables (weights) may be cut unnoticed here; a table may not.
        match signatures(&model[..length]) {
            Ok(signatures) => assert_eq!(signatures, whole),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 10);
    let mut other = model;
    let root = u32::from_le_bytes(other[..4].try_into().expect("4")) as usize;
    assert_eq!(&other[4..8], IDENTIFIER);
    other[root] ^= 0xff;
    assert!(signatures(&other).is_err());
}

#[test]
fn a_list_that_claims_more_than_the_file_holds_is_refused_before_it_is_allocated() {
    // By hand: vtable at 8, root table at 20 with version 3 and a list of 2^32 - 1 graphs.
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&20u32.to_le_bytes());
    bytes.extend_from_slice(IDENTIFIER);
    for entry in [10u16, 12, 4, 0, 8] {
        bytes.extend_from_slice(&entry.to_le_bytes());
    }
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&12i32.to_le_bytes());
    bytes.extend_from_slice(&3u32.to_le_bytes());
    bytes.extend_from_slice(&4u32.to_le_bytes());
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    let error = signatures(&bytes).expect_err("refused").to_string();
    assert!(error.contains("outside the file"), "{error}");
}

proptest! {
    #[test]
    fn a_sample_with_wrong_bytes_never_panics_and_answers_within_bounds(
        which in 0..SAMPLES.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let mut bytes = sample(SAMPLES[which], "model.tflite");
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = keeps_state(&bytes);
        if let Ok(signatures) = signatures(&bytes) {
            prop_assert!(signatures.len() <= MAX_SIGNATURES);
            for tensor in signatures.iter().flat_map(|s| s.inputs.iter().chain(&s.outputs)) {
                prop_assert!(!tensor.name.is_empty() && tensor.shape.len() <= MAX_DIMENSIONS);
            }
        }
    }

    #[test]
    fn any_bytes_behind_the_identifier_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..400), root in 0u32..64) {
        let mut bytes = root.to_le_bytes().to_vec();
        bytes.extend_from_slice(IDENTIFIER);
        bytes.extend_from_slice(&tail);
        let _ = signatures(&bytes);
        let _ = keeps_state(&bytes);
    }
}
