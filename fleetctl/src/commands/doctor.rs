//! `fleetctl doctor`: what is about to end or already wrong, and what to do about it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use edgeward_models::sign::{Repository, SigningRole};
use edgeward_models::verify::END_IN_SIGHT;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;

use super::broker_config::BROKER_FILES;
use super::device::day;
use crate::carrier::Standing;
use crate::devices::not_after;
use crate::operator::Operator;
use crate::printer::{Printer, plain, table};
use crate::{FAILED, REFUSED};

/// Snapshot and timestamp live for thirty days and are refreshed daily.
const REFRESH_MISSED: SignedDuration = SignedDuration::from_hours(20 * 24);

/// Say what is about to end, what is wrong, and what to do about it
///
/// Looks at the signed metadata and its keys, the certificates of authority, operator, broker and devices, the clock,
/// and at the broker: whether it answers, which certificate it shows, whether it holds what was published. What ends
/// within 60 days is named. Exit status: 0 nothing is to be done, 1 something is, 2 the broker could not be asked.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl doctor
  fleetctl doctor --offline --json")]
pub struct Args {
    /// Do not ask the broker
    #[arg(long)]
    offline: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Good,
    /// It ends within 60 days.
    Ending,
    Ended,
    /// It is not as it should be.
    Wrong,
    /// The broker did not answer.
    NotAsked,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub what: String,
    pub state: State,
    pub until: Option<Timestamp>,
    /// What to do about it; empty when it is good.
    pub advice: String,
}

