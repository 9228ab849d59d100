//! `edgeward serve` as systemd meets it: start, readiness, watchdog, signals, exit status.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Far more than anything here takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A device's directory with a configuration, and the socket that stands for systemd.
struct Device {
    directory: tempfile::TempDir,
    systemd: UnixDatagram,
}

impl Device {
    fn new(more: &str) -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        let config = format!(
            "state_directory = {:?}\n[unix]\npath = {:?}\n{more}",
            at("state"),
            at("door")
        );
        std::fs::write(at("agent.toml"), config).expect("write");
        let systemd = UnixDatagram::bind(at("notify")).expect("bind");
        systemd.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self { directory, systemd }
    }

    fn door(&self) -> PathBuf {
        self.directory.path().join("door")
    }

    fn start(&self) -> Agent {
        let child = Command::new(env!("CARGO_BIN_EXE_edgeward"))
            .arg("--config")
            .arg(self.directory.path().join("agent.toml"))
            .arg("serve")
            .env("NOTIFY_SOCKET", self.directory.path().join("notify"))
            .env("WATCHDOG_USEC", "300000")
            .stderr(Stdio::piped())
            .spawn();
        Agent(Some(child.expect("start")))
    }

    /// The next thing that systemd is told.
    fn told(&self) -> String {
        let mut message = [0; 1000];
        let length = self.systemd.recv(&mut message).expect("a message in time");
        String::from_utf8_lossy(&message[..length])
            .trim()
            .to_owned()
    }
}

/// A running agent, ended with the test.
struct Agent(Option<Child>);

impl Agent {
    fn signal(&self, signal: Signal) {
        let pid = self.0.as_ref().expect("running").id();
        kill_process(Pid::from_raw(pid as i32).expect("pid"), signal).expect("kill");
    }

    fn finish(mut self) -> Output {
        let mut child = self.0.take().expect("running");
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().expect("wait").is_none() {
            assert!(Instant::now() < deadline, "the agent does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait_with_output().expect("output")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn ask(door: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(door).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn a_wrong_configuration_stops_the_start_with_status_1_and_shows_the_line() {
    let device = Device::new("[limits]\nmax_conections = 3\n");
    let output = device.start().finish();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("max_conections"), "{text}");
    assert!(text.contains("line 5"), "{text}");
    let device = Device::new("[log]\nfilter = \"edgeward=loudly\"\n");
    let output = device.start().finish();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("log.filter"), "{text}");
}

#[test]
fn systemd_is_told_when_the_doors_are_open_while_they_answer_and_when_they_close() {
    let device = Device::new("");
    let agent = device.start();
    assert_eq!(device.told(), "READY=1");
    let answer = ask(&device.door(), "/v2/health/live");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(device.told(), "WATCHDOG=1");
    // Not a reason to end.
    agent.signal(Signal::HUP);
    assert_eq!(device.told(), "WATCHDOG=1");
    agent.signal(Signal::TERM);
    while device.told() != "STOPPING=1" {}
    let output = agent.finish();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("SIGHUP: there is no TLS door"), "{text}");
    assert!(!device.door().exists(), "the socket is removed");
}

#[test]
fn a_hung_process_does_not_feed_the_watchdog() {
    let device = Device::new("");
    let agent = device.start();
    assert_eq!(device.told(), "READY=1");
    assert_eq!(device.told(), "WATCHDOG=1");
    agent.signal(Signal::STOP);
    let pause = Some(Duration::from_millis(600));
    device.systemd.set_read_timeout(pause).expect("timeout");
    // What was on its way when it stopped.
    let mut message = [0; 100];
    let _ = device.systemd.recv(&mut message);
    assert!(device.systemd.recv(&mut message).is_err());
    agent.signal(Signal::CONT);
    device
        .systemd
        .set_read_timeout(Some(PATIENCE))
        .expect("timeout");
    assert_eq!(device.told(), "WATCHDOG=1");
    agent.signal(Signal::INT);
    assert_eq!(agent.finish().status.code(), Some(0));
}
