//! kill -9 at every step of an installation: afterwards the device serves the version before or the new one,
//! answers right, and gets where it was going without help.

use std::path::Path;
use std::time::{Duration, Instant};

use edgeward_tests::relay::Relay;
use edgeward_tests::{BrokerKind, Device, Fleet, package::known, wait};

const MODEL_BYTES: usize = 600_000;

/// A way of looking at an installation from outside.
type Look = fn(&Scene) -> bool;

/// When to kill: as soon as the state directory, the log or the process tree shows it, and so long after that.
struct Moment {
    name: &'static str,
    seen: Look,
    delay: Duration,
    /// What must not be there yet once the agent is dead, or the moment was over.
    not_yet: Look,
}

/// More often than this no moment is tried for.
const ATTEMPTS: usize = 25;

/// What can be seen of an installation from outside.
struct Scene<'a> {
    device: &'a Device,
    version: &'a str,
    log_before: usize,
    workers_before: usize,
}

impl<'a> Scene<'a> {
    /// `start`: length of the log and number of workers before the installation.
    fn of(device: &'a Device, version: &'a str, start: (usize, usize)) -> Self {
        Self {
            device,
            version,
            log_before: start.0,
            workers_before: start.1,
        }
    }

    fn path(&self, parts: &str) -> std::path::PathBuf {
        self.device.state_directory().join(parts)
    }

    fn logged(&self, words: &str) -> bool {
        let log = self.device.log();
        log.get(self.log_before..)
            .unwrap_or_default()
            .contains(words)
    }

    fn workers(&self) -> usize {
        workers(self.device.pid())
    }
}

/// Child processes of the agent: one worker for each loaded version.
fn workers(agent: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{agent}/task"));
    let children = tasks.into_iter().flatten().flatten().map(|task| {
        let list = std::fs::read_to_string(task.path().join("children"));
        list.unwrap_or_default().split_whitespace().count()
    });
    children.sum()
}

fn at_once(_: &Scene) -> bool {
    true
}

fn nothing(_: &Scene) -> bool {
    false
}

fn first_chunk(scene: &Scene) -> bool {
    scene.device.cached_chunks().0 > 0
}

fn half_of_the_chunks(scene: &Scene) -> bool {
    scene.device.cached_chunks().1 > MODEL_BYTES as u64 / 2
}

fn files_put_together(scene: &Scene) -> bool {
    let name = format!("incoming/digits-{}", scene.version);
    scene.path(&name).join("model.tflite").exists()
}

fn installed(scene: &Scene) -> bool {
    scene
        .path(&format!("versions/digits/{}", scene.version))
        .exists()
}

fn second_worker(scene: &Scene) -> bool {
    scene.workers() > scene.workers_before
}

fn pointer_written(scene: &Scene) -> bool {
    let directory = scene.path("active/digits");
    let names = |path: &Path| -> bool {
        std::fs::read_to_string(path).is_ok_and(|text| text.contains(scene.version))
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|e| e.path()).any(|path| names(&path))
}

fn said_active(scene: &Scene) -> bool {
    scene.logged("version active")
}

#[test]
#[allow(clippy::print_stdout)]
fn an_agent_killed_at_any_step_of_an_installation_serves_the_old_or_the_new_version() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    let relay = Relay::to(fleet.port());
    ward.use_broker_port(relay.port());
    ward.start();
    let push = |number: usize| {
        let package = fleet
            .package(SAMPLES[number % 2])
            .version(&format!("1.{number}.0"))
            .padded(MODEL_BYTES, number as u64);
        fleet.push(package.path(), "radiology").expect_success();
    };
    push(0);
    ward.wait_active("digits", "1.0.0");
    // A chunk takes about 30 ms to travel, so that the moments between can be hit.
    relay.limit(2_000_000);

    let moment = |name, seen: Look, milliseconds, not_yet: Look| Moment {
        name,
        seen,
        delay: Duration::from_millis(milliseconds),
        not_yet,
    };
    let moments = [
        moment("pushed", at_once, 0, installed),
        moment("pushed for a while", at_once, 30, said_active),
        moment("the first chunk", first_chunk, 0, installed),
        moment("half of the chunks", half_of_the_chunks, 0, installed),
        moment("files put together", files_put_together, 0, said_active),
        moment(
            "put together for a while",
            files_put_together,
            3,
            said_active,
        ),
        moment("installed", installed, 0, said_active),
        moment("installed for a while", installed, 5, said_active),
        moment("a second worker", second_worker, 0, said_active),
        moment("a second worker for a while", second_worker, 10, nothing),
        moment("a second worker for longer", second_worker, 30, nothing),
        moment("the pointer", pointer_written, 0, nothing),
        moment("the pointer for a while", pointer_written, 2, nothing),
        moment("active", said_active, 0, nothing),
        moment("active for a while", said_active, 10, nothing),
    ];
    let mut number = 0;
    for moment in &moments {
        // Some moments are short: on a busy machine one may be over before it is looked for.
        let hit = (0..ATTEMPTS).find(|_| {
            number += 1;
            kill_at(moment, number, &mut ward, &push)
        });
        let missed =
            hit.unwrap_or_else(|| panic!("{ATTEMPTS} times too late for: {}", moment.name));
        println!(
            "killed at: {} (too late {missed} times before)",
            moment.name
        );
    }
}

/// Versions with an even number are the second sample, the others the first: an answer shows which one gave it.
const SAMPLES: [&str; 2] = ["digits-1.0.0", "digits-2.0.0"];

/// Pushes version number `number`, kills the agent at the moment, and sees it recover. False: the moment was over.
fn kill_at(moment: &Moment, number: usize, ward: &mut Device, push: &impl Fn(usize)) -> bool {
    let version = format!("1.{number}.0");
    let before = format!("1.{}.0", number - 1);
    let start = (ward.log().len(), workers(ward.pid()));
    push(number);
    let pushed = Instant::now();
    let seen = loop {
        let scene = Scene::of(ward, &version, start);
        if (moment.seen)(&scene) {
            break true;
        }
        if said_active(&scene) {
            break false;
        }
        assert!(
            pushed.elapsed() < wait::PATIENCE,
            "{} of {version} never came:\n{}",
            moment.name,
            ward.log().get(start.0..).unwrap_or_default()
        );
    };
    std::thread::sleep(moment.delay);
    ward.kill();
    let hit = seen && !(moment.not_yet)(&Scene::of(ward, &version, start));

    ward.start();
    let context = moment.name;
    let mut client = ward.unix();
    let question = known(SAMPLES[0], 0);
    let answer = client.infer("digits", &question.request).expect("answer");
    let answer = answer.expect_ok().json();
    let said = answer["model_version"].as_str().unwrap_or_default();
    assert!(
        said == version || said == before,
        "{context}: {said} answered after {before} was to become {version}"
    );
    let answered = if said == version { number } else { number - 1 };
    if answered.is_multiple_of(2) {
        question.check(&answer).expect("the known answer");
    } else {
        // The other sample answers this very question differently.
        assert!(question.check(&answer).is_err(), "{context}: {answer}");
    }
    ward.wait_active("digits", &version);
    hit
}
