//! Where a request goes: to the version that it names, or to one that the model's routing chooses for it.
//!
//! Requests that name no version and bring the same sticky key go to the same version: the header
//! `Edgeward-Sticky-Key` (over gRPC: metadata), the parameter `sticky_key`, or else the sequence that they belong to,
//! in this order. Without any of them chance decides, by the weights.

use hyper::HeaderMap;

use super::error::ApiError;
use crate::serving::{Engine, Sequence, SequenceId, Served, StickyKey};

/// What a request may say of where it sticks to.
pub const STICKY_KEY_HEADER: &str = "edgeward-sticky-key";
/// The longest key.
pub const MAX_KEY_BYTES: usize = 1024;

/// Which version a request names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick<'a> {
    /// A release, a semantic version or a label.
    Version(&'a str),
    Label(&'a str),
}

/// Where one request goes. Asked twice, it says the same, unless what is served has changed.
#[derive(Clone, Copy)]
pub struct Destination<'a> {
    engine: &'a Engine,
    model: &'a str,
    pick: Option<Pick<'a>>,
    key: StickyKey,
    /// The key is the caller's own.
    sticks: bool,
}

impl<'a> Destination<'a> {
    /// `key`: what the request's headers say.
    pub fn new(
        engine: &'a Engine,
        model: &'a str,
        pick: Option<Pick<'a>>,
        key: Option<StickyKey>,
    ) -> Self {
        Self {
            engine,
            model,
            pick,
            key: key.unwrap_or_else(StickyKey::random),
            sticks: key.is_some(),
        }
    }

    pub fn resolve(&self) -> Result<Served, ApiError> {
        Ok(match self.pick {
            Some(Pick::Version(version)) => self.engine.resolve(self.model, Some(version))?,
            Some(Pick::Label(label)) => self.engine.resolve_label(self.model, label)?,
            None => self.engine.choose(self.model, self.key)?,
        })
    }

    /// Takes the key that the request's body turned out to hold. Returns the version that it means, if that is
    /// another than `found`.
    pub fn stick(
        &mut self,
        key: Option<StickyKey>,
        found: &Served,
    ) -> Result<Option<Served>, ApiError> {
        let Some(key) = key.filter(|_| !self.sticks && self.pick.is_none()) else {
            return Ok(None);
        };
        (self.key, self.sticks) = (key, true);
        let meant = self.resolve()?;
        let other = meant.manifest().version != found.manifest().version;
        Ok(other.then_some(meant))
    }
}

/// The key that the headers of a request hold.
pub fn sticky_key(headers: &HeaderMap) -> Result<Option<StickyKey>, ApiError> {
    let mut values = headers.get_all(STICKY_KEY_HEADER).iter();
    let Some(value) = values.next().filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    if values.next().is_some() || value.len() > MAX_KEY_BYTES {
        return Err(ApiError::invalid(format!(
            "the header {STICKY_KEY_HEADER} must stand there once, with at most {MAX_KEY_BYTES} bytes"
        )));
    }
    Ok(Some(StickyKey::of(value.as_bytes())))
}

/// Requests of one sequence stay together.
pub fn sequence_key(sequence: &Sequence) -> StickyKey {
    match &sequence.id {
        SequenceId::Number(id) => StickyKey::of(id.to_string().as_bytes()),
        SequenceId::Text(id) => StickyKey::of(id.as_bytes()),
    }
}
