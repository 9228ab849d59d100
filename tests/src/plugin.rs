//! Builds the tests' own delegate library (`tests/plugin/test_delegate.cc`), which stands for a vendor's driver.
//!
//! Called by scenarios that name it in a device's configuration. A library is built once per source and kept
//! in the target directory; any number of test processes may ask for it at the same time.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use edgeward_models::Digest;

/// The library that does what its options say; the source explains them.
pub fn test_delegate() -> anyhow::Result<PathBuf> {
    build("libtest_delegate", &[])
}

/// The same library, but it crashes while it is being loaded.
pub fn test_delegate_that_crashes_on_load() -> anyhow::Result<PathBuf> {
    build("libtest_delegate_crash_on_load", &["-DCRASH_ON_LOAD"])
}

fn build(name: &str, flags: &[&str]) -> anyhow::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugin/test_delegate.cc");
    let text =
        std::fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let directory = build_directory()?;
    std::fs::create_dir_all(&directory)?;
    let library = directory.join(format!("{name}-{}.so", &Digest::of(&text).to_hex()[..16]));
    if library.exists() {
        return Ok(library);
    }
    // Tests run side by side: each compiles under a name of its own, and the rename is atomic.
    let temporary = directory.join(format!(".{name}-{}.so", std::process::id()));
    let output = Command::new("c++")
        .args([
            "-std=c++17",
            "-O2",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            "-Wall",
            "-Wextra",
        ])
        .args(flags)
        .arg("-I")
        .arg(tflite_headers()?)
        .arg(&source)
        .arg("-o")
        .arg(&temporary)
        .output()
        .context("cannot start c++; install the package g++")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{} does not compile:\n{errors}", source.display());
    }
    std::fs::rename(&temporary, &library)?;
    Ok(library)
}

/// Beside the programs: test binaries run from `target/PROFILE/deps`, others from `target/PROFILE`.
fn build_directory() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program's own path")?;
    let mut directory = program.parent().context("this program has no directory")?;
    if directory.ends_with("deps")
        && let Some(parent) = directory.parent()
    {
        directory = parent;
    }
    Ok(directory.join("plugin"))
}

/// TFLite's own headers, of the version that the agent is built for, as its bindings crate ships them.
fn tflite_headers() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .context("cannot start cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "edgefirst-tflite-sys")
        .and_then(|package| package["manifest_path"].as_str())
        .context("the workspace does not depend on edgefirst-tflite-sys")?;
    let directory = Path::new(manifest)
        .parent()
        .context("a manifest has a directory")?;
    Ok(directory.to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_delegate_libraries_compile_and_export_the_plugin_symbols() -> anyhow::Result<()> {
        for library in [
            super::test_delegate()?,
            super::test_delegate_that_crashes_on_load()?,
        ] {
            let bytes = std::fs::read(&library)?;
            for symbol in [
                "tflite_plugin_create_delegate",
                "tflite_plugin_destroy_delegate",
            ] {
                let found = bytes.windows(symbol.len()).any(|w| w == symbol.as_bytes());
                assert!(found, "{} lacks {symbol}", library.display());
            }
        }
        Ok(())
    }
}
