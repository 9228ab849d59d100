//! Where the programs under test, the TFLite library, the samples and the Python environment are.

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// One of our programs, as built: the directory of this test executable is `target/PROFILE/deps`.
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("path of this executable");
    let path = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file());
    path.unwrap_or_else(|| {
        panic!(
            "no {name} beside {}: run `cargo build --workspace --bins` first (`make test` does)",
            this.display()
        )
    })
}

/// The TFLite C library: `EDGEWARD_TFLITE`, else what `cross/fetch-tflite` installed.
pub fn tflite_library() -> PathBuf {
    let path = match std::env::var_os("EDGEWARD_TFLITE") {
        Some(path) => PathBuf::from(path),
        None => root()
            .join("cross/lib")
            .join(std::env::consts::ARCH)
            .join("libtensorflowlite_c.so"),
    };
    assert!(
        path.is_file(),
        "no TFLite library at {}: run cross/fetch-tflite (`make test` does)",
        path.display()
    );
    path.canonicalize().expect("canonical path")
}

/// A sample package, such as `digits-1.0.0`.
pub fn sample(name: &str) -> PathBuf {
    root()
        .join("models/samples")
        .join(name)
        .canonicalize()
        .unwrap_or_else(|e| panic!("sample {name}: {e}"))
}

/// What tests/setup.sh put into the target directory, whether it is there or not.
fn in_target(name: &str) -> PathBuf {
    // target/PROFILE/deps/TEST or target/PROFILE/bench
    let this = std::env::current_exe().expect("path of this executable");
    let places = this.ancestors().map(|directory| directory.join(name));
    let within_target = places.take(4);
    let mut there = within_target.clone().filter(|path| path.exists());
    let expected = within_target.last().expect("a target directory");
    there.next().unwrap_or(expected)
}

/// The files of a Debian that can be booted in a container, if tests/setup.sh could get them.
pub fn debian() -> Option<PathBuf> {
    Some(in_target("debian")).filter(|path| path.exists())
}

/// Prometheus's tool that checks rules, if tests/setup.sh could get it.
pub fn promtool() -> Option<PathBuf> {
    Some(in_target("promtool")).filter(|path| path.exists())
}

/// A public model, by its package and its name without `.tflite`, such as `mediapipe/hand_recrop`.
pub fn public_model(name: &str) -> PathBuf {
    let path = in_target("public-models").join(format!("{name}.tflite"));
    assert!(
        path.is_file(),
        "no public model at {}: run tests/setup.sh --tests (`make test` does)",
        path.display()
    );
    path
}

/// The Python of the environment with the reference interpreter and the reference client.
pub fn python() -> PathBuf {
    let path = match std::env::var_os("EDGEWARD_PYTHON") {
        Some(path) => PathBuf::from(path),
        None => in_target("python/bin/python"),
    };
    assert!(
        path.exists(),
        "no Python environment at {}: run tests/setup.sh --tests (`make test` does)",
        path.display()
    );
    path
}
