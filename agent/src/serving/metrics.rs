//! The engine's part of the metrics page.
//!
//! Written from counters that exist anyway, when somebody asks: no request pays for it.

use std::sync::Arc;

use super::loaded::Loaded;
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
    let joining = |version: &&Named<'_>| version.loaded.worker().is_ok_and(|worker| worker.joins());
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
    let workers = || {
        named
            .iter()
            .filter_map(|v| Some((v, v.loaded.worker().ok()?)))
    };
    page.gauge("edgeward_worker_resident_bytes", "Memory of the worker.");
    for (version, worker) in workers() {
        let resident = worker.resident_bytes();
        page.value(
            "edgeward_worker_resident_bytes",
            &version.labels(),
            resident,
        );
    }
    page.gauge("edgeward_worker_requests", "Requests that hold a slot now.");
    for (version, worker) in workers() {
        let requests = worker.in_flight();
        page.value("edgeward_worker_requests", &version.labels(), requests);
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
