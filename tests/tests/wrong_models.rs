//! Two hundred wrong models, signed and carried to a device like any other, and an agent that never notices.
//! `EDGEWARD_WRONG_MODELS` makes them more, `EDGEWARD_WRONG_SEED` others.
//!
//! Most are well-formed flatbuffers with wrong fields, which no reader of the format can tell from a good
//! one: it takes the runtime to find out. `fleetctl` refuses some when it reads their tensors; those are signed all the same under the manifest
//! of the model they were made from, so that the device meets every one. Several of them end the process that
//! runs them: that is why it is not the agent's.

use std::path::{Path, PathBuf};

use edgeward_tests::http::Client;
use edgeward_tests::package::known;
use edgeward_tests::{Package, Site, binaries, python};
use serde::Deserialize;

const SAMPLES: [&str; 3] = ["digits-1.0.0", "digits-int8-1.0.0", "breast-cancer-1.0.0"];
const PUBLIC: &str = "okay_nabu";

/// What a reason says when the file could be read and its graph not be planned or run.
const RUNTIME_WORDS: [&str; 5] = [
    "Node number",
    "killed by signal",
    "golden vector",
    "generated input",
    "an invoke",
];

/// A number that the environment may set.
fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// One wrong model, as `wrong_models.py` lists it.
#[derive(Deserialize)]
struct Wrong {
    file: PathBuf,
    base: PathBuf,
    edit: String,
    well_formed: bool,
}

/// What became of them.
#[derive(Debug, Default)]
struct Tally {
    /// Refused by fleetctl, and signed under the manifest of the good model.
    refused_at_the_desk: usize,
    refused_by_the_device: usize,
    /// Those of either kind on which a worker's process was ended by a signal.
    killed_a_worker: Vec<String>,
    /// They got as far as the runtime's planning or running them, or further.
    reached_the_runtime: usize,
    /// They answer something; whether that is right, only golden vectors can say.
    taken: usize,
}

/// What the device says of one wrong model.
enum Outcome {
    Taken { refused_delegates: String },
    Refused { reason: String },
}

impl Outcome {
    /// Panics unless the device has made up its mind about this version, and kept the one before if it is refused.
    fn of(site: &Site, model: &str, version: &str, context: &str) -> Self {
        let status = site.device.model_status(model).expect("a status");
        assert_eq!(status["target"], version, "{context}: {status}");
        if status["active"]["version"] == version {
            let refused_delegates = status["active"]["refused_delegates"].to_string();
            return Self::Taken { refused_delegates };
        }
        assert_eq!(status["phase"], "refused", "{context}: {status}");
        assert!(
            status["active"]["version"].is_string(),
            "{context}: {status}"
        );
        let reason = status["reason"].as_str().unwrap_or_default().to_owned();
        assert!(!reason.is_empty(), "{context}: {status}");
        Self::Refused { reason }
    }
}

/// The good models, as packages; the witness is one that no wrong one is made from.
struct Bases {
    packages: Vec<(PathBuf, Package)>,
}

impl Bases {
    fn new(parent: &Path) -> Self {
        let mut packages: Vec<_> = SAMPLES
            .iter()
            .map(|sample| {
                let file = binaries::sample(sample).join("model.tflite");
                (file, Package::copy_of(sample, parent))
            })
            .collect();
        let file = python::public_model(PUBLIC);
        packages.push((file.clone(), Package::of_tflite(&file, PUBLIC, parent)));
        Self { packages }
    }

    fn of(&self, wrong: &Wrong) -> &Package {
        let found = self.packages.iter().find(|(file, _)| *file == wrong.base);
        &found.expect("a known base").1
    }
}

