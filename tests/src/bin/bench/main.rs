//! `make bench`: the agent as it ships beside the bare interpreter, in one run.
//!
//! The release binary serves models that came to it by the normal path (signed, exported, imported),
//! each in its sandboxed worker, with the default configuration. Each case is measured several times, the
//! bare interpreter each time just before it; the report gives the median and the worst. The run fails when
//! an answer differs from the bare interpreter's, or when what answers is not a sandboxed process of its own.
//!
//! `BENCH_SECONDS` (of one run, default 2) and `BENCH_RUNS` (default 5) change how long it takes; figures
//! are only comparable with the defaults. `BENCH_CASES` (part of their names) leaves out others.
//! `BENCH_PEERS`: see [`peers`]. Writes `target/bench/summary.json`.
#![allow(clippy::print_stdout)]

mod client;
mod costs;
mod floor;
mod loading;
mod measure;
mod peers;
mod question;
mod report;
mod system;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeward_tests::fleet::path;
use edgeward_tests::{Device, Fleet, binaries, device, http, python};

use client::Door;
use costs::Meter;
use floor::Floor;
use loading::{IMPORTS_PER_RUN, Loading};
use measure::{Figure, Run, load, load_after};
use peers::Peer;
use question::{Encoding, Model, check_answer};
use report::{Case, Memory, PeerReport, Report};

const TINY: Model = Model {
    name: "tiny",
    input: "onnx_tf__tf_Flatten_0_c338b170",
    shape: &[1, 16, 96],
};
const MILLISECOND: Model = Model {
    name: "1ms",
    input: "input_1",
    shape: &[1, 76, 32, 1],
};
const PICTURE: Model = Model {
    name: "3mib",
    input: "x",
    shape: &[1, 512, 512, 3],
};
/// Any number of rows, for [`Bench::measure_batching`].
const WIDE: Model = Model {
    name: "wide",
    input: "x",
    shape: &[1, 1024],
};
/// Shapes of their outputs, which Triton wants to be told.
const TINY_OUTPUT: &[i32] = &[1, 1];
const MILLISECOND_OUTPUT: &[i32] = &[1, 1, 1, 96];
const CLIENTS: [usize; 2] = [1, 8];

fn main() {
    let bench = Bench::prepare();
    let report = bench.run();
    print!("{}", report.text());
    let directory = target_directory().join("bench");
    std::fs::create_dir_all(&directory).expect("make a directory");
    let file = directory.join("summary.json");
    std::fs::write(&file, report.json()).expect("write the summary");
    println!("\nwritten to {}", file.display());
}

struct Bench {
    fleet: Fleet,
    device: Device,
    models: PathBuf,
    seconds: f64,
    runs: usize,
}

impl Bench {
    /// A fleet, an enrolled device without a broker, and the model files.
    fn prepare() -> Self {
        let fleet = Fleet::without_broker();
        let mut device = fleet.device("bench", "bench");
        device.without_fleet();
        // The harness logs more than the default configuration does.
        device.configure("\n[log]\nfilter = \"info,edgeward_agent=debug\"\n", "");
        let models = fleet.directory().join("models");
        python::run("bench_models.py", [&models]).expect_success();
        Self {
            fleet,
            device,
            models,
            seconds: number("BENCH_SECONDS", 2.0),
            runs: number("BENCH_RUNS", 5.0) as usize,
        }
    }

