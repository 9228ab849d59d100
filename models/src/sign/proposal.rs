//! What is to be signed, as it travels between the machines that sign it.
//!
//! Every change of an offline role is one: `commit` makes it, signs it with the keys at hand, and carries it out when
//! they suffice. When they do not, it is a file that goes to the other machines: the exact bytes to be signed, the
//! signatures so far, and all that is needed to say in plain words what they would sign (`explain`): the metadata as
//! it stands, and the documents that are added and replaced. Nothing in it is believed that is not proven by it:
//! the metadata from a root that the reader knows, the documents by their digests.

use std::collections::BTreeMap;

use jiff::Timestamp as Time;
use serde::{Deserialize, Serialize};
use tough::schema::{Root, Targets};

use super::document::Document;
use super::keys::{KeyRing, SigningRole};
use super::repository::Repository;
use super::roster::Roster;
use super::{SignError, refused};
use crate::digest::Digest;
use crate::repository::MAX_METADATA_BYTES;
use crate::verify::{Chain, VerifyError, parse_root, root_follows};

const FORMAT: u32 = 1;
/// A file larger than this many bytes is refused unread.
pub const MAX_PROPOSAL_BYTES: u64 = 4 * MAX_METADATA_BYTES;

/// A change that is not carried out yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    format: u32,
    pub made: Time,
    pub(super) documents: BTreeMap<SigningRole, Document>,
    /// The metadata that it changes, by file name, exact text.
    pub(super) before: BTreeMap<String, String>,
    /// documents that devices obey, as far as it adds, replaces or takes them away, exact text.
    pub(super) contents: Vec<String>,
}

/// What a role's document still lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    pub role: SigningRole,
    /// Which root's keys, for the next root, which is signed by those of two.
    pub of: &'static str,
    pub have: u64,
    pub need: u64,
    /// The ids of keys that have not signed.
    pub from: Vec<String>,
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            role,
            of,
            have,
            need,
            ..
        } = self;
        write!(f, "role {role}{of} has {have} of {need}")
    }
}

impl Proposal {
    pub(super) fn new(
        repository: &Repository,
        documents: BTreeMap<SigningRole, Document>,
        now: Time,
    ) -> Result<Self, SignError> {
        let mut proposal = Self {
            format: FORMAT,
            made: now,
            documents,
            before: BTreeMap::new(),
            contents: Vec::new(),
        };
        for file in repository.metadata_files() {
            let bytes = repository.read_metadata(&file)?;
            let text =
                String::from_utf8(bytes).map_err(|_| refused(format!("{file} is not text")))?;
            proposal.before.insert(file, text);
        }
        proposal.contents = repository.documents_of(&proposal)?;
        Ok(proposal)
    }

