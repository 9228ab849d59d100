//! Keeps the device's cores from sleeping while requests follow each other closely.
//!
//! Waking a core that sleeps takes some ten microseconds, and a request needs it several times: with a small
//! model that is most of its time. While a descriptor of `/dev/cpu_dma_latency` holds 0, the kernel's idle
//! cores wait awake instead (PM QoS, `Documentation/power/pm_qos_interface.rst`) and any work goes first as
//! ever. It costs power, so it is asked for only while requests come in numbers, and given back a moment after
//! they stop. Where the device cannot be opened, requests only take longer.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub const DEVICE: &str = "/dev/cpu_dma_latency";

/// Requests are counted over this long.
const WINDOW: Duration = Duration::from_millis(10);
/// Requests in a window that are worth the power.
const MANY: u64 = 20;
/// A request that comes this soon after another one may be the first of many.
const CLOSE_MICROS: u64 = 1_000;

/// Latencies in microseconds that wakings may have, as the kernel reads them.
const NONE: i32 = 0;
/// The kernel's own default, which means any.
const ANY: i32 = 2_000_000_000;

/// Asks the kernel, request by request.
#[derive(Debug)]
pub struct Awake {
    device: File,
    start: Instant,
    /// Microseconds from `start` to the last request.
    last: AtomicU64,
    requests: AtomicU64,
    counting: AtomicBool,
}

impl Awake {
    pub fn open(device: &Path) -> io::Result<Arc<Self>> {
        let device = OpenOptions::new().write(true).open(device)?;
        let awake = Self {
            device,
            start: Instant::now(),
            last: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            counting: AtomicBool::new(false),
        };
        // Opened, the device counts as a wish for 0 until it is told another.
        awake.ask(ANY)?;
        Ok(Arc::new(awake))
    }

    /// A request came.
    pub fn note(self: &Arc<Self>, arrival: Instant) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let now = arrival.saturating_duration_since(self.start).as_micros() as u64;
        let before = self.last.swap(now, Ordering::Relaxed);
        if now.saturating_sub(before) < CLOSE_MICROS && !self.counting.swap(true, Ordering::Relaxed)
        {
            tokio::spawn(Arc::clone(self).count());
        }
    }

    /// Counts until a window holds few requests.
    async fn count(self: Arc<Self>) {
        let mut held = false;
        loop {
            self.requests.store(0, Ordering::Relaxed);
            tokio::time::sleep(WINDOW).await;
            let many = self.requests.load(Ordering::Relaxed) >= MANY;
            if many != held {
                held = many;
                if let Err(error) = self.ask(if many { NONE } else { ANY }) {
                    tracing::warn!(%error, "{DEVICE} does not take what it is told");
                }
            }
            if !many {
                break;
            }
        }
        self.counting.store(false, Ordering::Relaxed);
    }

    fn ask(&self, microseconds: i32) -> io::Result<()> {
        (&self.device).write_all(&microseconds.to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was asked for, oldest first.
    fn asked(file: &Path) -> Vec<i32> {
        let bytes = std::fs::read(file).expect("read");
        let (words, rest) = bytes.as_chunks();
        assert!(rest.is_empty());
        words.iter().map(|&word| i32::from_ne_bytes(word)).collect()
    }

    #[tokio::test]
    async fn cores_stay_awake_while_many_requests_come_and_no_longer() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let awake = Awake::open(file.path()).expect("open");
        let mut now = Instant::now();
        // One now and then, even two at once, are not worth anything.
        for pause in [50, 0, 50, 50] {
            now += Duration::from_millis(pause);
            awake.note(now);
        }
        tokio::time::sleep(3 * WINDOW).await;
        assert_eq!(asked(file.path()), [ANY]);
        let begun = Instant::now();
        while asked(file.path()) != [ANY, NONE] {
            assert!(begun.elapsed() < Duration::from_secs(30));
            for _ in 0..2 * MANY {
                now += Duration::from_micros(10);
                awake.note(now);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        while awake.counting.load(Ordering::Relaxed) {
            assert!(begun.elapsed() < Duration::from_secs(30));
            tokio::time::sleep(WINDOW).await;
        }
        assert_eq!(asked(file.path()), [ANY, NONE, ANY]);
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        assert!(Awake::open(Path::new("/nowhere/cpu_dma_latency")).is_err());
    }
}
