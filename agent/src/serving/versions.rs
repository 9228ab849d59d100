//! The versions of one model that are served: the active one, others beside it, and the labels that name them.
//!
//! `engine` keeps one [`Versions`] for each model and asks it what a request means. Nothing that happens to a version
//! beside the active one touches the active one.

use std::collections::BTreeMap;
use std::sync::Arc;

use edgeward_models::fleet::routing::Routing;
use edgeward_models::{Manifest, ModelName, Version};

use super::error::{RETRY_SOON_SECONDS, ServeError};
use super::loaded::{Hold, Loaded};
use super::shadow::{Mirror, Shadow};
use super::split::{Split, StickyKey};

/// Foreign text that an error quotes, in characters.
const QUOTED: usize = 80;

#[derive(Debug)]
pub(super) struct Versions {
    model: ModelName,
    active: Option<Arc<Loaded>>,
    /// The one that was active before, kept while the active one is being watched: it answers when that one cannot.
    standby: Option<Arc<Loaded>>,
    beside: Vec<Arc<Loaded>>,
    /// What is wanted beside the active version, and how requests find it.
    routing: Routing,
    /// Of the requests that name no version.
    split: Split,
    /// What came of the version that gets copies of requests.
    shadow: Option<Arc<Shadow>>,
    /// Versions that should be served beside the active one and are not, with the reason.
    lacking: BTreeMap<Version, String>,
}

impl Versions {
    /// Of this model nothing is served yet.
    pub(super) fn none(model: ModelName) -> Self {
        Self {
            model,
            active: None,
            standby: None,
            beside: Vec::new(),
            routing: Routing::default(),
            split: Split::default(),
            shadow: None,
            lacking: BTreeMap::new(),
        }
    }

    pub(super) fn model(&self) -> &ModelName {
        &self.model
    }

    pub(super) fn active(&self) -> Option<&Arc<Loaded>> {
        self.active.as_ref()
    }

    /// What answers a request for the active version now.
    pub(super) fn answering(&self) -> Option<&Arc<Loaded>> {
        let able = |loaded: &&Arc<Loaded>| loaded.answers();
        let active = self.active.as_ref();
        let standby = || self.standby.as_ref().filter(able);
        active.filter(able).or_else(standby).or(active)
    }

    pub(super) fn standby(&self) -> Option<&Arc<Loaded>> {
        self.standby.as_ref()
    }

    pub(super) fn beside(&self) -> &[Arc<Loaded>] {
        &self.beside
    }

