//! `fleetctl claim`: devices that join with a token, without anybody typing their names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use edgeward_models::digest::Digest;
use edgeward_models::durable::{self, Access};
use edgeward_models::fleet::claim::{ClaimRequest, ClaimToken, MAX_CLAIM_BYTES, MAX_SERIAL_BYTES};
use edgeward_models::name::{DeviceId, GroupName};
use fleetctl::request::requested_key;
use jiff::{SignedDuration, Timestamp};
use rcgen::PublicKeyData;
use serde_json::json;

use super::device::{day, enroll};
use crate::claims::{Claim, Claims};
use crate::operator::Operator;
use crate::printer::{Printer, plain, table};

/// Give out tokens with which devices join, and accept their requests
#[derive(Debug, Subcommand)]
pub enum Verb {
    Create(Create),
    List(List),
    Accept(Accept),
}

/// Make a token with which one device may join
///
/// It works once, until it ends, for a device with one of the serial numbers. Take it to the device, whose request then
/// proves that it has the token and does not hold it (`edgeward enroll --request FILE --claim TOKEN-FILE`). Which name,
/// groups and rights the device gets is decided here.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl claim create --serial SN-40221 --id ct-1 --group radiology --out ct-1.claim
  fleetctl claim create --serial SN-40221 --serial SN-40222 --days 2 --out spare.claim")]
pub struct Create {
    /// The serial number of a device that may use it (may be repeated: one of them may)
    #[arg(long, value_name = "SERIAL", required = true)]
    serial: Vec<String>,
    /// The name that the device gets; absent: its serial number, in small letters
    #[arg(long)]
    id: Option<DeviceId>,
    /// Put the device into this group (may be repeated)
    #[arg(long, value_name = "GROUP")]
    group: Vec<GroupName>,
    /// Let it take a name that another key has, as after the loss of a device's disk
    #[arg(long)]
    replace: bool,
    /// For how long it may be used
    #[arg(long, value_name = "DAYS", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=365))]
    days: u16,
    /// Where to write the token, readable by you only; absent: standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Show the tokens that were given out, and who used them
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl claim list
  fleetctl claim list --json")]
pub struct List {
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Let a device join whose request proves a token
///
/// As `fleetctl device enroll` does with a request that you trust: the bundle that comes out goes back to the device.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl claim accept ct-1.request.json --out ct-1.bundle.json")]
pub struct Accept {
    /// The device's request
    #[arg(value_name = "REQUEST")]
    request: PathBuf,
    /// Where to write the bundle; absent: standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Do not ask the broker; publish later with `fleetctl sync` or carry with `fleetctl export`
    #[arg(long)]
    offline: bool,
}

impl Verb {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        match self {
            Self::Create(args) => args.run(&operator),
            Self::List(args) => args.run(&operator),
            Self::Accept(args) => args.run(&operator).await,
        }
    }
}

impl Create {
    fn run(self, operator: &Operator) -> Result<ExitCode> {
        // Held so that no other command changes the claims meanwhile.
        let _repository = operator.repository()?;
        let serials: BTreeSet<String> = self.serial.into_iter().collect();
        ensure!(
            self.id.is_none() || serials.len() == 1,
            "--id names one device, and there are {} serial numbers",
            serials.len()
        );
        for serial in &serials {
            ensure!(
                !serial.is_empty() && serial.len() <= MAX_SERIAL_BYTES,
                "{serial:?} is no serial number"
            );
            if self.id.is_none() {
                named_by(serial)?;
            }
        }
        let token = ClaimToken::generate()?;
        let expires = Timestamp::now() + SignedDuration::from_hours(24 * i64::from(self.days));
        let mut claim = Claim::new(token.key(), serials, expires);
        claim.device = self.id;
        claim.groups = self.group.into_iter().collect();
        claim.replace = self.replace;
        Claims::open(operator.home.claims_path())?.add(&token.id, claim)?;
        match &self.out {
            None => operator.printer.data(&token.reveal())?,
            Some(path) => {
                let text = token.reveal() + "\n";
                durable::write(path, text.as_bytes(), Access::Owner)?;
            }
        }
        operator
            .printer
            .note(&format!("token {} works once, until {expires}", token.id));
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    fn run(self, operator: &Operator) -> Result<ExitCode> {
        let claims = Claims::open(operator.home.claims_path())?;
        if self.json {
            let rows = claims.all().iter().map(|(id, claim)| {
                json!({
                    "claim": id, "serials": claim.serials, "device": claim.device, "groups": claim.groups,
                    "expires": claim.expires,
                    "used": claim.used.as_ref().map(|used| json!({ "serial": used.serial, "at": used.at })),
                })
            });
            let rows: Vec<_> = rows.collect();
            operator
                .printer
                .json(&json!({ "fleet": operator.home.fleet(), "claims": rows }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut rows = vec![
            ["CLAIM", "FOR", "UNTIL", "USED BY"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for (id, claim) in claims.all() {
            let serials: Vec<&str> = claim.serials.iter().map(String::as_str).collect();
            let used = claim.used.as_ref();
            rows.push(vec![
                id.clone(),
                plain(&serials.join(", ")),
                day(claim.expires),
                used.map_or("-".to_owned(), |used| plain(&used.serial)),
            ]);
        }
        operator.printer.data(&table(&rows))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Accept {
    async fn run(self, operator: &Operator) -> Result<ExitCode> {
        let bytes = durable::read(&self.request, MAX_CLAIM_BYTES)?
            .with_context(|| format!("there is no file {}", self.request.display()))?;
        let refusing = || format!("cannot accept {}", self.request.display());
        let request = ClaimRequest::read(&bytes).with_context(refusing)?;
        let key = requested_key(&request.request).with_context(refusing)?;
        let key = Digest::of(&key.subject_public_key_info());
        let mut repository = operator.repository()?;
        let claim = Claims::open(operator.home.claims_path())?
            .accept(&request, key, Timestamp::now())
            .with_context(refusing)?;
        let member = enroll::Member {
            id: match claim.device {
                Some(id) => id,
                None => named_by(&request.serial)?,
            },
            groups: claim.groups,
            replace: claim.replace,
            offline: self.offline,
        };
        member
            .enroll(
                operator,
                &mut repository,
                &request.request,
                self.out.as_deref(),
            )
            .await
    }
}

fn named_by(serial: &str) -> Result<DeviceId> {
    serial.to_ascii_lowercase().parse().with_context(|| {
        format!("the serial number {serial:?} cannot be a device's name; name the device with --id")
    })
}
