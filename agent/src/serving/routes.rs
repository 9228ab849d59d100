//! Which version answers a request, and how that changes: the part of the engine that routes.
//!
//! Every change is one short write lock; what is not served any more is ended later, when the last request that had
//! found it is answered.

use std::sync::Arc;

use edgeward_models::fleet::routing::{Routing, ShadowStatus};
use edgeward_models::{ModelName, Version};
use tracing::info;

use super::engine::{Engine, Prepared, RETRY_AFTER_RESTART_SECONDS};
use super::error::ServeError;
use super::loaded::{Hold, Loaded};
use super::served::Served;
use super::shadow::Difference;
use super::split::StickyKey;
use super::supervise::supervise;
use super::versions::Versions;

impl Engine {
    /// Finds what a request means. `version`: a semantic version, a release number or a label; absent: the active
    /// version.
    pub fn resolve(&self, model: &str, version: Option<&str>) -> Result<Served, ServeError> {
        self.find(model, |versions| {
            let active = || versions.answering();
            let found = match version {
                Some(text) => versions.named(text)?,
                None => active().ok_or_else(|| self.shared.not_served(model))?,
            };
            Ok(Served::new(Hold::of(found)))
        })
    }

    /// Finds the version that a label means.
    pub fn resolve_label(&self, model: &str, label: &str) -> Result<Served, ServeError> {
        self.find(model, |versions| {
            Ok(Served::new(Hold::of(versions.labelled(label)?)))
        })
    }

    /// Finds the version for a request that names none: by the split of the model's routing, equal keys to the same
    /// one; without a split the active one.
    pub fn choose(&self, model: &str, key: StickyKey) -> Result<Served, ServeError> {
        self.find(model, |versions| {
            let chosen = versions.chosen(key);
            let chosen = chosen.ok_or_else(|| self.shared.not_served(model))?;
            Ok(Served::mirrored(Hold::of(chosen), versions.mirror(chosen)))
        })
    }

    /// What came of each model's shadow, with the latest differences.
    pub fn shadows(&self) -> Vec<(ModelName, ShadowStatus, Vec<Difference>)> {
        let routes = self.shared.read_routes();
        let shadows = routes.values().filter_map(|versions| {
            let shadow = versions.shadow()?;
            let model = versions.model().clone();
            Some((model, shadow.status(), shadow.differences()))
        });
        let mut shadows: Vec<_> = shadows.collect();
        shadows.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        shadows
    }

    /// All versions of a model that are loaded, the active one first.
    pub fn resolve_all(&self, model: &str) -> Result<Vec<Served>, ServeError> {
        let routes = self.shared.read_routes();
        let versions = routes.get(model).into_iter().flat_map(Versions::all);
        let served: Vec<_> = versions
            .map(|loaded| Served::new(Hold::of(loaded)))
            .collect();
        if served.is_empty() {
            return Err(self.shared.not_served(model));
        }
        Ok(served)
    }

    fn find(
        &self,
        model: &str,
        pick: impl FnOnce(&Versions) -> Result<Served, ServeError>,
    ) -> Result<Served, ServeError> {
        let routes = self.shared.read_routes();
        let Some(versions) = routes.get(model) else {
            return Err(self.shared.not_served(model));
        };
        if *self.shared.closing.borrow() {
            return Err(ServeError::NotReady {
                model: versions.model().clone(),
                reason: "the agent is shutting down".to_owned(),
                retry_after_seconds: RETRY_AFTER_RESTART_SECONDS,
            });
        }
        // Held before the lock is given back, so that a swap cannot end the version in between.
        pick(versions)
    }

    /// Routes new requests to `prepared`; the version before finishes what it has and is unloaded, unless it is to
    /// be served beside this one.
    pub fn activate(&self, prepared: Prepared) {
        self.make_active(prepared, false);
    }

