//! The engine's part of the metrics page, in the Prometheus text format (version 0.0.4).
//!
//! Written from counters that exist anyway, when somebody asks: no request pays for it. Label values are
//! names and versions, which hold no character that needs escaping.

use std::fmt::Write;
use std::sync::Arc;

use super::loaded::Loaded;
use super::stats::{Outcome, Shown};

/// All metrics of the loaded versions.
pub(super) fn text(versions: &[Arc<Loaded>]) -> String {
    let mut page = Page::default();
    page.counter(
        "edgeward_requests_total",
        "Requests by outcome, since the version was loaded.",
    );
    for loaded in versions {
        for (outcome, word) in Outcome::ALL {
            let count = loaded.stats.count(outcome);
            page.line(
                "edgeward_requests_total",
                loaded,
                &[("outcome", word)],
                count,
            );
        }
    }
    page.histogram(
        "edgeward_queue_seconds",
        "Waiting for a slot and an interpreter, answered requests.",
        versions,
        |loaded| loaded.stats.queue.shown(),
    );
    page.histogram(
        "edgeward_invoke_seconds",
        "Running the model, answered requests.",
        versions,
        |loaded| loaded.stats.invoke.shown(),
    );
    page.histogram(
        "edgeward_request_seconds",
        "From admission to the answer, answered requests.",
        versions,
        |loaded| loaded.stats.total.shown(),
    );
    let joining = |loaded: &&Arc<Loaded>| loaded.worker().is_ok_and(|worker| worker.joins());
    page.histogram(
        "edgeward_batch_size",
        "Rows of each invoke, where requests are joined.",
        versions.iter().filter(joining),
        |loaded| loaded.stats.batches.shown(),
    );
    page.gauge("edgeward_model_ready", "1 while the model answers.");
    for loaded in versions {
        page.line(
            "edgeward_model_ready",
            loaded,
            &[],
            u64::from(loaded.ready()),
        );
    }
    page.counter("edgeward_worker_crashes_total", "Deaths of the worker.");
    for loaded in versions {
        let crashes = loaded.stats.crashes();
        page.line("edgeward_worker_crashes_total", loaded, &[], crashes);
    }
    let workers = || versions.iter().filter_map(|l| Some((l, l.worker().ok()?)));
    page.gauge("edgeward_worker_resident_bytes", "Memory of the worker.");
    for (loaded, worker) in workers() {
        let resident = worker.resident_bytes();
        page.line("edgeward_worker_resident_bytes", loaded, &[], resident);
    }
    page.gauge("edgeward_worker_requests", "Requests that hold a slot now.");
    for (loaded, worker) in workers() {
        let requests = worker.in_flight() as u64;
        page.line("edgeward_worker_requests", loaded, &[], requests);
    }
    page.gauge(
        "edgeward_graph_nodes",
        "Nodes of the graph: taken by the delegate, and all.",
    );
    for loaded in versions {
        let active = loaded.active();
        let delegate = ("delegate", active.delegate.as_str());
        let taken = u64::from(active.delegated_nodes);
        let all = u64::from(active.total_nodes);
        let name = "edgeward_graph_nodes";
        page.line(name, loaded, &[delegate, ("nodes", "delegated")], taken);
        page.line(name, loaded, &[delegate, ("nodes", "all")], all);
    }
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

// Writing to a String cannot fail, so the results of `writeln!` are dropped here.
impl Page {
    fn counter(&mut self, name: &str, help: &str) {
        self.head(name, help, "counter");
    }

    fn gauge(&mut self, name: &str, help: &str) {
        self.head(name, help, "gauge");
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, loaded: &Loaded, labels: &[(&str, &str)], value: u64) {
        self.labels(name, loaded, labels);
        let _ = writeln!(self.text, " {value}");
    }

    fn labels(&mut self, name: &str, loaded: &Loaded, labels: &[(&str, &str)]) {
        let manifest = loaded.manifest();
        let (model, version) = (&manifest.model, &manifest.version);
        let _ = write!(self.text, "{name}{{model=\"{model}\",version=\"{version}\"");
        for (label, value) in labels {
            let _ = write!(self.text, ",{label}=\"{value}\"");
        }
        self.text.push('}');
    }

    fn histogram<'a>(
        &mut self,
        name: &str,
        help: &str,
        versions: impl IntoIterator<Item = &'a Arc<Loaded>>,
        shown: impl Fn(&Loaded) -> Shown,
    ) {
        self.head(name, help, "histogram");
        for loaded in versions {
            let shown = shown(loaded);
            let total = shown.cumulative.last().copied().unwrap_or(0);
            for (bound, count) in shown.bounds.iter().zip(&shown.cumulative) {
                let bound = bound.to_string();
                self.line(&format!("{name}_bucket"), loaded, &[("le", &bound)], *count);
            }
            self.line(&format!("{name}_bucket"), loaded, &[("le", "+Inf")], total);
            self.labels(&format!("{name}_sum"), loaded, &[]);
            let _ = writeln!(self.text, " {}", shown.sum);
            self.line(&format!("{name}_count"), loaded, &[], total);
        }
    }
}
