//! `edgeward enroll`: the two steps that make this device a member of a fleet.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use edgeward_models::fleet::claim::{ClaimToken, MAX_CLAIM_BYTES};
use edgeward_models::fleet::enrolment::{EnrolmentBundle, MAX_BUNDLE_BYTES};
use edgeward_models::verify::{TrustStore, VerifyError};

use crate::config::Config;
use crate::fleet::identity::{self, IdentityError};
use crate::fleet::state::{StateDirectory, act_as_owner};
use crate::watch::audit::Audit;

const HELP: &str = "\
First `--request FILE` makes this device's key, which never leaves it, and writes a certificate request. \
The operator answers it with `fleetctl device enroll` (or, with --claim, `fleetctl claim accept`); then `--accept BUNDLE` takes the answer: the \
device's certificate, the broker's address and authority, and the root of trust. Both need the agent \
stopped. Exit status: 0 done, 1 the bundle is refused, 2 could not be tried.";

/// Arguments of `edgeward enroll`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
#[command(group(clap::ArgGroup::new("step").required(true).args(["request", "accept"])))]
pub struct Args {
    /// Write a certificate request to this file (`-`: standard output). The key is made once and kept.
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// Make a new key, for a device whose old one was lost to somebody or taken out of the fleet. What is installed
    /// serves on; the broker is out of reach until the answer is here.
    #[arg(long, requires = "request")]
    new_key: bool,
    /// Prove a claim with the token in this file, which the operator made for this device's serial number; the request
    /// is then answered with `fleetctl claim accept`.
    #[arg(long, value_name = "TOKEN-FILE", requires = "request")]
    claim: Option<PathBuf>,
    /// This device's serial number, for --claim [default: what the firmware says].
    #[arg(long, value_name = "SERIAL", requires = "claim")]
    serial: Option<String>,
    /// A name for the request, as a hint for the operator [default: the host's name].
    #[arg(long, value_name = "NAME", requires = "request")]
    name: Option<String>,
    /// Take the fleet's answer from this file.
    #[arg(long, value_name = "BUNDLE")]
    accept: Option<PathBuf>,
}

impl Args {
    pub fn run(self, config: &Path) -> anyhow::Result<ExitCode> {
        let config = Config::load(config)?;
        match (self.request, self.accept) {
            (Some(file), _) => {
                let claim = self
                    .claim
                    .map(|token| Claim::read(&token, self.serial))
                    .transpose()?;
                request(&config, &file, self.name, self.new_key, claim)
            }
            (None, Some(file)) => accept(&config, &file),
            (None, None) => anyhow::bail!("give --request FILE or --accept BUNDLE"),
        }
    }
}

fn request(
    config: &Config,
    file: &Path,
    name: Option<String>,
    new_key: bool,
    claim: Option<Claim>,
) -> anyhow::Result<ExitCode> {
    let hint = name.unwrap_or_else(host_name);
    // Opened with the caller's rights, before they are put down.
    let mut output: Box<dyn Write> = if file == Path::new("-") {
        Box::new(std::io::stdout())
    } else {
        Box::new(File::create(file).with_context(|| format!("cannot write {}", file.display()))?)
    };
    let state = open_state(config)?;
    if new_key {
        identity::forget_key(&state.identity())?;
    }
    let request = identity::request(&state.identity(), &hint)?;
    let (text, answer) = match &claim {
        Some(claim) => (claim.prove(&request)?, "fleetctl claim accept"),
        None => (request, "fleetctl device enroll"),
    };
    output
        .write_all(text.as_bytes())
        .with_context(|| format!("cannot write {}", file.display()))?;
    writeln!(
        std::io::stderr(),
        "The request is in {}. On the operator's machine: {answer}, then here: \
         edgeward enroll --accept BUNDLE",
        file.display()
    )?;
    Ok(ExitCode::SUCCESS)
}

/// A token, and the serial number that it is used for.
struct Claim {
    token: ClaimToken,
    serial: String,
}