    fn run(mut self) -> Report {
        self.device.start();
        // The allocator and lazily touched pages settle within the first moments.
        std::thread::sleep(Duration::from_secs(1));
        let agent_idle = system::resident_bytes(self.device.pid());
        let mut cases = Vec::new();
        self.install(&TINY);
        let start = self.start_to_first_answer();
        let tiny_worker = system::only_new_child(self.device.pid(), &[]);
        assert_isolated(self.device.pid(), tiny_worker);
        for (encoding, name) in [
            (Encoding::Binary, "unix-binary-tiny"),
            (Encoding::Json, "unix-json-tiny"),
        ] {
            cases.extend(self.measure(name, &TINY, encoding, &self.unix(), Some(tiny_worker)));
        }
        let tls = self.tls();
        cases.extend(self.measure(
            "tls-binary-tiny",
            &TINY,
            Encoding::Binary,
            &tls,
            Some(tiny_worker),
        ));
        let worker_bytes = system::resident_bytes(tiny_worker);
        let mut memory = Memory {
            agent_idle,
            agent_busy: system::resident_bytes(self.device.pid()),
            workers: vec![(TINY.name, worker_bytes)],
        };
        let mut known = vec![tiny_worker];
        for (model, name) in [
            (&MILLISECOND, "unix-binary-1ms"),
            (&PICTURE, "unix-binary-3mib"),
        ] {
            self.install(model);
            let worker = system::only_new_child(self.device.pid(), &known);
            assert_isolated(self.device.pid(), worker);
            known.push(worker);
            cases.extend(self.measure(name, model, Encoding::Binary, &self.unix(), Some(worker)));
            memory
                .workers
                .push((model.name, system::resident_bytes(worker)));
        }
        let loading = self.measure_loading();
        cases.extend(self.measure_batching());
        self.device.stop();
        let peers = self.measure_peers();
        Report {
            runs: self.runs,
            seconds: self.seconds,
            cases,
            memory,
            start_to_first_answer_ms: start,
            loading,
            peers,
        }
    }

    /// The millisecond model's p99 while further versions of the picture's model come in.
    fn measure_loading(&self) -> Loading {
        let repositories: Vec<PathBuf> = (1..=self.runs * IMPORTS_PER_RUN)
            .map(|number| {
                let file = self
                    .models
                    .join(format!("{}-1.0.{number}.tflite", PICTURE.name));
                std::fs::copy(self.model_file(&PICTURE), &file).expect("copy a model");
                let push = ["push", path(&file), "--group", "bench", "--offline"];
                self.fleet.fleetctl(&push).expect_success();
                self.fleet.export(&format!("loading-{number}"))
            })
            .collect();
        let request = MILLISECOND.request(Encoding::Binary, None);
        let time = Duration::from_secs_f64(self.seconds);
        loading::measure(&self.device, &self.unix(), &request, &repositories, time)
    }

    /// A model whose rows share the cost of reading its weights: each request by itself, then joined with those
    /// that wait beside it.
    fn measure_batching(&mut self) -> Vec<Case> {
        self.install(&WIDE);
        let mut cases = self.measure(
            "unix-wide-apart",
            &WIDE,
            Encoding::Binary,
            &self.unix(),
            None,
        );
        self.device.stop();
        let batching = "\n[models.wide.batching]\nmax_batch_size = 8\n\n[tflite]\n";
        self.device.configure("\n[tflite]\n", batching);
        self.device.start();
        cases.extend(self.measure(
            "unix-wide-joined",
            &WIDE,
            Encoding::Binary,
            &self.unix(),
            None,
        ));
        cases
    }

    /// The servers in the Python environment that `BENCH_PEERS` names; none without it.
    fn measure_peers(&self) -> Vec<PeerReport> {
        let Some(environment) = std::env::var_os("BENCH_PEERS").map(PathBuf::from) else {
            return Vec::new();
        };
        let models = [
            (&TINY, self.model_file(&TINY), TINY_OUTPUT),
            (
                &MILLISECOND,
                self.model_file(&MILLISECOND),
                MILLISECOND_OUTPUT,
            ),
        ];
        let measured = [Peer::triton, Peer::fastapi].map(|start| {
            let peer = start(&environment, &models);
            println!("{} runs", peer.name);
            let mut cases = Vec::new();
            for (name, model, encoding) in [
                ("http-binary-tiny", &TINY, Encoding::Binary),
                ("http-json-tiny", &TINY, Encoding::Json),
                ("http-binary-1ms", &MILLISECOND, Encoding::Binary),
            ] {
                cases.extend(self.measure(name, model, encoding, &peer.door(), None));
            }
            PeerReport {
                name: peer.name,
                cases,
                resident_bytes: peer.resident_bytes(),
            }
        });
        measured.into()
    }

