//! The engine's part of the metrics page.
//!
//! Written from counters that exist anyway, when somebody asks: no request pays for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use edgeward_models::ModelName;
use edgeward_models::fleet::routing::ShadowStatus;

use super::loaded::{Loaded, Unloads};
use super::stats::{Outcome, Shown};
use crate::watch::page::Page;

/// All metrics of the loaded versions.
pub(super) fn write(page: &mut Page, versions: &[Arc<Loaded>]) {
    let named: Vec<Named<'_>> = versions.iter().map(|loaded| Named::of(loaded)).collect();
    page.counter(
        "edgeward_requests",
        "Requests by outcome, since the version was loaded.",
    );
    for version in &named {
        for (outcome, word) in Outcome::ALL {
            let count = version.loaded.stats.count(outcome);
            page.total("edgeward_requests", &version.with("outcome", word), count);
        }
    }
    histogram(
        page,
        "edgeward_queue_seconds",
        "Waiting for a slot and an interpreter, answered requests.",
        &named,
        |loaded| loaded.stats.queue.shown(),
    );
    histogram(
        page,
        "edgeward_invoke_seconds",
        "Running the model, answered requests.",
        &named,
        |loaded| loaded.stats.invoke.shown(),
    );
    histogram(
        page,
        "edgeward_request_seconds",
        "From admission to the answer, answered requests.",
        &named,
        |loaded| loaded.stats.total.shown(),
    );
    let joining =
        |version: &&Named<'_>| version.loaded.worker().is_some_and(|worker| worker.joins());
    histogram(
        page,
        "edgeward_batch_size",
        "Rows of each invoke, where requests are joined.",
        named.iter().filter(joining),
        |loaded| loaded.stats.batches.shown(),
    );
    page.gauge("edgeward_model_ready", "1 while the model answers.");
    for version in &named {
        let ready = u64::from(version.loaded.ready());
        page.value("edgeward_model_ready", &version.labels(), ready);
    }
    page.counter("edgeward_worker_crashes", "Deaths of the worker.");
    for version in &named {
        let crashes = version.loaded.stats.crashes();
        page.total("edgeward_worker_crashes", &version.labels(), crashes);
    }
    let workers = || named.iter().filter_map(|v| Some((v, v.loaded.worker()?)));
    page.gauge("edgeward_worker_resident_bytes", "Memory of the worker.");
    for (version, worker) in workers() {
        let resident = worker.resident_bytes();
        page.value(
            "edgeward_worker_resident_bytes",
            &version.labels(),
            resident,
        );
    }
    page.gauge(
        "edgeward_worker_memory_bytes",
        "Memory of the worker, its share of what processes share.",
    );
    for version in &named {
        let memory = version.loaded.measure();
        page.value("edgeward_worker_memory_bytes", &version.labels(), memory);
    }
    for (name, help, count) in [
        (
            "edgeward_worker_unloads",
            "Times that it was unloaded since nobody asked, or for its memory.",
            (|unloads| &unloads.count) as fn(&Unloads) -> &AtomicU64,
        ),
        (
            "edgeward_worker_reloads",
            "Times that it was loaded again for a request.",
            |unloads| &unloads.reloads,
        ),
    ] {
        page.counter(name, help);
        for version in &named {
            let count = count(&version.loaded.unloads).load(Ordering::Relaxed);
            page.total(name, &version.labels(), count);
        }
    }
    page.gauge(
        "edgeward_worker_interpreters",
        "Interpreters of the worker.",
    );
    for (version, worker) in workers() {
        let interpreters = worker.interpreters();
        page.value(
            "edgeward_worker_interpreters",
            &version.labels(),
            interpreters,
        );
    }
    page.gauge("edgeward_worker_requests", "Requests that hold a slot now.");
    for (version, worker) in workers() {
        let requests = worker.in_flight();
        page.value("edgeward_worker_requests", &version.labels(), requests);
    }
    let name = "edgeward_delegated_ratio";
    page.gauge(name, "Share of the graph's nodes that the delegate took.");
    for version in &named {
        let active = version.loaded.active();
        let all = f64::from(active.total_nodes.max(1));
        let share = f64::from(active.delegated_nodes) / all;
        let labels = version.with("delegate", active.delegate.as_str());
        page.value(name, &labels, share);
    }
    page.gauge(
        "edgeward_graph_nodes",
        "Nodes of the graph: taken by the delegate, and all.",
    );
    for version in &named {
        let active = version.loaded.active();
        for (nodes, count) in [
            ("delegated", active.delegated_nodes),
            ("all", active.total_nodes),
        ] {
            let [model, number] = version.labels();
            let delegate = ("delegate", active.delegate.as_str());
            let labels = [model, number, delegate, ("nodes", nodes)];
            page.value("edgeward_graph_nodes", &labels, count);
        }
    }
}

/// How often versions of a model came and went since the agent was started.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lifecycle {
    pub(super) loads: u64,
    pub(super) failed_loads: u64,
    pub(super) unloads: u64,
}

pub(super) fn write_lifecycle(page: &mut Page, models: &BTreeMap<ModelName, Lifecycle>) {
    let name = "edgeward_model_loads";
    page.counter(name, "Versions that were loaded and proven, or were not.");
    for (model, life) in models {
        for (outcome, count) in [("succeeded", life.loads), ("failed", life.failed_loads)] {
            let labels = [("model", model.as_str()), ("outcome", outcome)];
            page.total(name, &labels, count);
        }
    }
    let name = "edgeward_model_unloads";
    page.counter(name, "Versions that were ended.");
    for (model, life) in models {
        page.total(name, &[("model", model.as_str())], life.unloads);
    }
}

/// What came of the shadows.
pub(super) fn write_shadows(page: &mut Page, shadows: &[(ModelName, ShadowStatus)]) {
    if shadows.is_empty() {
        return;
    }
    page.counter(
        "edgeward_shadow_requests",
        "Requests that were to be put to the shadow as well, by what came of that.",
    );
    for (model, shadow) in shadows {
        let version = shadow.version.to_string();
        let same = shadow.compared.saturating_sub(shadow.different);
        for (result, count) in [
            ("same", same),
            ("different", shadow.different),
            ("dropped", shadow.dropped),
            ("failed", shadow.failed),
        ] {
            let labels = [
                ("model", model.as_str()),
                ("version", version.as_str()),
                ("result", result),
            ];
            page.total("edgeward_shadow_requests", &labels, count);
        }
    }
}

/// A version and what it is called.
struct Named<'a> {
    loaded: &'a Loaded,
    version: String,
}

impl<'a> Named<'a> {
    fn of(loaded: &'a Loaded) -> Self {
        Self {
            loaded,
            version: loaded.manifest().version.to_string(),
        }
    }

    fn labels(&self) -> [(&str, &str); 2] {
        let model = self.loaded.manifest().model.as_str();
        [("model", model), ("version", &self.version)]
    }

    fn with<'b>(&'b self, label: &'b str, value: &'b str) -> [(&'b str, &'b str); 3] {
        let [model, version] = self.labels();
        [model, version, (label, value)]
    }
}

fn histogram<'a>(
    page: &mut Page,
    name: &str,
    help: &str,
    versions: impl IntoIterator<Item = &'a Named<'a>>,
    shown: impl Fn(&Loaded) -> Shown,
) {
    page.histogram(name, help);
    for version in versions {
        let Shown {
            bounds,
            cumulative,
            sum,
        } = shown(version.loaded);
        let total = cumulative.last().copied().unwrap_or(0);
        let bounds = bounds.into_iter().zip(cumulative);
        page.buckets(name, &version.labels(), bounds, total, sum);
    }
}
