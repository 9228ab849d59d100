//! Runs the scripts of `tests/python` in the environment that `make setup` prepared for them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, bail};

/// Where the scripts are.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// The Python of the environment: `EDGEWARD_PYTHON`, else `python/bin/python` in the target directory.
pub fn interpreter() -> anyhow::Result<PathBuf> {
    let python = match std::env::var_os("EDGEWARD_PYTHON") {
        Some(python) => PathBuf::from(python),
        None => target_directory().join("python/bin/python"),
    };
    if !python.exists() {
        bail!(
            "{} is not there: run `make setup`, or name a Python that has tests/python/requirements.txt in EDGEWARD_PYTHON",
            python.display()
        );
    }
    Ok(python)
}

/// Runs a script to its end. A failure carries what it wrote.
pub fn run<I, A>(script: &str, arguments: I) -> anyhow::Result<Output>
where
    I: IntoIterator<Item = A>,
    A: AsRef<OsStr>,
{
    let output = Command::new(interpreter()?)
        .arg(scripts().join(script))
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start {script}"))?;
    if !output.status.success() {
        bail!(
            "{script} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// The directory of pyopen-wakeword's models.
pub fn public_models() -> anyhow::Result<PathBuf> {
    let output = run("public_models.py", std::iter::empty::<&str>())?;
    let path =
        String::from_utf8(output.stdout).context("the path of the public models is not UTF-8")?;
    Ok(PathBuf::from(path.trim()))
}

fn target_directory() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Cargo takes a relative one from where it was called; here that is the workspace.
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
