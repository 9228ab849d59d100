//! `make soak`: what the tests assert generously, held to the figures that a device promises.
//!
//! The release binary with its default configuration, on a machine that does nothing else. Prints what was
//! measured and fails when a figure is not reached.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use edgeward_tests::overload::{self, Overload};

fn main() {
    let (site, request) = overload::site();
    let time = Duration::from_secs(10);
    let driven = Overload::drive(&site.device.socket_path(), &request, 0.9, time);
    println!("overload: {driven}");
    let answered = driven.peak.count(200) as f64 / time.as_secs_f64();
    let answers_in_time = driven.peak.p99(200) <= Duration::from_millis(100);
    for (kept, promise) in [
        (
            driven.before.share(200) > 0.99,
            "at 1x nearly all are answered",
        ),
        (
            answers_in_time,
            "at 10x 99 of 100 that are answered are within 100 ms",
        ),
        (
            driven.peak.p99(429) <= Duration::from_millis(20),
            "at 10x the rest is told so at once",
        ),
        (
            answered > driven.capacity * 0.7,
            "at 10x the device does most of what it can",
        ),
        (
            driven.recovery <= Duration::from_secs(1),
            "a second later all are answered again",
        ),
    ] {
        println!("{} {promise}", if kept { "ok     " } else { "FAILED " });
        assert!(kept, "{promise}");
    }
}
