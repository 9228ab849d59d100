//! What an installed version refuses, and what authors get from their files.

use super::*;
use crate::manifest::Datatype;
use std::os::unix::fs::symlink;

fn samples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("samples")
}

/// A copy of a sample that may be damaged, with its manifest's digest.
fn copy(name: &str) -> (tempfile::TempDir, Digest) {
    let directory = tempfile::tempdir().expect("tempdir");
    for file in ["manifest.json", "model.tflite", "golden.json"] {
        std::fs::copy(samples().join(name).join(file), directory.path().join(file)).expect("copy");
    }
    let digest = Digest::of(&std::fs::read(directory.path().join("manifest.json")).expect("read"));
    (directory, digest)
}

fn refusal(directory: &Path, digest: &Digest) -> String {
    InstalledVersion::open(directory, digest)
        .expect_err("refused")
        .to_string()
}

#[test]
fn a_whole_version_opens_with_its_golden_vectors() {
    let (directory, digest) = copy("digits-1.0.0");
    std::fs::write(directory.path().join("surprise.so"), b"not listed").expect("write");
    let version = InstalledVersion::open(directory.path(), &digest).expect("opens");
    assert_eq!(version.manifest_digest(), &digest);
    assert_eq!(version.model_path(), directory.path().join("model.tflite"));
    assert!(
        !version
            .golden()
            .expect("golden")
            .expect("there")
            .vectors
            .is_empty()
    );
}

#[test]
fn one_changed_cut_or_missing_byte_anywhere_is_refused_by_name() {
    for file in ["manifest.json", "model.tflite", "golden.json"] {
        let (directory, digest) = copy("digits-1.0.0");
        let path = directory.path().join(file);
        let whole = std::fs::read(&path).expect("read");
        let mut changed = whole.clone();
        changed[whole.len() / 2] ^= 1;
        let longer = [&whole[..], b" "].concat();
        for bytes in [&changed[..], &whole[..whole.len() - 1], &longer[..], b""] {
            std::fs::write(&path, bytes).expect("write");
            let text = refusal(directory.path(), &digest);
            assert!(text.contains(file), "{text}");
        }
        std::fs::remove_file(&path).expect("remove");
        assert!(refusal(directory.path(), &digest).contains("is missing"));
    }
}

#[test]
fn links_and_pipes_are_refused_even_when_the_bytes_would_be_right() {
    let (directory, digest) = copy("digits-1.0.0");
    let path = directory.path().join("model.tflite");
    std::fs::remove_file(&path).expect("remove");
    symlink(samples().join("digits-1.0.0/model.tflite"), &path).expect("link");
    assert!(refusal(directory.path(), &digest).contains("symbolic link"));
    std::fs::remove_file(&path).expect("remove");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        Mode::from(0o600),
        0,
    )
    .expect("fifo");
    assert!(refusal(directory.path(), &digest).contains("not a regular file"));
    let elsewhere = tempfile::tempdir().expect("tempdir");
    let link = elsewhere.path().join("version");
    symlink(samples().join("digits-1.0.0"), &link).expect("link");
    assert!(InstalledVersion::open(&link, &digest).is_err());
}