    fn model_file(&self, model: &Model) -> PathBuf {
        self.models.join(format!("{}-1.0.0.tflite", model.name))
    }

    /// Signs the model, carries the repository to the device and waits until the model is active.
    fn install(&self, model: &Model) {
        let file = self.model_file(model);
        let push = ["push", path(&file), "--group", "bench", "--offline"];
        self.fleet.fleetctl(&push).expect_success();
        let repository = self.fleet.export(&format!("with-{}", model.name));
        let import = ["import", path(&repository)];
        self.device.edgeward(&import).expect_success();
        self.device.wait_active(model.name, "1.0.0");
    }

    fn unix(&self) -> Door {
        Door::Unix(self.device.socket_path())
    }

    fn tls(&self) -> Door {
        Door::Tls {
            port: self.device.tls_port(),
            config: Arc::new(http::tls_config(&self.device.ca_path(), None)),
        }
    }

    /// Stops the device, starts it again, and times from there to the first answer of the tiny model.
    fn start_to_first_answer(&mut self) -> Figure {
        let request = TINY.request(Encoding::Binary, None);
        let door = self.unix();
        let mut times = Vec::new();
        for _ in 0..self.runs {
            self.device.stop();
            let start = Instant::now();
            self.device.spawn();
            loop {
                let asked = door.connect().and_then(|mut c| c.ask(&request));
                if asked.is_ok() {
                    break;
                }
                assert!(
                    start.elapsed() < Duration::from_secs(20),
                    "no answer: {asked:?}"
                );
                std::thread::sleep(Duration::from_micros(200));
            }
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Figure::low_is_good(times)
    }

    /// One case with one client and with several.
    fn measure(
        &self,
        name: &'static str,
        model: &Model,
        encoding: Encoding,
        door: &Door,
        worker: Option<u32>,
    ) -> Vec<Case> {
        let wanted = std::env::var("BENCH_CASES").unwrap_or_default();
        if !name.contains(&wanted) {
            return Vec::new();
        }
        let token = matches!(door, Door::Tls { .. }).then_some(device::TOKEN);
        let request = model.request(encoding, token);
        let library = binaries::tflite_library();
        let mut floor = Floor::new(
            &library,
            &self.model_file(model),
            model.shape,
            &model.bytes(),
        );
        let mut connection = door.connect().expect("connect to the agent");
        connection.ask(&request).expect("an answer");
        check_answer(&connection, encoding, &floor.output());
        let time = Duration::from_secs_f64(self.seconds);
        let measured = CLIENTS.map(|clients| {
            let pairs: Vec<(Run, Run)> = (0..self.runs)
                .map(|_| (floor.run(time / 4), load(door, &request, clients, time)))
                .collect();
            let costs = worker.map(|worker| {
                let meter = Meter::start(self.device.pid(), worker);
                let run = load_after(door, &request, clients, time, Duration::ZERO);
                meter.stop(run.requests)
            });
            println!("{name}, {clients} client(s): measured");
            Case::new(name, clients, &pairs, costs)
        });
        measured.into_iter().collect()
    }
}

/// What answers must be another process than the agent, under a seccomp filter.
fn assert_isolated(agent: u32, worker: u32) {
    assert_ne!(agent, worker, "the model runs inside the agent");
    let mode = system::seccomp_mode(worker);
    assert_ne!(mode, 0, "the worker {worker} runs without a seccomp filter");
}

fn number(variable: &str, default: f64) -> f64 {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")),
        Err(_) => default,
    }
}

/// This program lies in `target/release`.
fn target_directory() -> PathBuf {
    let this = std::env::current_exe().expect("path of this executable");
    let directory = this.ancestors().nth(2).map(Path::to_owned);
    directory.expect("a target directory")
}