    /// The same for a version that is being watched: the one before stays loaded and answers whenever this one's
    /// worker is down, until [`put_back`](Self::put_back) or [`let_go`](Self::let_go).
    pub fn activate_watched(&self, prepared: Prepared) {
        self.make_active(prepared, true);
    }

    /// The version before becomes active again, if it is this one and still loaded. Whether it did.
    pub fn put_back(&self, model: &ModelName, version: &Version) -> bool {
        let kept = |versions: &Versions| {
            let standby = versions
                .standby()
                .map(|kept| kept.manifest().version.clone());
            standby.as_ref() == Some(version)
        };
        let mut put_back = false;
        self.change(model, |versions| {
            put_back = kept(versions);
            versions.put_back(version)
        });
        if put_back {
            info!(%model, %version, "version active again");
        }
        put_back
    }

    /// Whether this version is kept loaded for the case that the active one fails.
    pub fn keeps(&self, model: &ModelName, version: &Version) -> bool {
        let routes = self.shared.read_routes();
        let kept = routes.get(model.as_str()).and_then(Versions::standby);
        kept.is_some_and(|kept| kept.manifest().version == *version)
    }

    /// The active version is good: the one before finishes what it has and is unloaded.
    pub fn let_go(&self, model: &ModelName) {
        self.change(model, Versions::let_go);
    }

    fn make_active(&self, prepared: Prepared, watched: bool) {
        let loaded = self.supervised(prepared);
        let manifest = loaded.manifest().clone();
        self.change(&manifest.model, |versions| {
            versions.activate(loaded, watched)
        });
        // Only now: between the two it would be unknown.
        self.shared.write_lacking().remove(&manifest.model);
        info!(model = %manifest.model, version = %manifest.version, "version active");
    }

    /// Serves `prepared` beside the active version, if the routing of its model still wants it.
    pub fn serve_beside(&self, prepared: Prepared) {
        let loaded = self.supervised(prepared);
        let manifest = loaded.manifest().clone();
        self.change(&manifest.model, |versions| versions.add(loaded));
        info!(model = %manifest.model, version = %manifest.version, "version served beside the active one");
    }

    /// Sets which versions of a model are wanted beside its active one, and how requests find them. What is not
    /// wanted any more finishes what it has and is unloaded.
    pub fn route(&self, model: &ModelName, routing: Routing) {
        self.change(model, |versions| versions.route(routing));
    }

    /// Takes note of why a version that is wanted beside the active one is not served, and unloads it.
    pub fn withdraw(&self, model: &ModelName, version: &Version, reason: &str) {
        self.change(model, |versions| versions.withdraw(version, reason));
    }

    /// Changes what is served of a model; what is not served any more is ended when it has finished.
    fn change(&self, model: &ModelName, change: impl FnOnce(&mut Versions) -> Vec<Arc<Loaded>>) {
        let gone = {
            let mut routes = self.shared.write_routes();
            let versions = routes
                .entry(model.as_str().to_owned())
                .or_insert_with(|| Versions::none(model.clone()));
            let gone = change(versions);
            if versions.is_empty() {
                routes.remove(model.as_str());
            }
            gone
        };
        for loaded in gone {
            self.shared.part_later(loaded);
        }
    }

    /// A prepared version with the task that restarts its worker.
    fn supervised(&self, prepared: Prepared) -> Arc<Loaded> {
        let Prepared {
            loaded,
            choice,
            refused,
            ..
        } = prepared;
        let (shared, watched) = (self.shared.clone(), loaded.clone());
        tokio::spawn(supervise(shared, watched, choice, refused));
        loaded
    }

    /// Stops serving a model; in-flight requests finish.
    pub async fn retire(&self, model: &ModelName) {
        self.shared.write_lacking().remove(model);
        let removed = self.shared.write_routes().remove(model.as_str());
        let gone = removed.map(Versions::take_all).unwrap_or_default();
        let partings = gone.into_iter().map(|loaded| self.shared.part(loaded));
        futures::future::join_all(partings).await;
    }
}
