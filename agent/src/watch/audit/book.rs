//! Which logs there are: each a chain of its own, so that one that fills never pushes another out.
//!
//! The security log's head travels in each signed status. The other logs' heads are recorded in it from time to time
//! ([`CHECKPOINT_EVENT`]), so that the one signature covers them all.

use clap::ValueEnum;

/// Recorded in the security log: how long another log is, and its head.
pub const CHECKPOINT_EVENT: &str = "log-checkpoint";

/// A log's files inside the state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Book {
    pub name: &'static str,
    /// The newest segment.
    pub file: &'static str,
    /// The directory of the segments before it.
    pub archive: &'static str,
}

/// What happened to this device's trust and models.
pub const SECURITY: Book = Book {
    name: "security",
    file: "audit.log",
    archive: "audit",
};

/// Who asked which model, and what came of it.
pub const INFERENCES: Book = Book {
    name: "inferences",
    file: "inferences.log",
    archive: "inferences",
};

/// Every message that left the device.
pub const DEPARTURES: Book = Book {
    name: "departures",
    file: "departures.log",
    archive: "departures",
};

/// The logs as the command line names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Which {
    Security,
    Inferences,
    Departures,
}

impl Which {
    pub const ALL: [Self; 3] = [Self::Security, Self::Inferences, Self::Departures];

    pub fn book(self) -> Book {
        match self {
            Self::Security => SECURITY,
            Self::Inferences => INFERENCES,
            Self::Departures => DEPARTURES,
        }
    }
}
