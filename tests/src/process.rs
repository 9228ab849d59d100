//! Child processes that end with the test, and whose output is shown when it fails.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A long-running program with its output in a log file (appended to by every start).
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// What a program that ran to its end said.
#[derive(Debug)]
pub struct Finished {
    pub command: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Panics unless the program succeeded; returns its standard output.
    pub fn expect_success(self) -> String {
        assert_eq!(self.code, Some(0), "{self}");
        self.stdout
    }

    /// Panics if the program succeeded; returns all it said.
    pub fn expect_failure(self) -> String {
        assert_ne!(self.code, Some(0), "{self}");
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {:?}\nstdout: {}\nstderr: {}",
            self.command, self.code, self.stdout, self.stderr
        )
    }
}

/// `program` wrapped so that it dies when the thread that starts it does, even if that is killed.
pub fn dying_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig").arg("KILL").arg(program);
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Finished {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot run `{shown}`: {e}"));
    Finished {
        command: shown,
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|w| w.to_string_lossy()).collect();
    words.join(" ")
}

impl Process {
    /// Starts `command` (made by [`dying_with_us`]) on this thread, with which it will end.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap_or_else(|e| panic!("cannot open {}: {e}", log.display()));
        let shown = shown(&command);
        writeln!(file, "---- start: {shown}").expect("write to a log");
        let same: File = file.try_clone().expect("duplicate a descriptor");
        let child = command
            .stdout(file)
            .stderr(same)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start `{shown}`: {e}"));
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a child")
    }

    /// All output so far, of earlier starts too.
    pub fn log(&self) -> String {
        read_log(&self.log)
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        kill_process(Pid::from_child(&self.child), Signal::HUP).expect("send SIGHUP");
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("wait for a killed child");
    }

    /// SIGTERM, then waits; panics when it does not end in time.
    pub fn stop(&mut self, patience: Duration) -> ExitStatus {
        let pid = Pid::from_child(&self.child);
        if self.ended().is_none() {
            kill_process(pid, Signal::TERM).expect("send SIGTERM");
        }
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} did not end within {patience:?} of SIGTERM",
                self.name
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A log file's text.
pub fn read_log(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Drop for Process {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(80)..];
            eprintln!(
                "---- {} (last {} of {} lines of {}):\n{}",
                self.name,
                tail.len(),
                lines.len(),
                self.log.display(),
                tail.join("\n")
            );
        }
    }
}
