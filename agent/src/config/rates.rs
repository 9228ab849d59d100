//! How fast callers may ask for inferences.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Rates of callers, by what they are called in metrics and the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CallerRates {
    /// Of each caller that is not named below. Absent: no limit.
    pub each: Option<Rate>,
    /// `uid:1000`, `certificate:NAME`, `token:NAME`, or `anyone` where a door asks nobody.
    pub named: BTreeMap<String, Rate>,
}

/// What one caller may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub requests_per_second: u32,
    /// At once, after it was quiet.
    pub burst: u32,
}

impl CallerRates {
    pub fn of(&self, caller: &str) -> Option<Rate> {
        self.named.get(caller).copied().or(self.each)
    }
}