impl Claim {
    fn read(file: &Path, serial: Option<String>) -> anyhow::Result<Self> {
        let mut text = String::new();
        File::open(file)
            .and_then(|f| f.take(MAX_CLAIM_BYTES).read_to_string(&mut text))
            .with_context(|| format!("cannot read {}", file.display()))?;
        let token = text
            .parse()
            .with_context(|| format!("cannot use {}", file.display()))?;
        let serial = match serial.or_else(firmware_serial) {
            Some(serial) => serial,
            None => anyhow::bail!("the firmware says no serial number; give it with --serial"),
        };
        Ok(Self { token, serial })
    }

    fn prove(&self, request: &str) -> anyhow::Result<String> {
        let claim = self.token.request(&self.serial, request);
        serde_json::to_string_pretty(&claim).context("cannot write the request")
    }
}

/// As the device's maker numbered it: PCs say it by DMI, boards in their device tree.
fn firmware_serial() -> Option<String> {
    let places = [
        "/sys/class/dmi/id/product_serial",
        "/sys/firmware/devicetree/base/serial-number",
    ];
    let said = places
        .into_iter()
        .find_map(|place| std::fs::read_to_string(place).ok())?;
    let serial = said.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!serial.is_empty()).then(|| serial.to_owned())
}

fn accept(config: &Config, file: &Path) -> anyhow::Result<ExitCode> {
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|f| f.take(MAX_BUNDLE_BYTES + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", file.display()))?;
    let state = open_state(config)?;
    let bundle = match identity::check(&state.identity(), &bytes) {
        Ok(bundle) => bundle,
        Err(error @ IdentityError::Durable(_)) => return Err(error.into()),
        Err(error) => return refuse(&format!("{:#}", anyhow::Error::from(error))),
    };
    let before = identity::stored_bundle(&state.identity())?;
    if let Some(before) = &before
        && let Some(problem) = another_fleet(before, &bundle)
    {
        let advice = format!(
            "{problem}; to move this device to another fleet, stop the agent, move {} away and begin with \
             `edgeward enroll --request`",
            state.root().display()
        );
        return refuse(&advice);
    }
    let audit = Audit::open(state.root())?;
    let trust = TrustStore::create(&state.trust(), bundle.root.as_bytes());
    match trust {
        Ok(_) => {}
        Err(error @ VerifyError::Durable(_)) => return Err(error.into()),
        Err(error) => return refuse(&format!("{:#}", anyhow::Error::from(error))),
    }
    if before.as_ref() == Some(&bundle) {
        return say(&format!(
            "{} is a member of the fleet {} already; nothing to do",
            bundle.device, bundle.fleet
        ));
    }
    audit.record(
        "enrolled",
        serde_json::json!({
            "fleet": bundle.fleet, "device": bundle.device, "broker": bundle.broker.host,
            "root": edgeward_models::Digest::of(bundle.root.as_bytes()),
            "certificate": edgeward_models::Digest::of(bundle.certificate.as_bytes()),
        }),
    )?;
    identity::store(&state.identity(), &bundle)?;
    say(&format!(
        "{} is a member of the fleet {}; broker {}:{}. Start the agent (with a [fleet] section in its \
         configuration it connects)",
        bundle.device, bundle.fleet, bundle.broker.host, bundle.broker.port
    ))
}

/// Why the new bundle is not of the fleet that this device belongs to.
fn another_fleet(before: &EnrolmentBundle, now: &EnrolmentBundle) -> Option<String> {
    (before.fleet != now.fleet).then(|| {
        format!(
            "this device belongs to the fleet {}, the bundle is of {}",
            before.fleet, now.fleet
        )
    })
}

fn open_state(config: &Config) -> anyhow::Result<StateDirectory> {
    act_as_owner(&config.state_directory)?;
    StateDirectory::open(&config.state_directory)
        .context("enrolment needs the agent stopped (systemctl stop edgeward)")
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "edgeward".to_owned(),
        name => name.chars().take(64).collect(),
    }
}

fn say(text: &str) -> anyhow::Result<ExitCode> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn refuse(text: &str) -> anyhow::Result<ExitCode> {
    writeln!(std::io::stderr(), "edgeward: {text}")?;
    Ok(ExitCode::from(1))
}
