//! The engine's metrics once more under the names of other servers, for dashboards that know those
//! (`[metrics] names_of`).
//!
//! What those servers count and this one does not (GPUs, copying into and out of a model) is left out. Triton's
//! version is the release; TensorFlow Serving tells models apart but not their versions, and doors not at all here.

use std::collections::BTreeMap;
use std::sync::Arc;

use edgeward_models::ModelName;

use super::loaded::Loaded;
use super::stats::{Outcome, Shown};
use crate::watch::page::Page;

/// Triton's reasons for a failure.
fn reason(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Overloaded => "REJECTED",
        Outcome::Cancelled => "CANCELED",
        Outcome::Failed => "BACKEND",
        _ => "OTHER",
    }
}

pub(super) fn triton(page: &mut Page, versions: &[Arc<Loaded>]) {
    let named: Vec<_> = versions
        .iter()
        .map(|loaded| (loaded, loaded.manifest().release.to_string()))
        .collect();
    let mut counters = |name: &str, help: &str, value: &dyn Fn(&Loaded) -> u64| {
        page.foreign_counter(name, help);
        for (loaded, release) in &named {
            let model = loaded.manifest().model.as_str();
            let labels = [("model", model), ("version", release)];
            page.value(name, &labels, value(loaded));
        }
    };
    let succeeded = |loaded: &Loaded| loaded.stats.count(Outcome::Succeeded);
    let micros = |shown: Shown| (shown.sum * 1e6) as u64;
    counters(
        "nv_inference_request_success",
        "Requests that were answered.",
        &succeeded,
    );
    counters("nv_inference_count", "Inferences.", &succeeded);
    counters("nv_inference_exec_count", "Runs of the model.", &|loaded| {
        loaded.stats.statistics().invokes
    });
    counters(
        "nv_inference_request_duration_us",
        "From admission to the answer.",
        &|loaded| micros(loaded.stats.total.shown()),
    );
    counters(
        "nv_inference_queue_duration_us",
        "Waiting for a slot and an interpreter.",
        &|loaded| micros(loaded.stats.queue.shown()),
    );
    counters(
        "nv_inference_compute_infer_duration_us",
        "Running the model.",
        &|loaded| micros(loaded.stats.invoke.shown()),
    );
    let failure = "nv_inference_request_failure";
    page.foreign_counter(failure, "Requests that were not answered.");
    for (loaded, release) in &named {
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        for (outcome, _) in Outcome::ALL {
            if outcome != Outcome::Succeeded {
                *reasons.entry(reason(outcome)).or_default() += loaded.stats.count(outcome);
            }
        }
        let model = loaded.manifest().model.as_str();
        for (reason, count) in reasons {
            let labels = [("model", model), ("version", release), ("reason", reason)];
            page.value(failure, &labels, count);
        }
    }
    let pending = "nv_inference_pending_request_count";
    page.gauge(pending, "Requests that hold a slot now.");
    for (loaded, release) in &named {
        if let Some(worker) = loaded.worker() {
            let model = loaded.manifest().model.as_str();
            let labels = [("model", model), ("version", release)];
            page.value(pending, &labels, worker.in_flight());
        }
    }
}

pub(super) fn tensorflow(page: &mut Page, versions: &[Arc<Loaded>]) {
    let mut models: BTreeMap<&ModelName, Vec<&Loaded>> = BTreeMap::new();
    for loaded in versions {
        let versions = models.entry(&loaded.manifest().model).or_default();
        versions.push(loaded);
    }
    let requests = ":tensorflow:serving:request_count";
    page.foreign_counter(requests, "Requests by status.");
    for (model, versions) in &models {
        for (outcome, status) in [
            (Outcome::Succeeded, "OK"),
            (Outcome::Invalid, "INVALID_ARGUMENT"),
            (Outcome::Overloaded, "RESOURCE_EXHAUSTED"),
            (Outcome::NotReady, "UNAVAILABLE"),
            (Outcome::Deadline, "DEADLINE_EXCEEDED"),
            (Outcome::Failed, "INTERNAL"),
            (Outcome::Cancelled, "CANCELLED"),
        ] {
            let count: u64 = versions.iter().map(|v| v.stats.count(outcome)).sum();
            let labels = [("model_name", model.as_str()), ("status", status)];
            page.value(requests, &labels, count);
        }
    }
    type Part = fn(&Loaded) -> Shown;
    let parts: [(&str, &str, Part); 2] = [
        (
            ":tensorflow:serving:request_latency",
            "From admission to the answer, in microseconds.",
            |loaded| loaded.stats.total.shown(),
        ),
        (
            ":tensorflow:serving:runtime_latency",
            "Running the model, in microseconds.",
            |loaded| loaded.stats.invoke.shown(),
        ),
    ];
    for (name, help, part) in parts {
        page.histogram(name, help);
        for (model, versions) in &models {
            let labels = [("model_name", model.as_str()), ("API", "predict")];
            let Some(Shown {
                bounds,
                cumulative,
                sum,
            }) = versions.iter().map(|v| part(v)).reduce(together)
            else {
                continue;
            };
            let total = cumulative.last().copied().unwrap_or(0);
            let bounds = bounds.into_iter().map(|seconds| seconds * 1e6);
            page.buckets(name, &labels, bounds.zip(cumulative), total, sum * 1e6);
        }
    }
}

/// Two histograms with the same bounds as one.
fn together(mut one: Shown, other: Shown) -> Shown {
    for (sum, count) in one.cumulative.iter_mut().zip(other.cumulative) {
        *sum += count;
    }
    one.sum += other.sum;
    one
}
