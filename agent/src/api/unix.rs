//! The Unix socket: the one systemd passed, or one made here.
//!
//! A socket of our own is bound under a temporary name, given its mode and group, and only then renamed to
//! its path: nobody can connect while its permissions are not yet right, and a stale file of a dead agent
//! is replaced in one step. A path that a living agent listens on, or that is no socket, is never touched.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::peers::group_id;
use crate::config::UnixDoor;

/// The name of the socket unit, which is what systemd calls its descriptor.
const UNIT: &str = "edgeward.socket";
/// Connections that the kernel keeps for us while we are busy.
const BACKLOG: i32 = 1024;
/// `sockaddr_un` holds 108 bytes with the final zero; the temporary name needs four more than the path.
pub const MAX_PATH_BYTES: usize = 103;

/// A bound Unix socket.
pub struct Socket {
    pub listener: UnixListener,
    /// Ours to remove when the door closes: path, device and inode.
    pub file: Option<SocketFile>,
}

/// A socket file made by this process.
pub struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Removes the file, unless another agent has put its own there since.
    pub fn remove(self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// The socket to answer on.
pub fn bind(door: &UnixDoor) -> anyhow::Result<Socket> {
    if let Some(listener) = passed_by_systemd()? {
        listener.set_nonblocking(true)?;
        return Ok(Socket {
            listener,
            file: None,
        });
    }
    bind_path(door).with_context(|| format!("cannot listen on unix.path {}", door.path.display()))
}

/// The socket that systemd bound for us, if it did (sd_listen_fds(3)).
fn passed_by_systemd() -> anyhow::Result<Option<UnixListener>> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = listenfd::ListenFd::from_env();
    // Without names, the first one is meant; with names, ours only.
    let index = if names.is_empty() {
        0
    } else {
        match names.split(':').position(|name| name == UNIT) {
            Some(index) => index,
            None => return Ok(None),
        }
    };
    passed.take_unix_listener(index).context(
        "systemd passed a socket that is no listening Unix stream socket: check edgeward.socket",
    )
}

/// A mode such as `0660`.
pub fn parse_mode(text: &str) -> Option<u32> {
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = u32::from_str_radix(text, 8).ok()?;
    (octal && mode <= 0o777).then_some(mode)
}

fn bind_path(door: &UnixDoor) -> anyhow::Result<Socket> {
    let path = &door.path;
    if path.as_os_str().len() > MAX_PATH_BYTES {
        bail!(
            "the path is longer than the {MAX_PATH_BYTES} bytes that a socket's name may have here"
        );
    }
    let mode = parse_mode(&door.mode).with_context(|| {
        format!(
            "unix.mode {:?} is no octal mode such as \"0660\"",
            door.mode
        )
    })?;
    let group = door
        .group
        .as_deref()
        .map(group_id)
        .transpose()
        .context("unix.group")?;
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    refuse_unless_free(path)?;

    let mut temporary = path.clone().into_os_string();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", temporary.display()));
        }
        _ => {}
    }
    let socket = listening_socket(&temporary, mode, group).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })?;
    fs::rename(&temporary, path).context("cannot put the socket in its place")?;
    let file = fs::symlink_metadata(path)?;
    Ok(Socket {
        listener: UnixListener::from(socket),
        file: Some(SocketFile {
            path: path.clone(),
            identity: (file.dev(), file.ino()),
        }),
    })
}

/// What stands at the path must be nothing, or a socket that nobody listens on.
fn refuse_unless_free(path: &Path) -> anyhow::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("cannot look at the path"),
    };
    if !found.file_type().is_socket() {
        bail!("something that is not a socket stands there: move it away or choose another path");
    }
    // Without blocking, since a busy agent's backlog may be full: that, too, is a living one.
    let probe = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => {
            bail!("another process listens there: is an agent running already?")
        }
        Err(Errno::CONNREFUSED) => Ok(()),
        Err(error) => Err(error).context("cannot tell whether the socket there is in use"),
    }
}

/// A new socket that listens, without blocking, and that nobody could connect to before its mode was right.
pub fn listening_socket(path: &Path, mode: u32, group: Option<u32>) -> anyhow::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group))
            .with_context(|| format!("cannot give the socket to group {group} (unix.group)"))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    // Only from here on can anybody connect.
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn door(directory: &Path) -> UnixDoor {
        UnixDoor {
            path: directory.join("run/edgeward.sock"),
            ..UnixDoor::default()
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().expect("directory");
        let mut door = door(directory.path());
        door.mode = "0600".to_owned();
        let first = bind(&door).expect("first");
        let mode = fs::metadata(&door.path)
            .expect("socket")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = bind(&door).err().expect("in use");
        assert!(format!("{error:#}").contains("agent running"), "{error:#}");
        assert!(
            UnixStream::connect(&door.path).is_ok(),
            "the first one still listens"
        );

        // As after kill -9: the file stays, nobody listens.
        drop(first.listener);
        let second = bind(&door).expect("stale");
        assert!(UnixStream::connect(&door.path).is_ok());
        // The first agent's belated clean-up does not take the second one's socket away.
        first.file.expect("file").remove();
        assert!(UnixStream::connect(&door.path).is_ok());
        second.file.expect("file").remove();
        assert!(!door.path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let door = UnixDoor {
            path: directory.path().join("precious"),
            ..UnixDoor::default()
        };
        fs::write(&door.path, "data").expect("file");
        assert!(bind(&door).is_err());
        assert_eq!(fs::read(&door.path).expect("kept"), b"data");
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("0660"), Some(0o660));
        assert_eq!(parse_mode("600"), Some(0o600));
        for wrong in ["", "0o660", "0880", "-660", "+66", "rw", "4755", "00660"] {
            assert_eq!(parse_mode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_clearly() {
        let door = UnixDoor {
            path: format!("/tmp/{}", "x".repeat(120)).into(),
            ..UnixDoor::default()
        };
        let error = format!("{:#}", bind(&door).err().expect("long"));
        assert!(error.contains("longer than"), "{error}");
    }
}
