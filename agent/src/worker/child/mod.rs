//! The worker process: what `edgeward worker` runs.
//!
//! Order is the point of this file: limits, the TFLite library, the sandbox, and only then the model and any
//! plugin. Descriptors are the control socket (standard input) and what comes over it; everything else is
//! closed. The process ends when its parent's thread dies or the control socket closes, and always without
//! running exit handlers: vendors' libraries crash in theirs.
#![allow(unsafe_code)]

mod batch;
mod instance;
mod jobs;
mod load;
mod placement;
mod scout;
mod streams;
mod thread;

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use rustix::process::{DumpableBehavior, Signal};

use super::memory::Memory;
use super::queue::Taking;
use super::sandbox;
use super::socket;
use super::turns;
use super::wire::{self, FromWorker, Setup, ToWorker};
use crate::tflite::Library;

/// Exit statuses, for the agent's log only.
const ENDED: i32 = 0;
const NOT_STARTED_BY_AGENT: i32 = 2;
const FAILED: i32 = 3;

/// Of 1000: how much sooner than other processes the kernel ends a worker when memory runs out.
const OUT_OF_MEMORY_SCORE: &str = "500";

/// Runs the worker until its agent lets go of it. Standard input must be the control socket.
pub fn run() -> ! {
    // Nothing of the agent's is inherited, but whoever else starts us may have left something open.
    // SAFETY: this process has opened nothing yet that is not 0, 1 or 2.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    // SAFETY: descriptor 0 is open (every start gives one) and nobody else in this process owns it.
    let control = unsafe { OwnedFd::from_raw_fd(0) };
    let mut buffer = [0; 64];
    let Ok((length, descriptors)) = socket::receive(&control, &mut buffer) else {
        say("edgeward worker is started by the agent and by nothing else");
        leave(NOT_STARTED_BY_AGENT);
    };
    if length == 0 {
        leave(ENDED);
    }
    let Ok([document, parcels, model, slots, bell]) = <[OwnedFd; 5]>::try_from(descriptors) else {
        say("the set-up did not bring the descriptors it should");
        leave(NOT_STARTED_BY_AGENT);
    };
    let queue = Taking::new(bell);
    if let Err(reason) = serve(&control, document, model, slots, queue, parcels) {
        tell(&control, &reason);
        leave(FAILED);
    }
    leave(ENDED);
}

fn serve(
    control: &OwnedFd,
    document: OwnedFd,
    model: OwnedFd,
    slots: OwnedFd,
    queue: Taking,
    parcels: OwnedFd,
) -> Result<(), FromWorker> {
    let cannot_start = |reason: String| FromWorker::CannotStart { reason };
    let setup = read_setup(document).map_err(|e| cannot_start(format!("its set-up: {e}")))?;
    prepare_process(&setup).map_err(cannot_start)?;
    let length = setup.layout.total().unwrap_or(0);
    let memory =
        Memory::map(&slots, length).map_err(|e| cannot_start(format!("the shared memory: {e}")))?;
    drop(slots);
    let library = Library::open(&setup.library).map_err(|e| cannot_start(e.to_string()))?;
    let sandbox = sandbox::enter(&setup).map_err(cannot_start)?;
    tell(
        control,
        &FromWorker::Sandboxed {
            missing: sandbox.missing.clone(),
        },
    );
    let load::Loaded {
        model,
        instances,
        keeps_state,
    } = load::load(&library, model, &setup).map_err(|reason| FromWorker::Refused {
        reason: wire::cut(&reason).to_owned(),
    })?;
    let nodes = instances.first().map(instance::Instance::nodes);
    let (delegated_nodes, total_nodes) = nodes.map_or((0, 0), |n| (n.delegated, n.total));
    let shared = jobs::Shared::new(queue, parcels, memory, setup, model);
    let running = jobs::start(instances, shared)
        .map_err(|e| cannot_start(format!("its interpreter threads: {e}")))?;
    tell(
        control,
        &FromWorker::Ready {
            delegated_nodes,
            total_nodes,
            keeps_state,
        },
    );
    let mut buffer = vec![0; wire::MAX_CONTROL_BYTES];
    loop {
        let message = match socket::receive(control, &mut buffer) {
            // The agent has let go of us, or died.
            Ok((0, _)) | Err(_) => return Ok(()),
            Ok((length, _)) => serde_json::from_slice::<ToWorker>(&buffer[..length]),
        };
        match message {
            Ok(ToWorker::Seal) => {
                let answer = sandbox.seal().map_or_else(
                    |reason| FromWorker::CannotSeal { reason },
                    |()| FromWorker::Sealed,
                );
                tell(control, &answer);
            }
            Ok(ToWorker::Cancel(id)) => running.cancel(id),
            Ok(ToWorker::Interpreters(wanted)) => {
                if let Err(error) = running.resize(wanted) {
                    say(&format!("no further interpreter thread: {error}"));
                }
            }
            Err(_) => return Ok(()),
        }
    }
}

fn read_setup(document: OwnedFd) -> std::io::Result<Setup> {
    let mut bytes = Vec::new();
    File::from(document)
        .take(wire::MAX_SETUP_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() > wire::MAX_SETUP_BYTES {
        return Err(std::io::Error::other("it is too long"));
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// What the process owes its device before it does anything: to end with the agent, to be given up before it
/// when memory runs out, to leave no memory image on the disk, to stay within its limits.
fn prepare_process(setup: &Setup) -> Result<(), String> {
    // A name for `ps` and `top`: the program may have been started through a link.
    let _ = rustix::thread::set_name(c"edgeward-worker");
    // Until the model is loaded, nobody waits for this process.
    turns::give_way(0);
    // Raising this needs no right; a kernel without the file has no such choice to make.
    let _ = std::fs::write("/proc/self/oom_score_adj", OUT_OF_MEMORY_SCORE);
    // If the agent died before this line, the control socket says so soon enough.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| format!("the parent-death signal: {e}"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| format!("core dumps: {e}"))?;
    rustix::process::chdir(Path::new("/")).map_err(|e| format!("the root directory: {e}"))?;
    // One heap for all threads: a second one costs memory and saves nothing here.
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a parameter of malloc, before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
    sandbox::limit(setup)
}

/// Tells the agent something. If it cannot be told, it is gone, and the next receive ends us.
fn tell(control: &OwnedFd, message: &FromWorker) {
    if let Ok(bytes) = serde_json::to_vec(message) {
        let _ = socket::send(control, &bytes, &[]);
    }
}

#[allow(clippy::print_stderr)]
fn say(text: &str) {
    eprintln!("{text}");
}

/// Ends the process at once.
fn leave(status: i32) -> ! {
    // SAFETY: `_exit` takes any number and does not return.
    unsafe { libc::_exit(status) }
}
