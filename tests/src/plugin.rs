//! Builds the tests' own libraries: a delegate (`tests/plugin/test_delegate.cc`), which stands for a vendor's driver,
//! and another date (`tests/plugin/shifted_clock.c`).
//!
//! Called by scenarios that name it in a device's configuration. A library is built once per source and kept
//! beside the programs; any number of test processes may ask for it at the same time.

use std::path::{Path, PathBuf};
use std::process::Command;

use edgeward_models::Digest;

use crate::{binaries, process};

const DELEGATE_FLAGS: &[&str] = &["-std=c++17", "-fvisibility=hidden"];

/// The library that does what its options say; its source explains them.
pub fn test_delegate() -> PathBuf {
    build("libtest_delegate", "test_delegate.cc", DELEGATE_FLAGS)
}

/// The same library, but it crashes while it is being loaded.
pub fn test_delegate_that_crashes_on_load() -> PathBuf {
    let flags = [DELEGATE_FLAGS, &["-DCRASH_ON_LOAD"]].concat();
    build("libtest_delegate_crash_on_load", "test_delegate.cc", &flags)
}

/// One that exports the functions of TFLite's GPU delegate, and starts with the options of one test alone.
pub fn test_gpu_delegate() -> PathBuf {
    let flags = [DELEGATE_FLAGS, &["-DGPU_V2", "-Wno-unused-function"]].concat();
    build("libtest_delegate_gpu", "test_delegate.cc", &flags)
}

/// One that also exports the symbol of a stable delegate.
pub fn test_stable_delegate() -> PathBuf {
    let flags = [DELEGATE_FLAGS, &["-DSTABLE"]].concat();
    build("libtest_delegate_stable", "test_delegate.cc", &flags)
}

/// To be loaded before the C library (`LD_PRELOAD`); its source explains it.
pub fn shifted_clock() -> PathBuf {
    build("libshifted_clock", "shifted_clock.c", &["-xc"])
}

fn build(name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let source = binaries::root().join("tests/plugin").join(source);
    let text = std::fs::read(&source).expect("read a library's source");
    let directory = build_directory();
    std::fs::create_dir_all(&directory).expect("make a directory");
    let library = directory.join(format!("{name}-{}.so", &Digest::of(&text).to_hex()[..16]));
    if library.exists() {
        return library;
    }
    // Tests run side by side: each compiles into a directory of its own, and the rename is atomic.
    let temporary = tempfile::tempdir_in(&directory).expect("make a directory");
    let made = temporary.path().join(name);
    let mut compiler = Command::new("c++");
    compiler
        .args(["-O2", "-shared", "-fPIC", "-Wall", "-Wextra"])
        .args(flags);
    compiler.arg("-I").arg(tflite_headers()).arg(&source);
    process::run(compiler.arg("-o").arg(&made)).expect_success();
    std::fs::rename(&made, &library).expect("put the library in its place");
    library
}

/// Beside the programs: test executables lie in `target/PROFILE/deps`.
fn build_directory() -> PathBuf {
    let this = std::env::current_exe().expect("path of this executable");
    let profile = this.ancestors().nth(2).expect("a target directory");
    profile.join("plugin")
}

/// TFLite's own headers, of the version that the agent is built for: its bindings crate ships them.
fn tflite_headers() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version=1", "--locked", "--offline"]);
    // What other platforms need was never downloaded.
    command.args(["--filter-platform", &host()]);
    let metadata = process::run(command.current_dir(binaries::root())).expect_success();
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("cargo's metadata");
    let packages = metadata["packages"].as_array().expect("packages");
    let bindings = packages
        .iter()
        .find(|p| p["name"] == "edgefirst-tflite-sys");
    let manifest = bindings.expect("the bindings crate")["manifest_path"].as_str();
    let directory = Path::new(manifest.expect("a path")).parent();
    directory.expect("a directory").to_owned()
}

/// What rustc calls this machine.
fn host() -> String {
    let version = process::run(Command::new("rustc").arg("-vV")).expect_success();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("a line about the host").to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_delegate_libraries_compile_and_export_the_plugin_symbols() {
        let libraries = [
            super::test_delegate(),
            super::test_delegate_that_crashes_on_load(),
        ];
        for library in libraries {
            let bytes = std::fs::read(&library).unwrap();
            for symbol in [
                "tflite_plugin_create_delegate",
                "tflite_plugin_destroy_delegate",
            ] {
                let found = bytes.windows(symbol.len()).any(|w| w == symbol.as_bytes());
                assert!(found, "{} lacks {symbol}", library.display());
            }
        }
    }
}
