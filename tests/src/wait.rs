//! Waiting for something with a deadline, and free ports: no scenario sleeps and hopes.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

/// Long enough for anything that works, on two busy cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `probe` until it says `Ok`; panics after `patience` with what it last said.
pub fn until<T>(what: &str, patience: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => {
                panic!("waited {patience:?} for {what}; at last: {last}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Holds for all of `time`: asserts that `probe` never says `Err` meanwhile.
pub fn stays<T>(what: &str, time: Duration, mut probe: impl FnMut() -> Result<T, String>) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if let Err(problem) = probe() {
            panic!("{what} did not last: {problem}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A TCP port of the loopback interface that nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("bind a free port")
        .port()
}
