//! The socket that systemd passes, with the real program.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use crate::client::{Client, PATIENCE};
use crate::device::library;

/// Ends the program whatever the test does.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_socket_passed_by_systemd_is_answered_on_and_not_removed() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("passed.sock");
    let own = directory.path().join("own.sock");
    let listener = UnixListener::bind(&path).expect("listener");
    let config = directory.path().join("agent.toml");
    let text = format!(
        "state_directory = {:?}\n[unix]\npath = {own:?}\n[tflite]\nlibrary = {:?}\n",
        directory.path().join("state"),
        library(),
    );
    std::fs::write(&config, text).expect("configuration");
    // As systemd does it: the socket as descriptor 3, and the environment naming the process itself.
    let script = r#"LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=edgeward.socket exec "$0" serve --config "$1" 3<&0 </dev/null"#;
    let program = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_edgeward")])
        .arg(&config)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .expect("program");
    let mut program = Program(program);
    let mut client = Client::unix(&path).await;
    assert_eq!(client.get("/v2/health/live").await.status, 200);
    assert!(!own.exists(), "a second socket was made");
    drop(client);

    let pid = rustix::process::Pid::from_child(&program.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
    let ended = tokio::task::spawn_blocking(move || program.0.wait().map(|s| (s, program)));
    let (status, _program) = tokio::time::timeout(PATIENCE, ended)
        .await
        .expect("ends in time")
        .expect("joined")
        .expect("status");
    assert!(status.success(), "{status}");
    assert!(path.exists(), "systemd's socket was removed");
}
