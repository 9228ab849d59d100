//! A client that keeps asking in a tight loop while something else happens, and counts what it got.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::http::Client;

/// What a loop of requests saw.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answers by the version that gave them.
    pub by_version: BTreeMap<String, u64>,
    pub failed: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
}

impl Tally {
    pub fn succeeded(&self) -> u64 {
        self.by_version.values().sum()
    }
}

/// The running loop.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Tally>,
}

impl Load {
    /// Asks `model` the same question again and again; `check` may refuse an answer.
    pub fn start(
        mut client: Client,
        model: &str,
        request: Value,
        check: impl Fn(&Value) -> Result<(), String> + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let model = model.to_owned();
        let thread = std::thread::spawn(move || {
            let mut tally = Tally::default();
            while !flag.load(Ordering::Relaxed) {
                match ask(&mut client, &model, &request, &check) {
                    Ok(version) => *tally.by_version.entry(version).or_default() += 1,
                    Err(problem) => {
                        tally.failed += 1;
                        if tally.failures.len() < 10 {
                            tally.failures.push(problem);
                        }
                    }
                }
            }
            tally
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the loop of requests")
    }
}

fn ask(
    client: &mut Client,
    model: &str,
    request: &Value,
    check: &impl Fn(&Value) -> Result<(), String>,
) -> Result<String, String> {
    let response = client.infer(model, request).map_err(|e| e.to_string())?;
    if response.status != 200 {
        return Err(format!("{}: {}", response.status, response.text()));
    }
    let answer = response.json();
    check(&answer)?;
    let version = answer["model_version"].as_str().unwrap_or("none named");
    Ok(version.to_owned())
}
