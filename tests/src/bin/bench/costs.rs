//! Where the time of a request goes: what each process computed for it, and how often one had to be woken.
//!
//! Latency has two parts. One is computing, which this counts by process; the other is waiting until a core has
//! woken up and runs whoever is next. Each turn that ends in sleep is a voluntary context switch.

use std::fs;

/// What several processes have spent so far, thread by thread summed up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    cpu_ns: u64,
    switches: u64,
}

/// Of one request, on average.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    pub client_us: f64,
    pub agent_us: f64,
    pub worker_us: f64,
    /// Of agent and worker.
    pub switches: f64,
}

/// Counts from its making on.
pub struct Meter {
    agent: u32,
    worker: u32,
    begun: [Spent; 3],
}

impl Meter {
    pub fn start(agent: u32, worker: u32) -> Self {
        let begun = spent(agent, worker);
        Self {
            agent,
            worker,
            begun,
        }
    }

    /// What each of so many requests cost.
    pub fn stop(self, requests: u64) -> Costs {
        let ended = spent(self.agent, self.worker);
        let used = |place: usize| {
            let (begun, ended): (Spent, Spent) = (self.begun[place], ended[place]);
            let cpu = ended.cpu_ns.saturating_sub(begun.cpu_ns) as f64 / 1e3;
            let switches = ended.switches.saturating_sub(begun.switches) as f64;
            (cpu / requests as f64, switches / requests as f64)
        };
        let [client, agent, worker] = [0, 1, 2].map(used);
        Costs {
            client_us: client.0,
            agent_us: agent.0,
            worker_us: worker.0,
            switches: agent.1 + worker.1,
        }
    }
}

/// Client, agent, worker.
fn spent(agent: u32, worker: u32) -> [Spent; 3] {
    [of_client(), of_process(agent), of_process(worker)]
}

/// This process with all threads that it ever had, in the kernel's hundredths of a second.
fn of_client() -> Spent {
    const TICK_NS: u64 = 10_000_000;
    let text = fs::read_to_string("/proc/self/stat").expect("what the kernel counts");
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    Spent {
        cpu_ns: ticks * TICK_NS,
        switches: 0,
    }
}

/// Threads that have ended are in no count, so this is for processes whose threads stay.
fn of_process(pid: u32) -> Spent {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process's threads");
    let mut sum = Spent::default();
    for thread in threads.flatten().map(|thread| thread.path()) {
        let read = |name: &str| fs::read_to_string(thread.join(name)).unwrap_or_default();
        let time = read("schedstat");
        let time = time.split_whitespace().next().map(str::parse::<u64>);
        sum.cpu_ns += time.and_then(Result::ok).unwrap_or(0);
        let status = read("status");
        let switches = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum.switches += switches.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
    }
    sum
}
