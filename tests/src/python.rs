//! Runs the scripts of `tests/python` in the environment that `make setup` prepared for them.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use crate::binaries;
use crate::process::{self, Finished};

/// Runs a script to its end.
pub fn run<I, A>(script: &str, arguments: I) -> Finished
where
    I: IntoIterator<Item = A>,
    A: AsRef<OsStr>,
{
    let path = binaries::root().join("tests/python").join(script);
    process::run(Command::new(binaries::python()).arg(path).args(arguments))
}

/// A public model of pyopen-wakeword, by its name without `.tflite`.
pub fn public_model(name: &str) -> PathBuf {
    let directory = run("public_models.py", [""; 0]).expect_success();
    let path = PathBuf::from(directory.trim()).join(format!("{name}.tflite"));
    assert!(
        path.is_file(),
        "there is no public model {}",
        path.display()
    );
    path
}
