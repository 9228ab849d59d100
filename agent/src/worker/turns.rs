//! Work that nobody waits for makes way for requests.
//!
//! A request is a chain of short turns of several threads. By default the kernel lets a thread that computes
//! finish its slice, some milliseconds, although a thread of a request has become ready on its core: that is
//! what callers of one model feel while another is loaded. A thread that asks for long slices is interrupted at
//! once by threads with ordinary ones and loses nothing on an idle machine. Linux does so from 6.12 on and
//! ignores the wish before; a lower priority works everywhere, but no unprivileged thread gets back from it.
#![allow(unsafe_code)]

use std::time::Duration;

/// How much nicer than normal work is that may take ten times as long on a busy device.
pub const NICENESS: i32 = 10;

/// The longest that the kernel grants.
const LONG_SLICE: Duration = Duration::from_millis(100);

/// From now on the calling thread, and those that it starts, make way.
pub fn give_way(niceness: i32) {
    set(niceness, LONG_SLICE);
}

/// From now on the calling thread takes its turns like any other.
pub fn take_turns() {
    set(0, Duration::ZERO);
}

/// If it fails, all share the cores evenly: no reason to refuse anything.
fn set(least_niceness: i32, slice: Duration) {
    // Whoever started us may have made us nicer already.
    let niceness = rustix::process::getpriority_process(None).unwrap_or(0);
    let wish = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: niceness.max(least_niceness),
        sched_priority: 0,
        // For a policy without deadlines this is the slice; 0 stands for the ordinary one.
        sched_runtime: slice.as_nanos() as u64,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of a structure that lives until the call returns; 0 is the calling
    // thread.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wish, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn niceness() -> i32 {
        rustix::process::getpriority_process(None).expect("priority")
    }

    #[test]
    fn a_thread_makes_way_and_what_it_starts_does_too() {
        let before = niceness();
        std::thread::spawn(|| {
            give_way(0);
            assert_eq!(niceness(), 0);
            give_way(NICENESS);
            assert_eq!(niceness(), NICENESS);
            let started = std::thread::spawn(niceness).join().expect("thread");
            assert_eq!(started, NICENESS);
        })
        .join()
        .expect("thread");
        assert_eq!(niceness(), before, "other threads keep theirs");
    }
}
