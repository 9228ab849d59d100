//! A TCP relay between a device and its broker: it counts bytes, can be slow, and can be cut.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Passes connections on to a port of the loopback interface for as long as the test runs.
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Bytes from the broker to the device.
    down: AtomicU64,
    /// Bytes per second towards the device; 0: as fast as it goes.
    rate: AtomicU64,
}

impl Relay {
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a relay");
        let relay = Self {
            port: listener.local_addr().expect("address").port(),
            shared: Arc::default(),
        };
        let shared = relay.shared.clone();
        std::thread::spawn(move || {
            for device in listener.incoming().flatten() {
                // A broker that is away closes the device's connection at once, as its own port would.
                if let Ok(broker) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                    connect(device, broker, &shared);
                }
            }
        });
        relay
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes that have gone towards the device so far, TLS and all.
    pub fn bytes(&self) -> u64 {
        self.shared.down.load(Ordering::Relaxed)
    }

    pub fn limit(&self, bytes_per_second: u64) {
        self.shared.rate.store(bytes_per_second, Ordering::Relaxed);
    }
}

fn connect(device: TcpStream, broker: TcpStream, shared: &Arc<Shared>) {
    let _ = device.set_nodelay(true);
    let _ = broker.set_nodelay(true);
    let copy = |s: &TcpStream| s.try_clone().expect("duplicate a socket");
    let (from, to) = (copy(&device), copy(&broker));
    std::thread::spawn(move || pump(from, to, None));
    let shared = shared.clone();
    std::thread::spawn(move || pump(broker, device, Some(&shared)));
}

/// Copies until one side ends, then ends the other.
fn pump(mut from: TcpStream, mut to: TcpStream, shared: Option<&Shared>) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if let Some(shared) = shared {
            shared.down.fetch_add(length as u64, Ordering::Relaxed);
            let rate = shared.rate.load(Ordering::Relaxed);
            if rate > 0 {
                std::thread::sleep(Duration::from_secs_f64(length as f64 / rate as f64));
            }
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
