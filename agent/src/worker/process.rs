//! A worker's process as the agent sees it: what it says on stderr, how it ended, and its end by force.
//!
//! One thread per worker reads stderr until the process has ended, whoever else may hold the other end of it
//! by then. Lines become log events with model and version; the last of them are kept, for they are often the
//! only reason a crash gives.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStderr, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open};
use tokio::sync::watch;

use super::spawner::Spawned;

/// Lines kept for the reason of a death.
const KEPT_LINES: usize = 20;
/// A longer line is cut.
const MAX_LINE_BYTES: usize = 512;
/// Lines logged per window; a chatty driver must not fill the device's log.
const LOGGED_LINES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(10);

/// How the process ended.
#[derive(Debug, Clone)]
pub struct Exit {
    /// `killed by signal 11 (SIGSEGV)`.
    pub words: String,
    pub stderr: String,
}

/// A running process. Clones are the same one.
#[derive(Clone)]
pub struct Process {
    pid: u32,
    /// Its `/proc/PID/status`.
    status: Option<Arc<File>>,
    /// Its `/proc/PID/smaps_rollup`.
    maps: Option<Arc<File>>,
    /// Some until it was reaped: before that its number cannot belong to another process.
    living: Arc<Mutex<Option<Pid>>>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Takes over a fresh child. `model` and `version` stand with its lines in the log.
    pub fn watch(spawned: Spawned, model: String, version: String) -> std::io::Result<Self> {
        let Spawned {
            mut child,
            status,
            maps,
        } = spawned;
        let pid = child.id();
        let living = Arc::new(Mutex::new(Pid::from_raw(pid as i32)));
        let (sender, exit) = watch::channel(None);
        let end = Pid::from_raw(pid as i32).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let end = match end {
            Some(Ok(end)) => end,
            unseen => {
                // Nobody would notice its death.
                let _ = child.kill();
                let _ = child.wait();
                return Err(unseen.and_then(Result::err).map_or_else(
                    || std::io::Error::other("the process has no number"),
                    Into::into,
                ));
            }
        };
        let stderr = child.stderr.take().map(|stderr| Words { stderr, end });
        let lives = Arc::clone(&living);
        std::thread::Builder::new()
            .name("worker-watch".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                let stderr = stderr.map_or_else(String::new, |s| capture(s, pid, &model, &version));
                let words = wait(&mut child, &lives);
                sender.send_replace(Some(Exit { words, stderr }));
            })?;
        Ok(Self {
            pid,
            status: status.map(Arc::new),
            maps: maps.map(Arc::new),
            living,
            exit,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// SIGKILL, if it still lives.
    pub fn kill(&self) {
        let living = self.living.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = *living {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }

    /// Resolves when the process has ended.
    pub async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        match ended.as_deref() {
            Ok(Some(exit)) => exit.clone(),
            // The watching thread has panicked.
            _ => Exit {
                words: "lost sight of its process".to_owned(),
                stderr: String::new(),
            },
        }
    }

    /// Resident bytes, 0 once it has ended.
    pub fn resident_bytes(&self) -> u64 {
        kibibytes(self.status.as_deref(), "VmRSS:").unwrap_or(0) * 1024
    }

    /// Its share of the pages that it has mapped (PSS), 0 once it has ended. Resident bytes where the kernel does not
    /// tell.
    pub fn memory_bytes(&self) -> u64 {
        match kibibytes(self.maps.as_deref(), "Pss:") {
            Some(kibibytes) => kibibytes * 1024,
            None => self.resident_bytes(),
        }
    }
}

/// One line of a file of the kernel's.
fn kibibytes(file: Option<&File>, name: &str) -> Option<u64> {
    let mut text = [0; 4096];
    let length = file?.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..length]).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Waits for the end, and reaps only while nobody can be about to signal the number.
fn wait(child: &mut Child, living: &Mutex<Option<Pid>>) -> String {
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(WaitId::Pid(pid), options)
        {
        }
    }
    let mut living = living.lock().unwrap_or_else(PoisonError::into_inner);
    let status = child.wait();
    *living = None;
    drop(living);
    status.map_or_else(|error| format!("ended in an unknown way: {error}"), words)
}

fn words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("killed by signal {signal}{}", signal_name(signal)),
        (None, Some(code)) => format!("exited with status {code}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGBUS => " (SIGBUS)",
        libc::SIGILL => " (SIGILL)",
        libc::SIGFPE => " (SIGFPE)",
        libc::SIGKILL => " (SIGKILL)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGSYS => " (SIGSYS)",
        libc::SIGXCPU => " (SIGXCPU)",
        libc::SIGTRAP => " (SIGTRAP)",
        _ => "",
    }
}

