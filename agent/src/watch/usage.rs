//! What each caller used, month by month: `edgeward usage`.
//!
//! One small file a month (UTC, by the device's clock) below `usage/`, rewritten a minute after the first request
//! that is not in it yet, so a power cut takes at most the last minute. Models and versions by name; no request is
//! told apart from another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edgeward_models::durable::{self, Access, DurableError, Generations, Stored};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::error;

const FORMAT: u32 = 1;
/// Below the state directory.
const DIRECTORY: &str = "usage";
/// Months that are kept; the oldest go first.
const KEPT: usize = 36;

/// What one caller used of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub caller: String,
    /// Absent: requests that named no model that was there.
    pub model: Option<String>,
    pub version: Option<String>,
    pub requests: u64,
    pub succeeded: u64,
    /// Microseconds of running the model.
    pub compute_us: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

impl Row {
    fn key(&self) -> (String, Option<String>, Option<String>) {
        (
            self.caller.clone(),
            self.model.clone(),
            self.version.clone(),
        )
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.succeeded += other.succeeded;
        self.compute_us += other.compute_us;
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    month: String,
    rows: Vec<Row>,
}

#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    #[error(transparent)]
    Durable(#[from] DurableError),
    #[error("{0} is damaged in both of its generations")]
    Damaged(PathBuf),
    #[error("{path} was not written by this agent")]
    Foreign {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// The usage of a month, by caller, model and version.
pub fn read(state_directory: &Path, month: Month) -> Result<Vec<Row>, UsageError> {
    let file = file(state_directory, month);
    let path = || file.path().to_owned();
    let bytes = match file.read()? {
        Stored::Absent => return Ok(Vec::new()),
        Stored::Good(bytes)
        | Stored::Damaged {
            before: Some(bytes),
        } => bytes,
        Stored::Damaged { before: None } => return Err(UsageError::Damaged(path())),
    };
    let document: Document =
        serde_json::from_slice(&bytes).map_err(|source| UsageError::Foreign {
            path: path(),
            source,
        })?;
    Ok(document.rows)
}

fn file(state_directory: &Path, month: Month) -> Generations {
    Generations::new(state_directory.join(DIRECTORY).join(month.to_string()))
}

/// A calendar month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month {
    year: i16,
    month: i8,
}

impl Month {
    pub fn now() -> Self {
        let date = Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
        Self {
            year: date.year(),
            month: date.month(),
        }
    }
}

impl std::fmt::Display for Month {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.month)
    }
}

impl std::str::FromStr for Month {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a month such as 2026-11");
        let (year, month) = text.split_once('-').ok_or_else(wrong)?;
        let digits = |text: &str, length| {
            text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !digits(year, 4) || !digits(month, 2) {
            return Err(wrong());
        }
        let month = month.parse().ok().filter(|m| (1..=12).contains(m));
        Ok(Self {
            year: year.parse().map_err(|_| wrong())?,
            month: month.ok_or_else(wrong)?,
        })
    }
}

/// The files, as the agent adds to them.
pub struct Months {
    state_directory: PathBuf,
    /// The month that is added to.
    open: Option<Open>,
}

struct Open {
    month: Month,
    rows: BTreeMap<(String, Option<String>, Option<String>), Row>,
}

impl Months {
    pub fn new(state_directory: &Path) -> Self {
        Self {
            state_directory: state_directory.to_owned(),
            open: None,
        }
    }

    /// Adds to the month that it is now. What could not be written is written with the next rows.
    pub fn add(&mut self, rows: impl Iterator<Item = Row>) -> Result<(), UsageError> {
        let month = Month::now();
        if self.open.as_ref().is_none_or(|open| open.month != month) {
            self.turn_to(month);
        }
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        for row in rows {
            open.rows
                .entry(row.key())
                .and_modify(|known| known.add(&row))
                .or_insert(row);
        }
        let document = Document {
            format: FORMAT,
            month: month.to_string(),
            rows: open.rows.values().cloned().collect(),
        };
        durable::create_directory(&self.state_directory.join(DIRECTORY))?;
        Ok(file(&self.state_directory, month).write_json(&document, Access::Owner)?)
    }

    fn turn_to(&mut self, month: Month) {
        let rows = read(&self.state_directory, month).unwrap_or_else(|problem| {
            error!(%problem, "the month's usage begins anew");
            Vec::new()
        });
        self.open = Some(Open {
            month,
            rows: rows.into_iter().map(|row| (row.key(), row)).collect(),
        });
        if let Err(problem) = self.forget_old() {
            error!(%problem, "old months of usage could not be removed");
        }
    }

    fn forget_old(&self) -> Result<(), DurableError> {
        let entries = std::fs::read_dir(self.state_directory.join(DIRECTORY));
        let names = entries.into_iter().flatten().flatten();
        let mut months: Vec<Month> = names
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        months.sort();
        months.truncate(months.len().saturating_sub(KEPT));
        for month in months {
            durable::remove_file(file(&self.state_directory, month).path())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(caller: &str, requests: u64) -> Row {
        Row {
            caller: caller.to_owned(),
            model: Some("digits".to_owned()),
            version: Some("1.0.0".to_owned()),
            requests,
            succeeded: requests,
            compute_us: 10 * requests,
            received_bytes: 1,
            sent_bytes: 2,
        }
    }

    #[test]
    fn a_month_adds_up_over_restarts_and_old_months_go() {
        let directory = tempfile::tempdir().expect("tempdir");
        let usage = directory.path().join(DIRECTORY);
        std::fs::create_dir(&usage).expect("directory");
        for number in 0..KEPT {
            let name = format!("{:04}-01", 1980 + number);
            std::fs::write(usage.join(name), b"").expect("write");
        }
        for requests in [3, 4] {
            let mut months = Months::new(directory.path());
            let rows = [row("uid:1", requests), row("uid:2", 1)];
            months.add(rows.into_iter()).expect("add");
            months.add([row("uid:1", 1)].into_iter()).expect("add");
        }
        let rows = read(directory.path(), Month::now()).expect("read");
        let found: Vec<_> = rows
            .iter()
            .map(|r| (r.caller.as_str(), r.requests))
            .collect();
        assert_eq!(found, [("uid:1", 9), ("uid:2", 2)]);
        assert_eq!(rows[0].compute_us, 90);
        assert!(!usage.join("1980-01").exists() && usage.join("1982-01").exists());
        let none = read(directory.path(), "1970-01".parse().expect("month"));
        assert!(none.expect("absent").is_empty());
    }

    #[test]
    fn months_are_read_as_they_are_written_and_nothing_else_is() {
        let now = Month::now();
        assert_eq!(now.to_string().parse(), Ok(now));
        for wrong in [
            "",
            "2026",
            "2026-1",
            "2026-13",
            "2026-00",
            "26-11",
            "2026-11-01",
            "../..-01",
        ] {
            assert!(wrong.parse::<Month>().is_err(), "{wrong}");
        }
    }
}
