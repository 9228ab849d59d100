//! The figures as a table for people and as JSON for programs.

use serde_json::json;

use crate::costs::Costs;
use crate::loading::Loading;
use crate::measure::{Figure, Run};

/// Another server's figures.
pub struct PeerReport {
    pub name: &'static str,
    pub cases: Vec<Case>,
    pub resident_bytes: u64,
}

pub struct Report {
    pub runs: usize,
    pub seconds: f64,
    pub cases: Vec<Case>,
    pub memory: Memory,
    pub start_to_first_answer_ms: Figure,
    pub loading: Loading,
    /// Empty unless they were asked for.
    pub peers: Vec<PeerReport>,
}

/// Resident bytes.
pub struct Memory {
    pub agent_idle: u64,
    pub agent_busy: u64,
    /// One per model, after its load.
    pub workers: Vec<(&'static str, u64)>,
}

/// One case with a number of clients.
pub struct Case {
    name: &'static str,
    clients: usize,
    floor_p50_us: Figure,
    p50_us: Figure,
    p99_us: Figure,
    per_second: Figure,
    /// Requests per second over what one bare interpreter does in a loop.
    share_of_floor: Figure,
    /// Known of our own processes only.
    costs: Option<Costs>,
}

impl Case {
    /// Each pair: the bare interpreter, then the agent.
    pub fn new(
        name: &'static str,
        clients: usize,
        pairs: &[(Run, Run)],
        costs: Option<Costs>,
    ) -> Self {
        let shares = pairs
            .iter()
            .map(|(floor, run)| run.per_second / floor.per_second);
        Self {
            name,
            clients,
            floor_p50_us: Figure::low_is_good(pairs.iter().map(|(floor, _)| floor.p50_us)),
            p50_us: Figure::low_is_good(pairs.iter().map(|(_, run)| run.p50_us)),
            p99_us: Figure::low_is_good(pairs.iter().map(|(_, run)| run.p99_us)),
            per_second: Figure::high_is_good(pairs.iter().map(|(_, run)| run.per_second)),
            share_of_floor: Figure::high_is_good(shares),
            costs,
        }
    }

    fn added(&self) -> Figure {
        Figure {
            median: self.p50_us.median - self.floor_p50_us.median,
            worst: self.p50_us.worst - self.floor_p50_us.median,
        }
    }
}

impl Report {
    /// Every figure is the median of all runs, with the worst run in brackets.
    pub fn text(&self) -> String {
        let mut text = format!(
            "\nThe agent beside the bare interpreter: median (worst) of {} runs of {} s, in microseconds\n\n",
            self.runs, self.seconds
        );
        text += &format!(
            "{:18} {:>7} {:>10} {:>18} {:>18} {:>18} {:>7} {:>20} {:>9}\n",
            "case",
            "clients",
            "bare p50",
            "p50",
            "p99",
            "added p50",
            "ratio",
            "requests/s",
            "of bare"
        );
        self.cases.iter().for_each(|case| text += &case.line());
        text += "\nwhat a request costs: microseconds of processor time, and how often agent and worker fall asleep\n\n";
        self.cases
            .iter()
            .for_each(|case| text += &case.costs_line());
        for peer in &self.peers {
            text += &format!(
                "\n{}, plain HTTP on loopback, resident {}\n",
                peer.name,
                mebibytes(peer.resident_bytes)
            );
            peer.cases.iter().for_each(|case| text += &case.line());
        }
        text += &format!(
            "\nresident memory: agent without a model {}, after all cases {}",
            mebibytes(self.memory.agent_idle),
            mebibytes(self.memory.agent_busy)
        );
        for (model, bytes) in &self.memory.workers {
            text += &format!("; worker of {model} {}", mebibytes(*bytes));
        }
        text += &format!(
            "\np99 of the 1 ms model: {} us; while another model's version is loaded {} us ({} loads)",
            both(self.loading.quiet_p99_us, 0),
            both(self.loading.loading_p99_us, 0),
            self.loading.versions,
        );
        text + &format!(
            "\nstart to first answer with the tiny model active: {} ms\n",
            both(self.start_to_first_answer_ms, 1)
        )
    }

    pub fn json(&self) -> String {
        let cases: Vec<_> = self.cases.iter().map(Case::json).collect();
        let peers: Vec<_> = self.peers.iter().map(PeerReport::json).collect();
        let worker = self.memory.workers.first().map(|(_, bytes)| bytes);
        let workers = self.memory.workers.iter();
        let workers: serde_json::Map<_, _> = workers
            .map(|(model, bytes)| ((*model).to_owned(), json!(bytes)))
            .collect();
        let summary = json!({
            "runs": self.runs,
            "seconds_per_run": self.seconds,
            "cases": cases,
            "memory": {
                "agent_idle_bytes": self.memory.agent_idle,
                "agent_busy_bytes": self.memory.agent_busy,
                "per_worker_bytes": worker,
                "workers_bytes": workers,
            },
            "start_to_first_answer_ms": round(self.start_to_first_answer_ms.median),
            "worst_start_to_first_answer_ms": round(self.start_to_first_answer_ms.worst),
            "loading": {
                "versions": self.loading.versions,
                "quiet_p99_us": round(self.loading.quiet_p99_us.median),
                "loading_p99_us": round(self.loading.loading_p99_us.median),
                "worst_loading_p99_us": round(self.loading.loading_p99_us.worst),
            },
            "peers": peers,
        });
        format!("{summary:#}\n")
    }
}

impl PeerReport {
    fn json(&self) -> serde_json::Value {
        let cases: Vec<_> = self.cases.iter().map(Case::json).collect();
        json!({"name": self.name, "cases": cases, "resident_bytes": self.resident_bytes})
    }
}

impl Case {
    fn line(&self) -> String {
        format!(
            "{:18} {:>7} {:>10.1} {:>18} {:>18} {:>18} {:>6.1}x {:>20} {:>8.1}%\n",
            self.name,
            self.clients,
            self.floor_p50_us.median,
            both(self.p50_us, 1),
            both(self.p99_us, 0),
            both(self.added(), 1),
            self.p50_us.median / self.floor_p50_us.median,
            both(self.per_second, 0),
            self.share_of_floor.median * 100.0,
        )
    }

    fn costs_line(&self) -> String {
        self.costs.map_or_else(String::new, |costs| {
            format!(
                "{:18} {:>7} client {:>6.1}  agent {:>6.1}  worker {:>7.1}  sleeps {:>5.2}\n",
                self.name,
                self.clients,
                costs.client_us,
                costs.agent_us,
                costs.worker_us,
                costs.switches
            )
        })
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "case": self.name,
            "clients": self.clients,
            "floor_p50_us": round(self.floor_p50_us.median),
            "p50_us": round(self.p50_us.median),
            "p99_us": round(self.p99_us.median),
            "added_p50_us": round(self.added().median),
            "requests_per_s": round(self.per_second.median),
            "share_of_bare_loop": round(self.share_of_floor.median),
            "costs": self.costs.map(|costs| json!({
                "client_us": round(costs.client_us),
                "agent_us": round(costs.agent_us),
                "worker_us": round(costs.worker_us),
                "sleeps": round(costs.switches),
            })),
            "worst": {
                "floor_p50_us": round(self.floor_p50_us.worst),
                "p50_us": round(self.p50_us.worst),
                "p99_us": round(self.p99_us.worst),
                "added_p50_us": round(self.added().worst),
                "requests_per_s": round(self.per_second.worst),
            },
        })
    }
}

fn both(figure: Figure, decimals: usize) -> String {
    format!("{:.decimals$} ({:.decimals$})", figure.median, figure.worst)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
