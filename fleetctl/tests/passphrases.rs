//! Private keys behind a passphrase: what needs it, what does not, and what is never seen of it.

mod desk;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use desk::Desk;

const RIGHT: &str = "correct horse battery staple";

fn passphrase(desk: &Desk, name: &str, text: &str) -> PathBuf {
    let path = desk.path(name);
    fs::write(&path, format!("{text}\n")).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
    path
}

fn key(desk: &Desk, name: &str) -> String {
    fs::read_to_string(desk.home().join(name)).expect("a key")
}

#[test]
fn encrypted_keys_sign_with_their_passphrase_and_with_no_other() {
    let desk = Desk::new();
    let home = desk.home();
    let right = passphrase(&desk, "right", RIGHT);
    let wrong = passphrase(&desk, "wrong", "incorrect horse battery");
    let before = key(&desk, "keys/timestamp.pem");
    let said = desk
        .run_with_passphrase(&home, &right, &["key", "encrypt", "timestamp", "authority"])
        .expect(0);
    assert!(!format!("{}{}", said.out, said.err).contains("horse"));
    for file in ["keys/timestamp.pem", "ca/ca.key"] {
        let text = key(&desk, file);
        assert!(text.contains("ENCRYPTED PRIVATE KEY"), "{text}");
        let mode = fs::metadata(desk.home().join(file)).expect("metadata");
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    }
    // Which key it is can be told without.
    let list = desk.run(&["key", "list", "--json"]).expect(0).json();
    let roles = list["roles"].as_array().expect("roles");
    assert!(roles.iter().all(|role| role["here"] == true), "{list}");
    desk.run(&["doctor", "--offline"]).expect(0);
    // Nothing can be signed without, or with another one; and nothing is changed by trying.
    let refresh = ["refresh", "--offline"];
    let said = desk.run(&refresh).expect(2);
    assert!(
        said.err.contains("FLEETCTL_PASSPHRASE_FILE"),
        "{}",
        said.err
    );
    let said = desk.run_with_passphrase(&home, &wrong, &refresh).expect(2);
    assert!(
        said.err.contains("it is not the one in") && !said.err.contains("horse"),
        "{}",
        said.err
    );
    desk.run_with_passphrase(&home, &right, &refresh).expect(0);
    // A new key of the role is encrypted as the one before was.
    let rotate = ["key", "rotate", "timestamp", "--offline"];
    desk.run_with_passphrase(&home, &right, &rotate).expect(0);
    assert!(key(&desk, "keys/timestamp.pem").contains("ENCRYPTED"));
    let retired = fs::read_dir(desk.home().join("keys/retired")).expect("retired");
    for file in retired {
        let text = fs::read_to_string(file.expect("entry").path()).expect("read");
        assert!(text.contains("ENCRYPTED") && !text.contains(&before[55..85]));
    }
    desk.run_with_passphrase(&home, &right, &["key", "decrypt", "timestamp"])
        .expect(0);
    desk.run(&refresh).expect(0);
}

#[test]
fn a_fleet_made_with_encrypt_has_no_open_key_of_its_own() {
    let desk = Desk::new();
    let right = passphrase(&desk, "right", RIGHT);
    let home = desk.path("second");
    let init = ["init", "other", "--broker", "localhost:1", "--encrypt"];
    let init = [&init[..], &["--broker-certificate", "localhost"]].concat();
    desk.run_with_passphrase(&home, &right, &init).expect(0);
    let mut open = Vec::new();
    for directory in ["keys", "ca"] {
        for entry in fs::read_dir(home.join(directory)).expect("list") {
            let path = entry.expect("entry").path();
            if fs::read_to_string(&path)
                .expect("text")
                .contains("BEGIN PRIVATE KEY")
            {
                open.push(path.file_name().expect("name").to_owned());
            }
        }
    }
    // It can connect to the broker and sign nothing.
    assert_eq!(open, ["operator.key"]);
    let short = passphrase(&desk, "short", "secret");
    let third = desk.path("third");
    let said = desk.run_with_passphrase(&third, &short, &init).expect(2);
    assert!(said.err.contains("shorter than 12"), "{}", said.err);
}

/// Runs a command in a terminal of its own and types a line whenever it asks and the echo is off; what the terminal
/// showed goes to standard output.
const TYPIST: &str = r#"
import os, pty, sys, termios, time
line, command = sys.argv[1], sys.argv[2:]
child, terminal = pty.fork()
if child == 0:
    os.execv(command[0], command)
shown = b""
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:
        break
    if not part:
        break
    shown += part
    if part.rstrip().endswith(b":"):
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.01)
        os.write(terminal, line.encode() + b"\n")
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"#;

#[test]
fn a_passphrase_is_asked_on_the_terminal_and_not_shown() {
    let desk = Desk::new();
    let typed = |arguments: &[&str]| {
        let output = Command::new("python3")
            .args(["-c", TYPIST, RIGHT, env!("CARGO_BIN_EXE_fleetctl")])
            .arg("--home")
            .arg(desk.home())
            .args(arguments)
            .env_remove("FLEETCTL_PASSPHRASE_FILE")
            .output()
            .expect("python3 runs");
        let shown = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(!shown.contains("horse"), "{shown}");
        assert!(output.status.success(), "{shown}");
        shown
    };
    let shown = typed(&["key", "encrypt", "timestamp"]);
    assert!(shown.contains("the same again: "), "{shown}");
    let shown = typed(&["refresh", "--offline"]);
    assert!(shown.contains("timestamp.pem: "), "{shown}");
}
