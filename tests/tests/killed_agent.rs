//! kill -9 at every step of an installation: afterwards the device serves the version before or the new one,
//! answers right, and gets where it was going without help.

use std::path::Path;
use std::time::{Duration, Instant};

use edgeward_tests::relay::Relay;
use edgeward_tests::{BrokerKind, Device, Fleet, package::known, wait};

const MODEL_BYTES: usize = 600_000;

/// When to kill.
enum Moment {
    /// So long after the push returned.
    After(Duration),
    /// As soon as the state directory, the log or the process tree shows it, and so long after that.
    Seen(fn(&Scene) -> bool, Duration),
}

/// What can be seen of an installation from outside.
struct Scene<'a> {
    device: &'a Device,
    version: &'a str,
    log_before: usize,
    workers_before: usize,
}

impl Scene<'_> {
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
fn an_agent_killed_at_any_step_of_an_installation_serves_the_old_or_the_new_version() {
    let fleet = Fleet::with(BrokerKind::Mosquitto);
    let mut ward = fleet.device("ward-1", "radiology");
    let relay = Relay::to(fleet.port());
    ward.use_broker_port(relay.port());
    ward.start();
    // Even versions are the second sample, odd ones the first: an answer shows which one gave it.
    let samples = ["digits-1.0.0", "digits-2.0.0"];
    let push = |number: usize| {
        let package = fleet
            .package(samples[number % 2])
            .version(&format!("1.{number}.0"))
            .padded(MODEL_BYTES, number as u64);
        fleet.push(package.path(), "radiology").expect_success();
    };
    push(0);
    ward.wait_active("digits", "1.0.0");
    // A chunk takes about 30 ms to travel, so that the moments between can be hit.
    relay.limit(2_000_000);

    let ms = Duration::from_millis;
    let moments = [
        Moment::After(ms(0)),
        Moment::After(ms(30)),
        Moment::Seen(first_chunk, ms(0)),
        Moment::Seen(half_of_the_chunks, ms(0)),
        Moment::Seen(files_put_together, ms(0)),
        Moment::Seen(files_put_together, ms(3)),
        Moment::Seen(installed, ms(0)),
        Moment::Seen(installed, ms(5)),
        Moment::Seen(second_worker, ms(0)),
        Moment::Seen(second_worker, ms(10)),
        Moment::Seen(second_worker, ms(30)),
        Moment::Seen(pointer_written, ms(0)),
        Moment::Seen(pointer_written, ms(2)),
        Moment::Seen(said_active, ms(0)),
        Moment::Seen(said_active, ms(10)),
    ];
    // Some moments are short: on a busy machine one may be over before it is looked for.
    let mut missed = 0;
    for (index, moment) in moments.iter().enumerate() {
        let number = index + 1;
        let version = format!("1.{number}.0");
        let before = format!("1.{index}.0");
        let scene_start = (ward.log().len(), workers(ward.pid()));
        push(number);
        let pushed = Instant::now();
        match moment {
            Moment::After(delay) => std::thread::sleep(*delay),
            Moment::Seen(seen, delay) => {
                let scene = Scene {
                    device: &ward,
                    version: &version,
                    log_before: scene_start.0,
                    workers_before: scene_start.1,
                };
                while !seen(&scene) {
                    if said_active(&scene) {
                        missed += 1;
                        break;
                    }
                    assert!(
                        pushed.elapsed() < wait::PATIENCE,
                        "moment {index} of {version} never came:\n{}",
                        ward.log().get(scene_start.0..).unwrap_or_default()
                    );
                }
                std::thread::sleep(*delay);
            }
        }
        ward.kill();

        ward.start();
        let mut client = ward.unix();
        let question = known(samples[0], 0);
        let answer = client.infer("digits", &question.request).expect("answer");
        let answer = answer.expect_ok().json();
        let said = answer["model_version"].as_str().unwrap_or_default();
        assert!(
            said == version || said == before,
            "moment {index}: {said} answered after {before} was to become {version}"
        );
        let answered = if said == version { number } else { index };
        if answered.is_multiple_of(2) {
            question.check(&answer).expect("the known answer");
        } else {
            // The other sample answers this very question differently.
            assert!(question.check(&answer).is_err(), "moment {index}: {answer}");
        }
        ward.wait_active("digits", &version);
    }
    assert!(missed < moments.len() / 2, "{missed} moments were missed");
}
