//! The passphrases of encrypted private keys: from a file, or asked on the terminal.
//!
//! `home` opens keys with it, `init` and `key encrypt` choose new ones. A passphrase that opened one key is tried on
//! the next, so that a person is asked once. It is never an argument or a variable, which other users could see: a
//! service names a file, or a descriptor as `/dev/fd/3`, in `FLEETCTL_PASSPHRASE_FILE`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use console::Term;
use edgeward_models::sign::{EncryptedKey, Passphrase, Unlocked};
use zeroize::Zeroizing;

const FILE_VARIABLE: &str = "FLEETCTL_PASSPHRASE_FILE";
const MAX_BYTES: u64 = 4096;
/// A shorter one is guessed, however slow each guess is made.
const SHORTEST: usize = 12;
/// How often a person may mistype.
const ATTEMPTS: u32 = 3;

#[derive(Debug, Default)]
pub struct Passphrases {
    file: Option<PathBuf>,
    known: Mutex<Vec<Passphrase>>,
}

impl Passphrases {
    pub fn from_environment() -> Self {
        let file = std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty());
        Self {
            file: file.map(PathBuf::from),
            known: Mutex::default(),
        }
    }

    /// Opens the key of a file: with what is known, what stands in the file, or what a person types.
    pub fn unlock(&self, path: &Path, key: &EncryptedKey) -> Result<Unlocked, String> {
        let known = self.known().clone();
        if let Some(unlocked) = known.into_iter().find_map(|known| open(key, known)) {
            return Ok(unlocked);
        }
        if let Some(file) = &self.file {
            if !self.known().is_empty() {
                return Err(format!("it is not the one in {}", file.display()));
            }
            // A descriptor can be read once.
            let passphrase = from_file(file).map_err(|e| format!("{e:#}"))?;
            self.known().push(passphrase);
            return self.unlock(path, key);
        }
        for _ in 0..ATTEMPTS {
            let typed = ask(&format!("passphrase of {}: ", path.display()))?;
            if let Some(unlocked) = open(key, typed) {
                self.known().push(unlocked.passphrase.clone());
                return Ok(unlocked);
            }
            say("that is not it");
        }
        Err(format!("{ATTEMPTS} others were typed"))
    }

    fn known(&self) -> MutexGuard<'_, Vec<Passphrase>> {
        // A push is whole or not there.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new passphrase, typed twice or from the file.
    pub fn choose(&self) -> Result<Passphrase> {
        let chosen = match &self.file {
            Some(file) => from_file(file)?,
            None => {
                let ask = |question| ask(question).map_err(anyhow::Error::msg);
                let chosen = ask("new passphrase: ")?;
                ensure!(
                    chosen == ask("the same again: ")?,
                    "they are not the same; nothing was changed"
                );
                chosen
            }
        };
        ensure!(
            chosen.as_str().chars().count() >= SHORTEST,
            "the passphrase is shorter than {SHORTEST} characters: choose a longer one, such as six random words"
        );
        self.known().push(chosen.clone());
        Ok(chosen)
    }
}

fn open(key: &EncryptedKey, passphrase: Passphrase) -> Option<Unlocked> {
    let document = key.open(&passphrase)?;
    Some(Unlocked {
        document,
        passphrase,
    })
}

/// The first line of a file that others cannot read.
fn from_file(path: &Path) -> Result<Passphrase> {
    let reading = || format!("cannot read {FILE_VARIABLE} {}", path.display());
    let file = File::open(path).with_context(reading)?;
    let metadata = file.metadata().with_context(reading)?;
    let mode = metadata.permissions().mode();
    if metadata.is_file() && mode & 0o007 != 0 {
        bail!(
            "{} may be read by everybody (mode {:04o}): run `chmod 600 {0}`, and if others may have read it, change \
             the passphrase",
            path.display(),
            mode & 0o777
        );
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .with_context(reading)?;
    let line = text.lines().next().unwrap_or_default();
    ensure!(!line.is_empty(), "{} is empty", path.display());
    Ok(Passphrase::new(line.to_owned()))
}

/// Asks on the terminal, without echo.
fn ask(question: &str) -> Result<Passphrase, String> {
    let terminal = Term::stderr();
    if !terminal.is_term() {
        return Err(format!(
            "there is no terminal to ask for it; name a file that holds it in {FILE_VARIABLE}"
        ));
    }
    let unasked = |e| format!("it cannot be asked for: {e}");
    terminal.write_str(question).map_err(unasked)?;
    terminal
        .read_secure_line()
        .map(Passphrase::new)
        .map_err(unasked)
}

fn say(text: &str) {
    // If nobody can read this the next question fails, and says so.
    drop(Term::stderr().write_line(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, text).expect("write");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("chmod");
        file
    }

    #[test]
    fn a_file_gives_its_first_line_unless_everybody_may_read_it() {
        let read = from_file(file("correct horse battery\nmore\n", 0o600).path()).expect("read");
        assert_eq!(read.as_str(), "correct horse battery");
        for (text, mode, words) in [
            ("secret words here\n", 0o644, "read by everybody"),
            ("\n", 0o600, "is empty"),
        ] {
            let error = from_file(file(text, mode).path()).expect_err(words);
            let shown = format!("{error:#}");
            assert!(
                shown.contains(words) && !shown.contains("secret"),
                "{shown}"
            );
        }
    }

    #[test]
    fn a_short_passphrase_is_not_chosen() {
        let short = file("elevenchars\n", 0o600);
        let passphrases = Passphrases {
            file: Some(short.path().to_owned()),
            ..Passphrases::default()
        };
        let error = passphrases.choose().expect_err("short").to_string();
        assert!(error.contains("shorter than 12"), "{error}");
    }
}