    pub fn read(bytes: &[u8]) -> Result<Self, SignError> {
        let wrong = |e: serde_json::Error| {
            refused(format!("it is not a file that waits for signatures: {e}"))
        };
        let proposal: Self = serde_json::from_slice(bytes).map_err(wrong)?;
        if proposal.format != FORMAT {
            return Err(refused(format!(
                "it has format {}; this program reads format {FORMAT}: update it",
                proposal.format
            )));
        }
        // Whoever signs is shown these; the others are signed by the host that publishes, and nowhere else.
        const SHOWN: [SigningRole; 4] = [
            SigningRole::Root,
            SigningRole::Targets,
            SigningRole::Releases,
            SigningRole::Rollouts,
        ];
        if let Some(role) = proposal.documents.keys().find(|role| !SHOWN.contains(role)) {
            return Err(refused(format!(
                "it would have role {role} signed, which no change needs to carry: do not sign it"
            )));
        }
        Ok(proposal)
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>, SignError> {
        serde_json::to_vec_pretty(self).map_err(|e| refused(format!("cannot write it: {e}")))
    }

    /// A name for its file: the same change has the same name.
    pub fn name(&self) -> String {
        let bytes: Vec<&str> = self.documents.values().map(|d| d.signed.as_str()).collect();
        let digest = Digest::of(bytes.concat().as_bytes()).to_string();
        let roles: Vec<&str> = self.documents.keys().map(|role| role.name()).collect();
        format!("{}-{}.json", roles.join("-"), &digest[..8])
    }

    /// The metadata that it changes, proven from the newest root of `known`, and not older than what stands there.
    pub fn verified_before(&self, known: &Repository) -> Result<Chain, SignError> {
        let wrong =
            |e: VerifyError| refused(format!("the metadata that it would change is wrong: {e}"));
        let mut root = known.chain.root.clone();
        let mut bytes = known.root()?;
        loop {
            let file = format!("{}.root.json", root.signed.version.get() + 1);
            let Some(next) = self.before.get(&file) else {
                break;
            };
            let next_root = parse_root(next.as_bytes()).map_err(wrong)?;
            if !root_follows(&root, &next_root) {
                return Err(refused(format!(
                    "its {file} does not follow from the root that this computer knows: it is of another fleet, or forged"
                )));
            }
            (root, bytes) = (next_root, next.clone().into_bytes());
        }
        let mut get = |file: &str| {
            let text = self.before.get(file).ok_or_else(|| {
                let problem = "it is missing".to_owned();
                VerifyError::Refused {
                    file: file.to_owned(),
                    problem,
                }
            });
            text.map(|text| text.clone().into_bytes())
        };
        let chain = Chain::verify(&bytes, &mut get).map_err(wrong)?;
        let root_file = format!("{}.root.json", root.signed.version);
        let older = |role: &str, version: u64| {
            refused(format!(
                "it changes {role} {version}, and this computer knows another or a later one: have it made anew"
            ))
        };
        if self.before.get(&root_file).map(String::as_bytes) != Some(&bytes) {
            return Err(older("root", root.signed.version.get()));
        }
        // Snapshot and timestamp are signed every day and say nothing of their own.
        for role in [
            SigningRole::Targets,
            SigningRole::Releases,
            SigningRole::Rollouts,
        ] {
            let file = |chain: &Chain| chain.files.get(role.name()).cloned();
            if let (Some(theirs), Some(ours)) = (file(&chain), file(&known.chain))
                && (theirs.version < ours.version
                    || (theirs.version == ours.version && theirs.bytes != ours.bytes))
            {
                return Err(older(role.name(), theirs.version));
            }
        }
        Ok(chain)
    }

    /// The keys of every role before and after it.
    pub(super) fn rosters(&self, before: &Chain) -> Result<(Roster, Roster), SignError> {
        let (root, targets) = (&before.root.signed, &before.targets.signed);
        let old = Roster::of(root, targets)?;
        let (next_root, next_targets) = (self.root()?, self.role(SigningRole::Targets)?);
        let new = Roster::of(
            next_root.as_ref().unwrap_or(root),
            next_targets.as_ref().unwrap_or(targets),
        )?;
        Ok((old, new))
    }

    pub(super) fn root(&self) -> Result<Option<Root>, SignError> {
        let document = self.documents.get(&SigningRole::Root);
        document.map(|d| d.parse(SigningRole::Root)).transpose()
    }

    /// The next targets, releases or rollouts.
    pub(super) fn role(&self, role: SigningRole) -> Result<Option<Targets>, SignError> {
        let document = self.documents.get(&role);
        document.map(|d| d.parse(role)).transpose()
    }

    /// Who will sign what once it is carried out.
    pub fn roster_after(&self, before: &Chain) -> Result<Roster, SignError> {
        Ok(self.rosters(before)?.1)
    }

    /// Adds the signatures of the keys at hand that count; returns for which roles.
    pub fn sign(&mut self, before: &Chain, keys: &KeyRing) -> Result<Vec<SigningRole>, SignError> {
        let (old, new) = self.rosters(before)?;
        let mut signed = Vec::new();
        for (role, document) in &mut self.documents {
            let Some(id) = keys.id(*role) else { continue };
            let message = document.signed.as_bytes();
            // A root is also signed by the keys of the one before (TUF 5.3.4).
            let mut counting = vec![new.signers(*role)?];
            if *role == SigningRole::Root {
                counting.push(old.signers(*role)?);
            }
            let counts = counting
                .iter()
                .any(|signers| signers.keys.contains_key(&id));
            let has = counting.iter().any(|signers| {
                signers
                    .signed_by(message, &document.signatures)
                    .contains(&id.as_str())
            });
            if counts && !has {
                let signature = keys.signature(*role, message)?;
                document
                    .signatures
                    .retain(|other| other.keyid != signature.keyid);
                document.signatures.push(signature);
                signed.push(*role);
            }
        }
        Ok(signed)
    }

    /// What is missing until it can be carried out.
    pub fn lacks(&self, before: &Chain) -> Result<Vec<Lack>, SignError> {
        let (old, new) = self.rosters(before)?;
        let mut lacks = Vec::new();
        for (role, document) in &self.documents {
            let mut sets = vec![("", new.signers(*role)?)];
            if *role == SigningRole::Root {
                sets = vec![
                    (" (the keys before)", old.signers(*role)?),
                    (" (the keys after)", new.signers(*role)?),
                ];
            }
            for (of, signers) in sets {
                let have = signers.signed_by(document.signed.as_bytes(), &document.signatures);
                if (have.len() as u64) < signers.threshold.get() {
                    let missing = signers
                        .keys
                        .keys()
                        .filter(|id| !have.contains(&id.as_str()));
                    lacks.push(Lack {
                        role: *role,
                        of,
                        have: have.len() as u64,
                        need: signers.threshold.get(),
                        from: missing.cloned().collect(),
                    });
                }
            }
        }
        Ok(lacks)
    }

    /// Drops signatures that count for nothing, such as those of keys that were revoked meanwhile.
    pub(super) fn keep_counting(&mut self, before: &Chain) -> Result<(), SignError> {
        let (old, new) = self.rosters(before)?;
        for (role, document) in &mut self.documents {
            let message = document.signed.as_bytes();
            let counting = [new.signers(*role)?, old.signers(*role)?];
            let mut seen = Vec::new();
            document.signatures.retain(|signature| {
                let one = std::slice::from_ref(signature);
                let good = counting
                    .iter()
                    .any(|s| !s.signed_by(message, one).is_empty());
                let fresh = !seen.contains(&signature.keyid);
                seen.push(signature.keyid.clone());
                good && fresh
            });
        }
        Ok(())
    }
}
