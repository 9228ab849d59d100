//! How long a request takes to the worker and back: `hop EDGEWARD PACKAGE TFLITE [DELEGATE] [CLIENTS]`.
//!
//! Everything but the doors: lease, copy into the slot, job, invoke, reply, on a runtime of one thread like
//! the agent's. Prints the median and the 99th percentile beside the time of the invokes themselves.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward_agent::config::Sandbox;
use edgeward_agent::worker::{Spawner, Worker, WorkerSpec};
use edgeward_models::Manifest;
use edgeward_models::manifest::{DelegateChoice, TensorSpec};

/// Shape and bytes of each input.
type Inputs = Arc<[(Vec<i64>, usize)]>;

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stdout)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [program, package, library, rest @ ..] = arguments.as_slice() else {
        return Err("hop EDGEWARD PACKAGE TFLITE [DELEGATE] [CLIENTS]".into());
    };
    let delegate = rest.first().map_or("xnnpack", String::as_str);
    let clients: usize = rest.get(1).map_or(Ok(1), |text| text.parse())?;
    let package = Path::new(package);
    let manifest = Manifest::parse(&std::fs::read(package.join("manifest.json"))?)?;
    let bytes = manifest.request_bytes() as usize;
    let least = |spec: &TensorSpec| {
        let shape: Vec<i64> = spec.shape.iter().map(|&d| d.max(1)).collect();
        (shape, spec.least_bytes().unwrap_or(0) as usize)
    };
    let inputs = &manifest.default_signature().inputs;
    let inputs: Inputs = inputs.iter().map(least).collect();
    let spec = WorkerSpec {
        model_path: package.join(manifest.model_file.as_str()),
        manifest: Arc::new(manifest),
        delegate: DelegateChoice::new(delegate.parse()?),
        profile: None,
        cache: None,
        library: PathBuf::from(library),
        instances: 1,
        threads: 1,
        batching: None,
        slots: 16,
        request_bytes: bytes,
        memory_limit_bytes: 0,
        load_timeout: Duration::from_secs(60),
        proving_invoke_limit: None,
        sandbox: Sandbox::Enforced,
    };
    let worker = Worker::start(&Spawner::new(program.into())?, spec).await?;
    worker.seal().await?;
    println!(
        "load {:?}, resident {} KiB",
        worker.facts().load_time,
        worker.resident_bytes() >> 10
    );
    for round in 0..5 {
        let began = Instant::now();
        let run = |_| tokio::spawn(client(worker.clone(), inputs.clone(), 10_000 / clients));
        let runs = (0..clients).map(run);
        let (mut totals, mut invokes) = (Vec::new(), Vec::new());
        for run in runs.collect::<Vec<_>>() {
            for (total, invoke) in run.await? {
                totals.push(total);
                invokes.push(invoke);
            }
        }
        let rate = totals.len() as f64 / began.elapsed().as_secs_f64();
        println!(
            "round {round}: p50 {:.1} us, p99 {:.1} us, invoke p50 {:.1} us, {rate:.0} requests/s",
            at(&mut totals, 0.5),
            at(&mut totals, 0.99),
            at(&mut invokes, 0.5)
        );
    }
    Ok(())
}

async fn client(worker: Worker, inputs: Inputs, requests: usize) -> Vec<(Duration, Duration)> {
    let bytes = inputs.iter().map(|(_, bytes)| bytes).sum();
    let mut times = Vec::with_capacity(requests);
    for _ in 0..requests {
        let began = Instant::now();
        let answer = async {
            let mut slot = worker.lease(bytes, Duration::from_secs(1)).await?;
            for (shape, bytes) in inputs.iter() {
                slot.input(shape, *bytes)?.fill(0);
            }
            slot.invoke(0, began + Duration::from_secs(10)).await
        };
        match answer.await {
            Ok(answer) => times.push((began.elapsed(), answer.invoke_time())),
            Err(_) => return times,
        }
    }
    times
}

fn at(times: &mut [Duration], share: f64) -> f64 {
    times.sort();
    let index = (times.len().saturating_sub(1) as f64 * share) as usize;
    times.get(index).map_or(0.0, |t| t.as_secs_f64() * 1e6)
}
