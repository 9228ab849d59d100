//! What a proposal would change, in plain words, for the person who is to sign it.
//!
//! Everything that differs is said: keys, thresholds, every target with its size and digest, and every field of the
//! documents that devices obey. What cannot be said is refused, so that nobody signs what was not shown.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp as Time};
use serde_json::Value;
use tough::TargetName;
use tough::schema::{Target, Targets};

use super::keys::SigningRole;
use super::proposal::Proposal;
use super::roster::{Roster, Signers};
use super::{SignError, refused};
use crate::digest::Digest;
use crate::manifest::MANIFEST_FILE;
use crate::verify::{Chain, signed_at};

/// Whether a target is a document that devices obey, so that each of its fields is shown. Of a model that is the
/// manifest; its other files are values, megabytes of them in golden vectors, and their digests say which they are.
pub(super) fn is_obeyed(target: &str) -> bool {
    match target.strip_prefix("models/") {
        Some(file) => file.ends_with(&format!("/{MANIFEST_FILE}")),
        None => target.ends_with(".json"),
    }
}

/// How far the clocks of two computers that sign may be apart.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_hours(1);

impl Proposal {
    /// One line for each thing that signing allows. `before` comes from [`Proposal::verified_before`];
    /// a root from the future is refused.
    pub fn explain(&self, before: &Chain, now: Time) -> Result<Vec<String>, SignError> {
        let (old, new) = self.rosters(before)?;
        let mut lines = Vec::new();
        if let Some(root) = self.root()? {
            let version = root.version;
            let signed = signed_at(&root._extra).ok_or_else(|| hidden("root"))?;
            if new.root(version, root.expires, signed)? != root {
                return Err(hidden("root"));
            }
            // Devices believe it to be no later than this, for good.
            if signed > now + CLOCKS_DIFFER {
                return Err(refused(format!(
                    "its root says that it was made at {signed}, and here it is {now}: it would turn the fleet's clock \
                     forward for good. Set the clock of the computer that made it right, and make the change anew"
                )));
            }
            let standing = before.root.signed.version;
            lines.push(format!(
                "root {standing} → {version}, made at {signed}, valid until {}",
                root.expires
            ));
            for role in [
                SigningRole::Root,
                SigningRole::Targets,
                SigningRole::Snapshot,
                SigningRole::Timestamp,
            ] {
                explain_signers(role, &old, &new, &mut lines)?;
            }
        }
        if let Some(targets) = self.role(SigningRole::Targets)? {
            if new.targets(targets.version, targets.expires)? != targets {
                return Err(hidden("targets"));
            }
            let standing = before.targets.signed.version;
            lines.push(format!(
                "targets {standing} → {}, valid until {}",
                targets.version, targets.expires
            ));
            for role in [SigningRole::Releases, SigningRole::Rollouts] {
                explain_signers(role, &old, &new, &mut lines)?;
            }
        }
        for role in [SigningRole::Releases, SigningRole::Rollouts] {
            let Some(next) = self.role(role)? else {
                continue;
            };
            let standing = before
                .targets
                .signed
                .delegated_targets(role.name())
                .map_err(|e| refused(e.to_string()))?;
            self.explain_targets(role, &standing.signed, &next, &mut lines)?;
        }
        // Names may hold anything; nothing may move a terminal's cursor.
        let shown = |line: &String| line.replace(char::is_control, "\u{fffd}");
        Ok(lines.iter().map(shown).collect())
    }

