//! `edgeward token`: a new bearer token for the TLS door.
//!
//! The token goes to stdout, once and nowhere else, so that it can be piped to where the client keeps it.
//! The lines for the configuration, which hold only its digest, go to stderr.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};

/// Arguments of `edgeward token`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whose token it is: this name stands in the log for each of its requests.
    #[arg(default_value = "client")]
    name: String,
}

impl Args {
    pub fn run(self, _config: &Path) -> anyhow::Result<ExitCode> {
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            bail!("a token's name must have at least one character, and no control characters");
        }
        let token = new_token()?;
        let lines = configuration(&self.name, &token);
        // The token first: if stdout is closed, nobody is told to configure a token that is lost.
        let mut out = std::io::stdout().lock();
        writeln!(out, "{token}").and_then(|()| out.flush())?;
        let mut err = std::io::stderr().lock();
        write!(
            err,
            "\nThe token above is shown this once. Clients send it as\n\n  \
             Authorization: Bearer TOKEN\n\nThe agent knows it by these lines in its configuration:\n\n{lines}\n"
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

/// 256 random bits as 64 hexadecimal digits.
fn new_token() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    OsRng
        .try_fill_bytes(&mut bytes)
        .context("the system gives no random numbers")?;
    Ok(hex::encode(bytes))
}

fn configuration(name: &str, token: &str) -> String {
    // A JSON string is a TOML basic string.
    let name = serde_json::Value::from(name);
    let digest = hex::encode(Sha256::digest(token));
    format!("[[tls.tokens]]\nname = {name}\nsha256 = \"{digest}\"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_lines_are_what_the_configuration_reads() {
        #[derive(serde::Deserialize)]
        struct Read {
            tls: Tls,
        }
        #[derive(serde::Deserialize)]
        struct Tls {
            tokens: Vec<crate::config::Token>,
        }
        let token = new_token().expect("token");
        assert_eq!(token.len(), 64);
        assert_ne!(token, new_token().expect("another"));
        let lines = configuration("pacs \"main\"", &token);
        assert!(!lines.contains(&token));
        let read: Read = toml::from_str(&lines).expect("TOML");
        assert_eq!(read.tls.tokens[0].name, "pacs \"main\"");
        assert_eq!(
            read.tls.tokens[0].sha256,
            hex::encode(Sha256::digest(&token))
        );
    }
}