impl Finding {
    fn good(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            state: State::Good,
            until: None,
            advice: String::new(),
        }
    }

    fn wrong(what: impl Into<String>, state: State, advice: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            state,
            until: None,
            advice: advice.into(),
        }
    }

    fn until(what: impl Into<String>, until: Timestamp, now: Timestamp, advice: &str) -> Self {
        let rest = until.duration_since(now);
        let state = match rest {
            rest if rest <= SignedDuration::ZERO => State::Ended,
            rest if rest < END_IN_SIGHT => State::Ending,
            _ => State::Good,
        };
        Self {
            what: what.into(),
            state,
            until: Some(until),
            advice: match state {
                State::Good => String::new(),
                _ => advice.to_owned(),
            },
        }
    }
}

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let operator = Operator::open(home, printer)?;
        let repository = operator.repository()?;
        let now = Timestamp::now();
        let mut findings = examine(&operator, &repository, now)?;
        if !self.offline {
            findings.extend(ask(&operator, &repository, now).await?);
        }
        if self.json {
            printer.json(&json!({ "fleet": operator.home.fleet(), "findings": findings }))?;
        } else {
            printer.data(&shown(&findings))?;
        }
        let any = |states: &[State]| findings.iter().any(|f| states.contains(&f.state));
        Ok(if any(&[State::NotAsked]) {
            ExitCode::from(FAILED)
        } else if any(&[State::Ending, State::Ended, State::Wrong]) {
            ExitCode::from(REFUSED)
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// Warns of what is to be done, in a line each: for commands that people run every day.
pub fn warn(operator: &Operator, repository: &Repository) -> Result<()> {
    for finding in examine(operator, repository, Timestamp::now())? {
        if finding.state != State::Good {
            operator
                .printer
                .warn(&format!("{}: {}", sentence(&finding), finding.advice));
        }
    }
    Ok(())
}

fn sentence(finding: &Finding) -> String {
    let until = finding.until.map(day).unwrap_or_default();
    match finding.state {
        State::Ending => format!("{} ends on {until}", finding.what),
        State::Ended => format!("{} ended on {until}", finding.what),
        _ => finding.what.clone(),
    }
}

fn shown(findings: &[Finding]) -> String {
    let mut rows = vec![
        ["", "WHAT", "UNTIL", "WHAT TO DO"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for finding in findings {
        let state = match finding.state {
            State::Good => "good",
            State::Ending => "ENDING",
            State::Ended => "ENDED",
            State::Wrong => "WRONG",
            State::NotAsked => "NOT ASKED",
        };
        rows.push(vec![
            state.to_owned(),
            plain(&finding.what),
            finding.until.map_or("-".to_owned(), day),
            finding.advice.clone(),
        ]);
    }
    table(&rows)
}

/// Everything that can be seen from the operator's own files.
fn examine(operator: &Operator, repository: &Repository, now: Timestamp) -> Result<Vec<Finding>> {
    let mut findings = roles(operator, repository, now)?;
    let signed_at = repository.signed_at();
    findings.push(match now < signed_at {
        true => Finding::wrong(
            "this computer's clock",
            State::Wrong,
            format!(
                "it is behind the last signature ({signed_at}): set it, or if it was ahead then, run `fleetctl \
                 refresh --accept-earlier-clock` once"
            ),
        ),
        false => Finding::good("this computer's clock"),
    });
    let home = &operator.home;
    let ca = not_after(home.ca_certificate()?.as_bytes())?;
    findings.push(Finding::until(
        "the fleet's certificate authority",
        ca,
        now,
        "make a fleet anew beside this one and enrol the devices there",
    ));
    // Renewed on the way, where the authority's key is.
    let operators = not_after(home.operator_certificate()?.0.as_bytes())?;
    findings.push(Finding::until(
        "the operator's certificate",
        operators,
        now,
        "run any command where the authority's key (ca/ca.key) is, and copy ca/operator.* from there",
    ));
    let broker = home.broker_directory().join(BROKER_FILES[0]);
    if let Some(pem) = edgeward_models::durable::read(&broker, 64 * 1024)? {
        findings.push(Finding::until(
            "the broker's certificate in this directory",
            not_after(&pem)?,
            now,
            BROKER_ADVICE,
        ));
    }
    for device in home.devices().all()? {
        findings.push(Finding::until(
            format!("the certificate of device {}", device.id),
            device.not_after,
            now,
            "run `fleetctl device renew`, or `fleetctl refresh` by timer where the keys of the authority and of \
             rollouts are; where no line reaches the device, carry it with `fleetctl export`",
        ));
    }
    Ok(findings)
}

const BROKER_ADVICE: &str =
    "make it anew with `fleetctl broker --certificate HOST` and give it to the broker";

fn roles(operator: &Operator, repository: &Repository, now: Timestamp) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let directory = operator.home.keys_directory();
    let here = |role: &SigningRole| directory.join(format!("{role}.pem")).exists();
    let keys = match operator.keys(repository) {
        Ok(keys) => Some(keys),
        // A desk that signs nothing.
        Err(_) if !SigningRole::ALL.iter().any(here) => None,
        Err(problem) => {
            let what = format!("the signing keys: {problem:#}");
            findings.push(Finding::wrong(
                what,
                State::Wrong,
                "mend that before the next signature",
            ));
            None
        }
    };
    for role in repository.roles()? {
        let what = format!("the role {}", role.role);
        let daily = matches!(role.role, SigningRole::Snapshot | SigningRole::Timestamp);
        if daily {
            // Their ends are near by nature; that they are not refreshed any more is what counts.
            let missed = now.duration_since(repository.signed_at()) > REFRESH_MISSED;
            let mut finding = Finding::until(&what, role.expires, now, "");
            if finding.state == State::Ending && !missed {
                finding.state = State::Good;
            } else if finding.state != State::Good {
                finding.advice =
                    "run `fleetctl refresh`, and see to it that its timer does".to_owned();
            }
            findings.push(finding);
        } else {
            let advice = "run `fleetctl key renew` where the keys are";
            findings.push(Finding::until(&what, role.expires, now, advice));
        }
        let id = keys.as_ref().and_then(|keys| keys.id(role.role));
        if id.is_some_and(|id| !role.key_ids.contains(&id)) {
            findings.push(Finding::wrong(
                format!("the key of role {} in this directory", role.role),
                State::Wrong,
                "it is not the one that the root names: get the present one from where it was made",
            ));
        }
    }
    Ok(findings)
}

/// What only the broker can say.
async fn ask(operator: &Operator, repository: &Repository, now: Timestamp) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    match operator.broker_certificate() {
        Ok(certificate) => findings.push(Finding::until(
            "the certificate that the broker shows",
            certificate,
            now,
            BROKER_ADVICE,
        )),
        Err(problem) => {
            let what = format!("the broker does not answer: {problem:#}");
            let advice = "see whether it runs, and whether this computer reaches it";
            findings.push(Finding::wrong(what, State::NotAsked, advice));
            return Ok(findings);
        }
    }
    findings.push(match operator.standing(repository).await {
        Ok(Standing::Same) => Finding::good("the broker holds what was published"),
        Ok(Standing::Empty | Standing::Behind) => Finding::wrong(
            "the broker does not hold what was published",
            State::Wrong,
            "run `fleetctl sync`",
        ),
        Ok(Standing::Forged) => Finding::wrong(
            "the broker holds metadata that this fleet's key did not sign",
            State::Wrong,
            "look at its access list, then run `fleetctl sync`",
        ),
        Err(problem) => Finding::wrong(
            format!("the broker's copy of the repository: {problem:#}"),
            State::NotAsked,
            "mend that, then run `fleetctl sync`",
        ),
    });
    Ok(findings)
}