    fn explain_targets(
        &self,
        role: SigningRole,
        old: &Targets,
        new: &Targets,
        lines: &mut Vec<String>,
    ) -> Result<(), SignError> {
        let rest = Targets {
            version: old.version,
            expires: old.expires,
            targets: old.targets.clone(),
            ..new.clone()
        };
        if rest != *old {
            return Err(hidden(role.name()));
        }
        lines.push(format!(
            "{role} {} → {}, valid until {}",
            old.version, new.version, new.expires
        ));
        let gone = old
            .targets
            .keys()
            .filter(|name| !new.targets.contains_key(*name));
        let names = new.targets.keys().chain(gone);
        let names: BTreeMap<&str, &TargetName> = names.map(|name| (name.raw(), name)).collect();
        for (raw, name) in names {
            let (was, will) = (old.targets.get(name), new.targets.get(name));
            if was == will {
                continue;
            }
            lines.push(match (was, will) {
                (None, Some(will)) => format!("  + {raw}: {}", described(will)),
                (Some(was), Some(will)) => {
                    format!(
                        "  ~ {raw}: {} instead of {}",
                        described(will),
                        described(was)
                    )
                }
                (Some(was), None) => format!("  - {raw}: {}", described(was)),
                (None, None) => continue,
            });
            if is_obeyed(raw) {
                let was = was.map(|target| self.document(raw, target)).transpose()?;
                let will = will.map(|target| self.document(raw, target)).transpose()?;
                explain_fields(was.unwrap_or_default(), will.unwrap_or_default(), lines);
            }
        }
        Ok(())
    }

    /// The fields of a JSON document that a target names.
    fn document(&self, name: &str, target: &Target) -> Result<BTreeMap<String, String>, SignError> {
        let is_it =
            |text: &&String| Digest::of(text.as_bytes()).as_bytes()[..] == target.hashes.sha256[..];
        let text = self.contents.iter().find(is_it).ok_or_else(|| {
            refused(format!(
                "the document {name} is not in it, so that nobody could know what they sign"
            ))
        })?;
        let value: Value = serde_json::from_str(text)
            .map_err(|e| refused(format!("the document {name} is not JSON: {e}")))?;
        let mut fields = BTreeMap::new();
        flatten("", &value, &mut fields);
        Ok(fields)
    }
}

fn explain_signers(
    role: SigningRole,
    old: &Roster,
    new: &Roster,
    lines: &mut Vec<String>,
) -> Result<(), SignError> {
    let (
        Signers {
            keys: was,
            threshold,
        },
        new,
    ) = (old.signers(role)?, new.signers(role)?);
    for id in new.keys.keys().filter(|id| !was.contains_key(*id)) {
        lines.push(format!("  + key {id} may sign role {role}"));
    }
    for id in was.keys().filter(|id| !new.keys.contains_key(*id)) {
        lines.push(format!("  - key {id} may not sign role {role} any more"));
    }
    if *threshold != new.threshold {
        lines.push(format!(
            "  ~ {} of {} keys must sign role {role}, instead of {threshold} of {}",
            new.threshold,
            new.keys.len(),
            was.len()
        ));
    }
    Ok(())
}

fn explain_fields(
    was: BTreeMap<String, String>,
    will: BTreeMap<String, String>,
    lines: &mut Vec<String>,
) {
    let names: BTreeSet<&String> = was.keys().chain(will.keys()).collect();
    for name in names {
        match (was.get(name), will.get(name)) {
            (Some(was), Some(will)) if was != will => {
                lines.push(format!("      {name}: {will} instead of {was}"));
            }
            (None, Some(will)) => lines.push(format!("      {name}: {will}")),
            (Some(was), None) => lines.push(format!("      {name}: nothing instead of {was}")),
            _ => {}
        }
    }
}

/// Every value of a document by its path; lists are values.
fn flatten(path: &str, value: &Value, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (name, value) in object {
                let path = match path {
                    "" => name.clone(),
                    path => format!("{path}.{name}"),
                };
                flatten(&path, value, fields);
            }
        }
        value => drop(fields.insert(path.to_owned(), value.to_string())),
    }
}

fn described(target: &Target) -> String {
    let custom: BTreeMap<_, _> = target.custom.iter().collect();
    let custom = match custom.get(&"release".to_owned()) {
        Some(release) => format!(", release {release}"),
        None => String::new(),
    };
    let digest = hex::encode(&*target.hashes.sha256);
    format!("{} bytes, sha256 {digest}{custom}", target.length)
}

fn hidden(role: &str) -> SignError {
    refused(format!(
        "it changes something of role {role} that this program cannot show: nothing is signed; update fleetctl"
    ))
}
