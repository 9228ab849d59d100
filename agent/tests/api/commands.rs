//! `edgeward check-config` and `edgeward token` as a person runs them.

use std::process::{Command, Output};

use sha2::{Digest, Sha256};

use crate::device::library;

fn edgeward(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edgeward"))
        .args(arguments)
        .env_remove("EDGEWARD_CONFIG")
        .output()
        .expect("the program")
}

#[test]
fn check_config_tells_right_from_wrong_and_unreadable() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("agent.toml");
    let check = || edgeward(&["check-config", "--config", path.to_str().expect("path")]);

    let unreadable = check();
    assert_eq!(unreadable.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unreadable.stderr).contains("agent.toml"));

    std::fs::write(&path, format!("[tflite]\nlibrary = {:?}\n", library())).expect("write");
    let right = check();
    assert_eq!(right.status.code(), Some(0), "{right:?}");
    assert!(String::from_utf8_lossy(&right.stdout).contains("in order"));

    std::fs::write(&path, "[unix]\nmode = \"rw-rw----\"\nalow_users = []\n").expect("write");
    let wrong = check();
    assert_eq!(wrong.status.code(), Some(1));
    let text = String::from_utf8_lossy(&wrong.stdout).into_owned();
    for part in [
        "agent.toml:2:8:",
        "mode = \"rw-rw----\"",
        "agent.toml:3:1:",
        "alow_users",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_token_is_printed_once_and_its_digest_beside_it() {
    let output = edgeward(&["token", "pacs"]);
    assert_eq!(output.status.code(), Some(0));
    let token = String::from_utf8(output.stdout).expect("text");
    let token = token.strip_suffix('\n').expect("one line");
    assert_eq!(token.len(), 64);
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(!told.contains(token));
    assert!(told.contains(&hex::encode(Sha256::digest(token))));
    assert!(told.contains("name = \"pacs\""));
}