/// What a process writes on stderr, as long as it lives. The pipe itself may stay open longer: a worker that
/// was taken over can send its end to a socket of ours.
struct Words {
    stderr: ChildStderr,
    /// Readable once the process has ended.
    end: OwnedFd,
}

impl Read for Words {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (said, ended) = {
            let mut both = [
                PollFd::new(&self.stderr, PollFlags::IN),
                PollFd::new(&self.end, PollFlags::IN),
            ];
            poll(&mut both, None)?;
            (both[0].revents(), both[1].revents())
        };
        // What was said before the end is heard first.
        if ended.is_empty() || said.contains(PollFlags::IN) {
            return self.stderr.read(buffer);
        }
        Ok(0)
    }
}

/// Reads stderr until the process has ended, logging line by line; returns the last lines.
fn capture(stderr: Words, pid: u32, model: &str, version: &str) -> String {
    let mut lines = Lines::new(stderr);
    let mut kept = VecDeque::with_capacity(KEPT_LINES);
    let (mut window, mut logged, mut left_out) = (Instant::now(), 0, 0u64);
    while let Some(line) = lines.next_line() {
        if line.is_empty() {
            continue;
        }
        if window.elapsed() >= WINDOW {
            if left_out > 0 {
                tracing::warn!(%model, %version, pid, left_out, "worker wrote more lines than are logged");
            }
            (window, logged, left_out) = (Instant::now(), 0, 0);
        }
        if logged < LOGGED_LINES {
            logged += 1;
            if line.starts_with("INFO:") {
                tracing::debug!(%model, %version, pid, line, "worker says");
            } else {
                tracing::warn!(%model, %version, pid, line, "worker says");
            }
        } else {
            left_out += 1;
        }
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
    Vec::from(kept).join("\n")
}

/// Lines of bounded length without control characters, out of whatever bytes come.
struct Lines<R> {
    reader: BufReader<R>,
}

impl<R: Read> Lines<R> {
    fn new(reader: R) -> Self {
        Self {
            reader: BufReader::with_capacity(4096, reader),
        }
    }

    /// `None` at the end.
    fn next_line(&mut self) -> Option<String> {
        let mut line: Vec<u8> = Vec::new();
        let mut any = false;
        loop {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => &[],
            };
            if chunk.is_empty() {
                return any.then(|| printable(&line));
            }
            any = true;
            let end = chunk.iter().position(|&b| b == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            let room = MAX_LINE_BYTES.saturating_sub(line.len());
            line.extend_from_slice(&part[..part.len().min(room)]);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Some(printable(&line));
            }
        }
    }
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn spawned(child: Child) -> Spawned {
        let open = |name: &str| File::open(format!("/proc/{}/{name}", child.id())).ok();
        let (status, maps) = (open("status"), open("smaps_rollup"));
        Spawned {
            child,
            status,
            maps,
        }
    }

    #[test]
    fn endless_lines_and_control_bytes_become_short_printable_ones() {
        let mut bytes = b"one\x1b[31m\n".to_vec();
        bytes.extend_from_slice(&[b'x'; 10_000]);
        bytes.extend_from_slice(b"\n\xff\xfe\nlast");
        let mut lines = Lines::new(&bytes[..]);
        assert_eq!(lines.next_line().as_deref(), Some("one [31m"));
        assert_eq!(lines.next_line().map(|l| l.len()), Some(MAX_LINE_BYTES));
        assert_eq!(lines.next_line().as_deref(), Some("\u{fffd}\u{fffd}"));
        assert_eq!(lines.next_line().as_deref(), Some("last"));
        assert_eq!(lines.next_line(), None);
    }

    #[tokio::test]
    async fn a_death_is_noticed_though_another_process_holds_its_stderr_open() {
        let script = "sleep 30 >/dev/null & echo last >&2; kill -KILL $$";
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh");
        let process =
            Process::watch(spawned(child), "m".to_owned(), "1.0.0".to_owned()).expect("watch");
        let exit = tokio::time::timeout(Duration::from_secs(20), process.ended()).await;
        let exit = exit.expect("noticed before the other process ended");
        assert_eq!(exit.words, "killed by signal 9 (SIGKILL)");
        assert_eq!(exit.stderr, "last");
    }

    #[tokio::test]
    async fn the_signal_and_the_last_words_are_known() {
        let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22; \
                      do echo line $i >&2; done; kill -SEGV $$";
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh");
        let process =
            Process::watch(spawned(child), "m".to_owned(), "1.0.0".to_owned()).expect("watch");
        let exit = process.ended().await;
        assert_eq!(exit.words, "killed by signal 11 (SIGSEGV)");
        assert!(exit.stderr.starts_with("line 3\n") && exit.stderr.ends_with("line 22"));
        process.kill();
        assert_eq!((process.resident_bytes(), process.memory_bytes()), (0, 0));
    }
}
