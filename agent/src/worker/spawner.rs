//! The one thread that starts worker processes.
//!
//! A worker asks the kernel to be killed with its parent, and the kernel means the *thread* that started
//! it: so that thread must live as long as the agent. Every [`super::Worker`] holds a handle; the thread
//! ends with the last of them.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use super::{WorkerError, turns};

/// Starts workers. Cheap to clone.
#[derive(Clone)]
pub struct Spawner {
    requests: mpsc::SyncSender<Request>,
}

struct Request {
    control: OwnedFd,
    reply: tokio::sync::oneshot::Sender<io::Result<Spawned>>,
}

/// A process that has just been started.
pub(super) struct Spawned {
    pub(super) child: Child,
    /// Its `/proc/PID/status`. Opened before it makes itself undumpable: from then on a service manager that hides
    /// other processes hides it from us as well.
    pub(super) status: Option<File>,
    /// Its `/proc/PID/smaps_rollup`, for the same reason.
    pub(super) maps: Option<File>,
}

/// Requests wait for milliseconds at most; more than a few at once come from a mistake.
const QUEUE: usize = 64;

impl Spawner {
    /// `program`: the binary that is re-executed with the private verb `worker`.
    pub fn new(program: PathBuf) -> Result<Self, WorkerError> {
        let (requests, queue) = mpsc::sync_channel::<Request>(QUEUE);
        std::thread::Builder::new()
            .name("worker-spawner".to_owned())
            .spawn(move || {
                // So do the processes: what is to be loaded makes way from its first instruction on.
                turns::give_way(0);
                for request in queue {
                    let child = spawn(&program, request.control);
                    // Whoever asked may have gone; then the worker sees its control socket close and ends.
                    let _ = request.reply.send(child);
                }
            })
            .map_err(|error| {
                WorkerError::Start(format!("the thread that starts workers: {error}"))
            })?;
        Ok(Self { requests })
    }

    /// Starts one process with `control` as its standard input.
    pub(super) async fn spawn(&self, control: OwnedFd) -> Result<Spawned, WorkerError> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let gone = || WorkerError::Start("the thread that starts workers has ended".to_owned());
        self.requests
            .try_send(Request { control, reply })
            .map_err(|_| gone())?;
        answer
            .await
            .map_err(|_| gone())?
            .map_err(|error| WorkerError::Start(format!("the process: {error}")))
    }
}

fn spawn(program: &PathBuf, control: OwnedFd) -> io::Result<Spawned> {
    // Nothing is inherited but these three: all descriptors of the agent close on exec, and what else the
    // worker needs comes over the control socket. No environment: vendor libraries read it.
    let child = Command::new(program)
        .arg0("edgeward")
        .arg("worker")
        .env_clear()
        .stdin(Stdio::from(control))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let open = |name: &str| File::open(format!("/proc/{}/{name}", child.id())).ok();
    let (status, maps) = (open("status"), open("smaps_rollup"));
    Ok(Spawned {
        child,
        status,
        maps,
    })
}