#[test]
fn golden_vectors_that_do_not_fit_the_signature_are_refused_in_words() {
    let manifest = Manifest::parse(
        &std::fs::read(samples().join("accumulator-1.0.0/manifest.json")).expect("read"),
    )
    .expect("manifest");
    let name: FileName = "golden.json".parse().expect("name");
    let y = r#""outputs":{"y":{"shape":[1,4],"data":[1,2,3,4]}}"#;
    for (text, words) in [
        (
            format!(r#"{{"vectors":[{{"inputs":{{}},{y}}}]}}"#),
            "\"x\" is missing",
        ),
        (
            format!(r#"{{"vectors":[{{"inputs":{{"x":{{"shape":[1,3],"data":[1,2,3]}}}},{y}}}]}}"#),
            "shape",
        ),
        (
            format!(r#"{{"vectors":[{{"inputs":{{"x":{{"shape":[1,4],"data":[1]}}}},{y}}}]}}"#),
            "1 values",
        ),
        (
            format!(
                r#"{{"vectors":[{{"signature":"f","inputs":{{"x":{{"shape":[1,4],"data":[1,2,3,4]}}}},{y}}}]}}"#
            ),
            "no signature \"f\"",
        ),
        (
            r#"{"vectors": 1}"#.to_owned(),
            "does not hold golden vectors",
        ),
    ] {
        let error = parse_golden(&manifest, &name, text.as_bytes()).expect_err("refused");
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn golden_strings_stand_beside_golden_numbers_and_are_counted_like_them() {
    let sample = std::fs::read(samples().join("accumulator-1.0.0/manifest.json")).expect("read");
    let mut manifest = Manifest::parse(&sample).expect("manifest");
    manifest.signatures[0].inputs[0].datatype = Datatype::Bytes;
    manifest.signatures[0].inputs[0].shape = vec![-1];
    let name: FileName = "golden.json".parse().expect("name");
    let parse = |x: &str| {
        let y = r#""outputs":{"y":{"shape":[1,4],"data":[1,2,3,4]}}"#;
        let text = format!(r#"{{"vectors":[{{"inputs":{{"x":{x}}},{y}}}]}}"#);
        parse_golden(&manifest, &name, text.as_bytes())
    };
    let golden = parse(r#"{"shape":[2],"strings":["a",""]}"#).expect("golden");
    assert_eq!(golden.vectors[0].inputs["x"].strings, ["a", ""]);
    for (x, words) in [
        (
            r#"{"shape":[3],"strings":["a",""]}"#,
            "2 values in \"strings\"",
        ),
        (r#"{"shape":[2],"data":[1,2]}"#, "belong into \"strings\""),
        (r#"{"shape":[2],"data":["a","b"]}"#, "golden vectors"),
    ] {
        let error = parse(x).expect_err("refused");
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_tflite_file_becomes_a_package_that_opens_again() {
    let directory = tempfile::tempdir().expect("tempdir");
    let model = directory.path().join("hand-digits-2.0.0-rc.1.tflite");
    std::fs::copy(samples().join("digits-int8-2.0.0/model.tflite"), &model).expect("copy");
    std::fs::copy(
        samples().join("digits-int8-2.0.0/golden.json"),
        directory.path().join("hand-digits-2.0.0-rc.1.golden.json"),
    )
    .expect("copy");
    let package = Package::from_tflite(&model, TfliteOptions::default()).expect("package");
    let manifest = package.manifest();
    assert_eq!(manifest.model.as_str(), "hand-digits");
    assert_eq!(manifest.version.to_string(), "2.0.0-rc.1");
    assert_eq!(manifest.signatures[0].inputs[0].datatype, Datatype::Int8);
    assert_eq!(manifest.delegates[0].delegate.as_str(), "xnnpack");
    let written = directory.path().join("package");
    package.write(&written).expect("write");
    assert!(
        package.write(&written).is_err(),
        "a full directory was written over"
    );
    let again = Package::open(&written).expect("open");
    assert_eq!(again.manifest(), manifest);
    assert!(again.doubts().is_empty());
    let digest = Digest::of(&std::fs::read(written.join("manifest.json")).expect("read"));
    InstalledVersion::open(&written, &digest).expect("installed");
}

#[test]
fn an_edited_file_needs_no_edited_manifest_but_a_missing_one_is_refused() {
    let (directory, _) = copy("digits-1.0.0");
    std::fs::copy(
        samples().join("digits-2.0.0/model.tflite"),
        directory.path().join("model.tflite"),
    )
    .expect("copy");
    let package = Package::open(directory.path()).expect("open");
    let entry = package.manifest().files[&package.manifest().model_file];
    let bytes = std::fs::read(samples().join("digits-2.0.0/model.tflite")).expect("read");
    assert_eq!(entry.sha256, Digest::of(&bytes));
    std::fs::remove_file(directory.path().join("model.tflite")).expect("remove");
    let error = Package::open(directory.path())
        .expect_err("refused")
        .to_string();
    assert!(error.contains("model.tflite is missing"), "{error}");
}

#[test]
fn a_file_whose_name_says_nothing_asks_for_name_and_version() {
    let directory = tempfile::tempdir().expect("tempdir");
    let model = directory.path().join("Model.tflite");
    std::fs::copy(samples().join("digits-1.0.0/model.tflite"), &model).expect("copy");
    let error = Package::from_tflite(&model, TfliteOptions::default())
        .expect_err("refused")
        .to_string();
    assert!(error.contains("--name and --version"), "{error}");
    let options = TfliteOptions {
        model: Some("digits".parse().expect("name")),
        version: Some(crate::name::Version::new(1, 0, 0)),
        ..TfliteOptions::default()
    };
    Package::from_tflite(&model, options).expect("package");
}

#[test]
fn a_manifest_that_contradicts_its_model_file_raises_doubts_only() {
    let (directory, _) = copy("digits-1.0.0");
    std::fs::copy(
        samples().join("digits-int8-1.0.0/model.tflite"),
        directory.path().join("model.tflite"),
    )
    .expect("copy");
    let doubts = Package::open(directory.path()).expect("open").doubts();
    assert!(
        doubts[0].contains("FP32") && doubts[0].contains("INT8"),
        "{doubts:?}"
    );
    std::fs::write(directory.path().join("model.tflite"), b"junk").expect("write");
    assert!(Package::open(directory.path()).expect("open").doubts()[0].contains("TFL3"));
}