    /// All that are loaded, the active one first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Loaded>> {
        self.active.iter().chain(&self.beside)
    }

    /// Nothing is loaded and nothing wanted.
    pub(super) fn is_empty(&self) -> bool {
        self.active.is_none() && self.beside.is_empty() && self.routing.is_empty()
    }

    /// Makes a version the active one. Returns those that are not served any more: the active one before, unless it
    /// is wanted beside or to be kept (`watched`), and what was loaded of this version so far.
    pub(super) fn activate(&mut self, loaded: Arc<Loaded>, watched: bool) -> Vec<Arc<Loaded>> {
        let version = loaded.manifest().version.clone();
        let mut gone = self.take_beside(&version);
        gone.extend(self.standby.take());
        if let Some(before) = self.active.replace(loaded) {
            let other = &before.manifest().version;
            if *other != version && self.routing.wants(other) {
                self.lacking.remove(other);
                self.beside.push(before);
            } else if *other != version && watched {
                self.standby = Some(before);
            } else {
                gone.push(before);
            }
        }
        self.lacking.remove(&version);
        gone
    }

    /// Makes the version that was kept the active one again, if it is this one.
    pub(super) fn put_back(&mut self, version: &Version) -> Vec<Arc<Loaded>> {
        let kept = self
            .standby
            .take_if(|kept| kept.manifest().version == *version);
        match kept {
            Some(kept) => self.active.replace(kept).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Keeps no version any more for the case that the active one fails.
    pub(super) fn let_go(&mut self) -> Vec<Arc<Loaded>> {
        self.standby.take().into_iter().collect()
    }

    /// Serves a version beside the active one, unless it is not wanted there (any more). Returns what is not served
    /// any more.
    pub(super) fn add(&mut self, loaded: Arc<Loaded>) -> Vec<Arc<Loaded>> {
        let version = &loaded.manifest().version;
        if !self.routing.wants(version) || self.is_active(version) {
            return vec![loaded];
        }
        let gone = self.take_beside(version);
        self.lacking.remove(version);
        self.beside.push(loaded);
        gone
    }

    /// Takes note of why a version that is wanted beside the active one is not served. Returns what was loaded of it.
    pub(super) fn withdraw(&mut self, version: &Version, reason: &str) -> Vec<Arc<Loaded>> {
        if self.routing.wants(version) && !self.is_active(version) {
            self.lacking.insert(version.clone(), reason.to_owned());
        }
        self.take_beside(version)
    }

    /// Replaces what is wanted beside the active version. Returns what is not served any more.
    pub(super) fn route(&mut self, routing: Routing) -> Vec<Arc<Loaded>> {
        self.lacking.retain(|version, _| routing.wants(version));
        let unwanted = |loaded: &mut Arc<Loaded>| !routing.wants(&loaded.manifest().version);
        let gone = self.beside.extract_if(.., unwanted).collect();
        self.split = Split::new(&routing.split);
        let same = |shadow: &Arc<Shadow>| routing.shadow.as_ref() == Some(shadow.version());
        self.shadow = match self.shadow.take().filter(same) {
            None => routing.shadow.clone().map(|v| Arc::new(Shadow::of(v))),
            same => same,
        };
        self.routing = routing;
        gone
    }

    /// Ends all of it.
    pub(super) fn take_all(self) -> Vec<Arc<Loaded>> {
        let active = self.active.into_iter().chain(self.standby);
        active.chain(self.beside).collect()
    }

    fn take_beside(&mut self, version: &Version) -> Vec<Arc<Loaded>> {
        let same = |loaded: &mut Arc<Loaded>| loaded.manifest().version == *version;
        self.beside.extract_if(.., same).collect()
    }

    fn is_active(&self, version: &Version) -> bool {
        let active = self.active.as_ref();
        active.is_some_and(|active| active.manifest().version == *version)
    }

    /// The version that answers a request which names none. One that cannot answer now is passed over; without a
    /// split, and if nothing of it can answer, it is the active version.
    pub(super) fn chosen(&self, key: StickyKey) -> Option<&Arc<Loaded>> {
        let able = |version: &Version| {
            let loaded = self.all().find(|l| l.manifest().version == *version);
            loaded.filter(|loaded| loaded.ready())
        };
        self.split.choose(key, able).or_else(|| self.answering())
    }

    pub(super) fn shadow(&self) -> Option<&Arc<Shadow>> {
        self.shadow.as_ref()
    }

    /// Where requests that this version answers are mirrored to, if the shadow is there and another one.
    pub(super) fn mirror(&self, answers: &Loaded) -> Option<Mirror> {
        let shadow = self.shadow.as_ref()?;
        let version = shadow.version();
        let to = self.all().find(|l| l.manifest().version == *version)?;
        let mirrored = answers.manifest().version != *version && to.ready();
        mirrored.then(|| Mirror {
            shadow: shadow.clone(),
            to: Hold::of(to),
        })
    }

    /// The version that a text means: a release number, a semantic version or a label.
    pub(super) fn named(&self, text: &str) -> Result<&Arc<Loaded>, ServeError> {
        if let Some(loaded) = self.all().find(|loaded| means(text, loaded.manifest())) {
            return Ok(loaded);
        }
        if let Ok(version) = text.parse::<Version>()
            && self.routing.wants(&version)
        {
            return Err(self.not_here(&version));
        }
        match self.label(text) {
            Some(version) => self.exactly(version),
            None => Err(ServeError::UnknownVersion {
                model: self.model.clone(),
                version: shortened(text),
                loaded: self.listed(),
            }),
        }
    }

    /// The version that a label means.
    pub(super) fn labelled(&self, label: &str) -> Result<&Arc<Loaded>, ServeError> {
        match self.label(label) {
            Some(version) => self.exactly(version),
            None => Err(ServeError::UnknownLabel {
                model: self.model.clone(),
                label: shortened(label),
                known: self.labels(),
            }),
        }
    }

    fn label(&self, text: &str) -> Option<&Version> {
        self.routing.labels.get(&text.parse().ok()?)
    }

    fn exactly(&self, version: &Version) -> Result<&Arc<Loaded>, ServeError> {
        let found = self.all().find(|l| l.manifest().version == *version);
        found.ok_or_else(|| self.not_here(version))
    }

    /// Known by its name, and not loaded now.
    fn not_here(&self, version: &Version) -> ServeError {
        let reason = self
            .lacking
            .get(version)
            .map_or("it is being loaded", |r| r);
        ServeError::NotReady {
            model: self.model.clone(),
            reason: format!("version {version} is not loaded here: {reason}"),
            retry_after_seconds: RETRY_SOON_SECONDS,
        }
    }

    /// What is loaded, for an error text.
    fn listed(&self) -> String {
        let versions = self.all().map(|loaded| {
            let manifest = loaded.manifest();
            format!("{} (release {})", manifest.version, manifest.release)
        });
        versions.collect::<Vec<_>>().join(", ")
    }

    fn labels(&self) -> String {
        if self.routing.labels.is_empty() {
            return "none".to_owned();
        }
        let labels = self.routing.labels.iter();
        let labels = labels.map(|(label, version)| format!("{label} ({version})"));
        labels.collect::<Vec<_>>().join(", ")
    }
}

/// Whether a request's version text, a release number or a semantic version, means this one.
fn means(text: &str, manifest: &Manifest) -> bool {
    match text.parse::<u64>() {
        Ok(release) => release == manifest.release,
        Err(_) => text.parse::<Version>().is_ok_and(|v| v == manifest.version),
    }
}

/// Foreign text as an error may quote it.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(QUOTED).collect()
}