fn make_wrong_models(directory: &Path, bases: &Bases, count: usize, seed: usize) -> Vec<Wrong> {
    let mut arguments = vec![
        directory.display().to_string(),
        format!("--count={count}"),
        format!("--seed={seed}"),
    ];
    arguments.extend(
        bases
            .packages
            .iter()
            .map(|(file, _)| file.display().to_string()),
    );
    python::run("wrong_models.py", arguments).expect_success();
    let index = std::fs::read(directory.join("index.json")).expect("read the index");
    let wrong: Vec<Wrong> = serde_json::from_slice(&index).expect("the index");
    assert_eq!(wrong.len(), count);
    assert!(wrong.iter().filter(|w| w.well_formed).count() >= count / 2);
    wrong
}

/// Signs the wrong model as the next version of the good one. True: fleetctl took it as it is.
fn sign(site: &Site, file: &Path, base: &Package, version: &str, parent: &Path) -> bool {
    let name = base.manifest().model.to_string();
    let as_it_is = site.sign(file, &["--name", &name, "--version", version]);
    if as_it_is.code == Some(0) {
        return true;
    }
    let bytes = std::fs::read(file).expect("read a wrong model");
    let package = base.copy(parent).with_model(&bytes).version(version);
    site.sign(package.path(), &[]).expect_success();
    false
}

fn witness_answers(client: &mut Client, context: &str) {
    let question = known("digits-2.0.0", 0);
    let answer = client.infer("witness", &question.request);
    let answer = answer.unwrap_or_else(|e| panic!("{context}: {e}"));
    assert_eq!(answer.status, 200, "{context}: {}", answer.text());
    question
        .check(&answer.json())
        .unwrap_or_else(|e| panic!("{context}: {e}"));
}

#[test]
#[allow(clippy::print_stdout)]
fn after_each_of_many_wrong_models_the_agent_answers_its_next_request() {
    let mut site = Site::new(|_| {});
    let parent = site.fleet.directory().join("packages");
    let witness = site.fleet.package("digits-2.0.0");
    let witness = witness.edit(|m| m.model = "witness".parse().expect("a model name"));
    site.install(witness.path());
    let bases = Bases::new(&parent);
    for (_, package) in &bases.packages {
        site.install(package.path());
    }
    let directory = site.fleet.directory().join("wrong");
    let count = setting("EDGEWARD_WRONG_MODELS", 200);
    let seed = setting("EDGEWARD_WRONG_SEED", 1);
    println!("{count} wrong models of seed {seed}");
    let wrong = make_wrong_models(&directory, &bases, count, seed);
    let agent = site.device.pid();
    let mut client = site.device.unix();
    let mut tally = Tally::default();

    for (number, model) in wrong.iter().enumerate() {
        let context = format!("{} ({})", model.file.display(), model.edit);
        let base = bases.of(model);
        let version = format!("2.0.{number}");
        let file = directory.join(&model.file);
        if !sign(&site, &file, base, &version, &parent) {
            tally.refused_at_the_desk += 1;
        }
        let carried = site.carry();
        // 1: something of what is signed was refused, this one or one before it.
        assert!(matches!(carried.code, Some(0 | 1)), "{context}: {carried}");
        witness_answers(&mut client, &context);
        let name = base.manifest().model.as_str();
        let reasons = match Outcome::of(&site, name, &version, &context) {
            Outcome::Taken { refused_delegates } => {
                tally.taken += 1;
                refused_delegates
            }
            Outcome::Refused { reason } => {
                tally.refused_by_the_device += 1;
                reason
            }
        };
        if RUNTIME_WORDS.iter().any(|words| reasons.contains(words)) || reasons == "[]" {
            tally.reached_the_runtime += 1;
        }
        if reasons.contains("killed by signal") {
            tally.killed_a_worker.push(context);
        }
    }

    println!("{tally:#?}");
    assert!(
        !tally.killed_a_worker.is_empty(),
        "none killed a worker: {tally:#?}"
    );
    assert!(
        tally.reached_the_runtime > count / 3,
        "few got past the readers of the format: {tally:#?}"
    );
    assert_eq!(tally.taken + tally.refused_by_the_device, count);
    assert_eq!(site.device.pid(), agent);
    // Not restarted either: it still has the connection that was opened first.
    witness_answers(&mut client, "at the end");
    site.device.stop();
}
