//! The shipped units under a real systemd: who is answered, what the sandbox holds, what systemd mends.
//!
//! Each scenario boots a Debian of its own in a container. Where no container can run, they are counted as
//! ignored and the reason is printed.

use std::path::Path;
use std::time::{Duration, Instant};

use edgeward_models::Digest;
use edgeward_tests::device::{TOKEN, make_certificate};
use edgeward_tests::fleet::path;
use edgeward_tests::package::known;
use edgeward_tests::process::Finished;
use edgeward_tests::{Container, Fleet, container, wait};
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;

const MODEL: &str = "digits";
const INFER: &str = "http://localhost/v2/models/digits/infer";
const LATENCY: &str = "/dev/cpu_dma_latency";
const CREDENTIAL: &str = "/run/credentials/edgeward.service/edgeward-tls.key";

/// A caller's patience, in seconds.
const PATIENCE: &str = "40";

#[allow(clippy::print_stderr)]
fn main() {
    let arguments = Arguments::from_args();
    let obstacle = if arguments.list {
        None
    } else {
        container::cannot_run()
    };
    if let Some(obstacle) = &obstacle {
        eprintln!("SKIPPED: the units are not tried under a systemd of their own: {obstacle}");
    }
    let trial = |name: &str, scenario: fn()| {
        let run = move || {
            scenario();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(obstacle.is_some())
    };
    let trials = vec![
        trial(
            "the_unit_answers_whom_it_should_inside_a_whole_sandbox",
            the_unit_answers_whom_it_should_inside_a_whole_sandbox,
        ),
        trial(
            "systemd_brings_the_agent_back_and_a_reboot_offline_serves_on",
            systemd_brings_the_agent_back_and_a_reboot_offline_serves_on,
        ),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

/// A booted device that serves the sample, set up as the README says: enrolled by its root, enabled, and given
/// its version on a stick by a member of edgeward-admin.
struct Booted {
    container: Container,
    fleet: Fleet,
}

impl Booted {
    fn serving() -> Self {
        let fleet = Fleet::without_broker();
        let doors = fleet.directory();
        make_certificate(doors);
        let token = Digest::of(TOKEN.as_bytes());
        let mut container = Container::new(&format!(
            r#"admin_socket = "/run/edgeward/admin/admin.sock"
[unix]
allow_users = ["app"]
[tls]
listen = "127.0.0.1:8443"
certificate = "/etc/edgeward/door.pem"
private_key = "{CREDENTIAL}"
tokens = [{{ name = "tests", sha256 = "{token}" }}]
"#
        ));
        for place in ["etc/edgeward/door.pem", "srv/door.pem"] {
            container.copy(&doors.join("door.pem"), place, 0o644);
        }
        let key = "etc/credstore/edgeward-tls.key";
        container.copy(&doors.join("door-key.pem"), key, 0o600);
        let question = known("digits-1.0.0", 0).request.to_string();
        container.write("srv/question.json", &question, 0o644);
        if Path::new(LATENCY).exists() {
            container.lend(Path::new(LATENCY));
        }
        container.boot();
        let booted = Self { container, fleet };
        booted.enroll();
        let enable = ["systemctl", "enable", "--now", "edgeward.socket"];
        let container = &booted.container;
        container.root_runs(&[&enable[..], &["edgeward.service"]].concat());
        booted.fleet.push_sample("digits-1.0.0", "radiology");
        container.copy_directory(&booted.fleet.export("stick"), "srv/stick");
        container
            .run("admin", &["edgeward", "import", "/srv/stick"])
            .expect_success();
        booted
    }

    fn enroll(&self) {
        let edgeward = |what, file| {
            let words = ["edgeward", "enroll", what, file];
            self.container.root_runs(&words);
        };
        edgeward("--request", "/root/request.pem");
        let request = self.container.root().join("root/request.pem");
        let bundle = self.container.root().join("root/bundle.json");
        let device = ["device", "enroll", path(&request), "--id", "ct-1"];
        let rest = ["--group", "radiology", "--offline", "--out", path(&bundle)];
        let enroll = [&device[..], &rest[..]].concat();
        self.fleet.fleetctl(&enroll).expect_success();
        edgeward("--accept", "/root/bundle.json");
    }

    /// The sample's first golden vector, asked at the local socket. curl waits while systemd holds the caller.
    fn ask(&self, user: &str) -> Finished {
        let curl = ["curl", "--silent", "--show-error", "--max-time", PATIENCE];
        let socket = ["--unix-socket", "/run/edgeward/edgeward.sock"];
        let body = ["--json", "@/srv/question.json", "-w", "\n%{http_code}"];
        let words = [&curl[..], &socket, &body, &[INFER]].concat();
        self.container.run(user, &words)
    }

    fn answers(&self) -> Result<(), String> {
        let finished = self.ask("app");
        let (body, status) = finished.stdout.rsplit_once('\n').unwrap_or_default();
        if status != "200" {
            return Err(finished.to_string());
        }
        let answer: Value = serde_json::from_str(body).map_err(|e| e.to_string())?;
        known("digits-1.0.0", 0).check(&answer)
    }

    fn wait_answers(&self, after: &str) {
        let what = format!("an answer after {after}");
        wait::until(&what, wait::PATIENCE, || self.answers());
    }

    /// What a member of edgeward-admin reads.
    fn status(&self) -> Value {
        let status = self
            .container
            .run("admin", &["edgeward", "status", "--json"]);
        let text = status.expect_success();
        serde_json::from_str::<Value>(&text).expect("JSON")["status"].clone()
    }

    /// A field of /proc/PID/status, in the container's numbers.
    fn proc_status(&self, pid: &str, field: &str) -> String {
        let text = self
            .container
            .root_runs(&["cat", &format!("/proc/{pid}/status")]);
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(&format!("{field}:")));
        line.unwrap_or_else(|| panic!("no {field} in {text}"))
            .trim()
            .to_owned()
    }

    /// Sends a signal to the agent alone.
    fn signal(&self, signal: &str) {
        let kill = ["systemctl", "kill", "--kill-whom=main", "--signal", signal];
        self.container
            .root_runs(&[&kill[..], &["edgeward.service"]].concat());
    }

    fn main_pid(&self) -> String {
        self.container.property("MainPID")
    }
}

fn the_unit_answers_whom_it_should_inside_a_whole_sandbox() {
    let booted = Booted::serving();
    let container = &booted.container;

    // The door knows its callers: one who is listed, one who may open the socket and is not, one who may not.
    booted.answers().expect("the listed user is answered");
    let other = booted.ask("other").expect_success();
    assert!(
        other.contains("unix.allow_users") && other.ends_with("\n403"),
        "{other}"
    );
    let stranger = booted.ask("stranger");
    assert_eq!(stranger.code, Some(7), "could not connect: {stranger}");
    let status = ["edgeward", "status"];
    container.run("app", &status).expect_failure();
    container.run("stranger", &status).expect_failure();

    // The TLS door's key is one that only systemd could read.
    assert_eq!(container.property("User"), "edgeward");
    let door = "https://localhost:8443/v2/health/ready";
    let curl = ["curl", "--silent", "--show-error", "--fail", "--cacert"];
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let rest = ["/srv/door.pem", "-H", &bearer, door];
    let words = [&curl[..], &rest].concat();
    container.run("stranger", &words).expect_success();
    container.run("app", &["cat", CREDENTIAL]).expect_failure();

    container.root_runs(&["systemctl", "reload", "edgeward.service"]);
    wait::until("the key to be read again", wait::PATIENCE, || {
        let journal = container.journal();
        let read = journal.contains("certificates and key were read again");
        read.then_some(()).ok_or(journal)
    });

    // The sandbox, as the agent says and as the kernel says.
    assert_eq!(booted.status()["sandbox"], "enforced");
    let agent = booted.main_pid();
    let workers = container.root_runs(&["sh", "-c", &format!("cat /proc/{agent}/task/*/children")]);
    let workers: Vec<_> = workers.split_whitespace().collect();
    assert_eq!(workers.len(), 1, "{workers:?}");
    let edgeward = container.root_runs(&["id", "--user", "edgeward"]);
    for pid in [agent.as_str(), workers[0]] {
        let user = booted.proc_status(pid, "Uid");
        assert!(user.starts_with(edgeward.trim()), "{user}");
        assert_eq!(booted.proc_status(pid, "Seccomp"), "2");
        assert_eq!(booted.proc_status(pid, "NoNewPrivs"), "1");
        assert_eq!(booted.proc_status(pid, "CapEff"), "0000000000000000");
    }
    let filters = |pid: &str| -> u32 {
        let count = booted.proc_status(pid, "Seccomp_filters");
        count.parse().expect("a number")
    };
    // Its own on top of the unit's: what it may call, what is not there, and no more opening of files.
    assert_eq!(filters(workers[0]), filters(&agent) + 3);

    // What a worker holds is known though the unit hides other processes.
    let metrics = [
        "--unix-socket",
        "/run/edgeward/edgeward.sock",
        "http://localhost/metrics",
    ];
    let metrics = container.run(
        "app",
        &[&["curl", "--silent", "--fail"][..], &metrics].concat(),
    );
    let metrics = metrics.expect_success();
    let resident = metrics
        .lines()
        .find(|l| l.starts_with("edgeward_worker_resident_bytes{"));
    let resident = resident.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    assert!(resident.is_some_and(|bytes| bytes > 1 << 20), "{metrics}");

    keeps_cores_awake_where_the_administrator_allows_it(&booted);

    // Without Landlock no worker starts, and the status says so.
    container.drop_in("[Service]\nSystemCallFilter=~landlock_create_ruleset\n");
    container.root_runs(&["systemctl", "restart", "edgeward.service"]);
    wait::until("the missing sandbox to show", wait::PATIENCE, || {
        let status = booted.status().to_string();
        let shown = status.contains("Landlock is missing");
        shown.then_some(()).ok_or(status)
    });
    booted.answers().expect_err("nothing serves");
    container.drop_in("");
    container.root_runs(&["systemctl", "restart", "edgeward.service"]);
    booted.wait_answers("the filter is as shipped again");

    let journal = container.journal();
    let key = std::fs::read_to_string(booted.fleet.directory().join("door-key.pem"));
    let key = key.expect("the key");
    let secret = key.lines().nth(1).expect("a line of the key");
    assert!(journal.contains("edgeward"), "no journal");
    assert!(!journal.contains(TOKEN) && !journal.contains(secret));
}

/// The shipped drop-in, beside what the unit forbids: it opens one device to the agent and no other.
#[allow(clippy::print_stderr)]
fn keeps_cores_awake_where_the_administrator_allows_it(booted: &Booted) {
    if !Path::new(LATENCY).exists() {
        eprintln!("SKIPPED: this machine has no {LATENCY} to try the drop-in with");
        return;
    }
    let container = &booted.container;
    let held = || {
        let descriptors = format!("/proc/{}/fd", booted.main_pid());
        let listed = container.root_runs(&["ls", "-l", &descriptors]);
        listed.contains(LATENCY).then_some(()).ok_or(listed)
    };
    held().expect_err("the unit as it is hides devices");
    container.drop_in(include_str!("../../systemd/edgeward-awake.conf"));
    container.root_runs(&["systemctl", "restart", "edgeward.service"]);
    booted.wait_answers("a start with the drop-in");
    held().expect("the agent holds the device");
    assert_eq!(booted.status()["sandbox"], "enforced");
}

fn systemd_brings_the_agent_back_and_a_reboot_offline_serves_on() {
    let mut booted = Booted::serving();
    let container = &booted.container;
    assert_eq!(container.property("WatchdogUSec"), "30s");

    // kill -9: a caller in between waits at the socket and is answered by the next agent.
    let killed = booted.main_pid();
    booted.signal("KILL");
    booted.wait_answers("kill -9");
    assert_ne!(booted.main_pid(), killed);
    assert_eq!(container.property("NRestarts"), "1");

    // The shipped watchdog is slow for a test.
    container.drop_in("[Service]\nWatchdogSec=6\n");
    container.root_runs(&["systemctl", "restart", "edgeward.service"]);
    booted.wait_answers("a restart by hand");
    let fed = || container.property("WatchdogTimestampMonotonic");
    let (first, hung) = (fed(), booted.main_pid());
    wait::until("the watchdog to be fed twice", wait::PATIENCE, || {
        let now = fed();
        let twice = now != first;
        twice.then_some(now.clone()).ok_or(now)
    });
    assert_eq!(booted.main_pid(), hung, "fed, and not restarted");
    booted.signal("STOP");
    wait::until("systemd to restart what hangs", wait::PATIENCE, || {
        let now = booted.main_pid();
        (now != hung && now != "0").then_some(()).ok_or(now)
    });
    booted.wait_answers("a hang");
    let journal = container.journal();
    assert!(journal.contains("Watchdog timeout"), "{journal}");

    let stopping = Instant::now();
    container.root_runs(&["systemctl", "stop", "edgeward.socket", "edgeward.service"]);
    // TimeoutStopSec=30 would end in SIGKILL and another result.
    assert!(stopping.elapsed() < Duration::from_secs(30));
    assert_eq!(container.property("Result"), "success");
    assert_eq!(container.property("ExecMainStatus"), "0");
    assert!(booted.answers().is_err(), "nobody listens");

    booted.container.reboot();
    booted.wait_answers("a reboot without a network");
    assert_eq!(booted.status()["sandbox"], "enforced");
    assert_eq!(booted.status()["models"][0]["model"], MODEL);
    booted.container.power_off();
}
