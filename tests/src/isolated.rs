//! A network namespace of its own for one agent: whatever it sends anywhere crosses one interface, and is recorded.
//!
//! The namespace has a loopback interface and a default route into it, so a packet to any address shows. What must
//! reach the agent (its broker, its clients) has a socket inside, made by [`Isolated::inside`].

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{self, Process, dying_with_us};

/// ETH_P_ALL, in network byte order: both directions.
const EVERY_PROTOCOL: u32 = 0x0003_u16.to_be() as u32;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where somebody wanted to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    pub address: IpAddr,
    /// 0 for what has no ports.
    pub port: u16,
}

/// The namespace, for as long as it is kept.
pub struct Isolated {
    holder: Process,
    begun: Arc<Mutex<BTreeSet<Destination>>>,
}

impl Isolated {
    /// `None` where this machine does not let us make one.
    pub fn new(directory: &std::path::Path) -> Option<Self> {
        let mut holder = dying_with_us("/usr/bin/unshare".as_ref());
        holder.args(["--net", "sleep", "infinity"]);
        let mut holder = Process::start("namespace", holder, &directory.join("namespace.log"));
        std::thread::sleep(Duration::from_millis(300));
        if holder.ended().is_some() {
            return None;
        }
        let isolated = Self {
            holder,
            begun: Arc::default(),
        };
        for words in ["link set lo up", "route add default dev lo"] {
            let mut ip = isolated.command("/usr/sbin/ip");
            process::run(ip.args(words.split(' '))).expect_success();
        }
        let begun = isolated.begun.clone();
        let packets = isolated.inside(|| {
            let kind = SocketType::DGRAM;
            let protocol = Protocol::from_raw(EVERY_PROTOCOL.try_into().expect("a number"));
            let flags = SocketFlags::CLOEXEC;
            socket_with(AddressFamily::PACKET, kind, flags, Some(protocol))
                .expect("a packet socket")
        });
        let _ = sockopt::set_socket_recv_buffer_size(&packets, 8 << 20);
        std::thread::spawn(move || {
            let mut packet = [0; 96];
            while let Ok((length, _)) = recv(&packets, &mut packet[..], RecvFlags::empty()) {
                if let Some(destination) = begins(&packet[..length.min(packet.len())]) {
                    begun.lock().expect("no panic").insert(destination);
                }
            }
        });
        Some(isolated)
    }

    /// A command that runs in it, with the same process id.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.pid())
    }

    /// Does something on a thread that is in it: sockets made there belong to it.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("a namespace");
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind).expect("enter a namespace");
                work()
            });
            worker.join().expect("no panic")
        })
    }

    /// Where connections were begun to, and whatever else than TCP was sent to.
    pub fn destinations(&self) -> BTreeSet<Destination> {
        self.begun.lock().expect("no panic").clone()
    }
}

/// The destination of a packet that begins a connection, or that belongs to none.
fn begins(packet: &[u8]) -> Option<Destination> {
    let version = packet.first()? >> 4;
    let (protocol, address, payload) = match version {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (
                packet[9],
                IpAddr::V4(Ipv4Addr::from(address)),
                packet.get(header..)?,
            )
        }
        6 => {
            let address: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (packet[6], IpAddr::from(address), packet.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| {
        Some(u16::from_be_bytes(
            payload.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let (syn, ack) = (0x02, 0x10);
    match protocol {
        TCP if payload.get(13)? & (syn | ack) != syn => None,
        TCP | UDP => Some(Destination {
            address,
            port: port(2)?,
        }),
        // The kernel's own neighbour discovery and the like, and whatever else there may be.
        _ => Some(Destination { address, port: 0 }),
    }
}
