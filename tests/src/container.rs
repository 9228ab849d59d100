//! A Debian with a systemd of its own, booted in a container, with the agent installed as on a device: program,
//! library, units, users and directories in their places.
//!
//! It shares the kernel with this machine and no network: the device is offline for all its life. Its users have
//! real numbers (no user namespace), since the agent tells its callers by them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::cgroups::Cgroups;
use crate::process::{self, Finished, Process};
use crate::{binaries, wait};

/// Callers of the scenarios, beside those that the agent's own sysusers file makes.
const USERS: &str = "\
u app - \"listed, may ask\"
m app edgeward-clients
u other - \"may open the socket, is not listed\"
m other edgeward-clients
u stranger - \"may not open the socket\"
u admin - \"administers the agent\"
m admin edgeward-admin
";

/// Options of every container. `--keep-unit --register=no`: this machine need not run systemd itself. Of the
/// system calls that a device has, systemd-nspawn 252 lets through all that matter here but Landlock's.
const OPTIONS: &[&str] = &[
    "--quiet",
    "--register=no",
    "--keep-unit",
    "--private-network",
    "--link-journal=no",
    "--resolv-conf=off",
    "--timezone=off",
    "--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self",
];

/// A namespace of processes that ends with its first one: nothing in the container outlives the test.
const ENDING_TOGETHER: &[&str] = &["--pid", "--fork", "--kill-child", "--mount-proc"];

/// How systemd-nspawn ends where its container reboots: whoever started it starts it again.
const START_AGAIN: i32 = 133;

/// A container, which ends with the thread that booted it, and its files, which go with it.
pub struct Container {
    files: TempDir,
    lent: Vec<Lent>,
    nspawn: Option<Running>,
}

/// A device of the machine, by a node of the container's own: its owner and mode may change.
struct Lent {
    node: PathBuf,
    device: PathBuf,
}

/// Its systemd-nspawn. The groups go after the process.
struct Running {
    process: Process,
    _cgroups: Cgroups,
}

/// Why no container runs on this machine, if none does.
pub fn cannot_run() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("a container needs root".to_owned());
    }
    let Some(debian) = binaries::debian() else {
        return Some(
            "no Debian to boot in the target directory: run tests/setup.sh --tests".to_owned(),
        );
    };
    let cgroups = match Cgroups::new(&format!("probe-{}", std::process::id())) {
        Ok(cgroups) => cgroups,
        Err(problem) => return Some(problem.to_string()),
    };
    let mut command = cgroups.command("systemd-nspawn");
    command.args(OPTIONS).args(["--read-only", "--pipe"]);
    command.arg("--directory").arg(debian);
    let finished = process::run(command.arg("/bin/true"));
    let said = finished.stderr.trim().replace('\n', "; ");
    (finished.code != Some(0)).then(|| format!("systemd-nspawn does not work here: {said}"))
}

impl Container {
    /// The files of a device, not booted. The agent is installed and not enabled.
    pub fn new(configuration: &str) -> Self {
        let debian = binaries::debian().expect("a Debian to boot");
        let files = tempfile::Builder::new()
            .prefix("booted-")
            .tempdir_in(debian.parent().expect("a target directory"))
            .expect("a directory");
        let container = Self {
            files,
            lent: Vec::new(),
            nspawn: None,
        };
        // The system's own files are never written to, so links do; everything else is a copy.
        for entry in fs::read_dir(&debian).expect("read a directory") {
            let entry = entry.expect("read a directory");
            let how = if entry.file_name() == "usr" {
                "-al"
            } else {
                "-a"
            };
            let mut copy = Command::new("cp");
            copy.arg(how).arg(entry.path()).arg(container.root());
            process::run(&mut copy).expect_success();
        }
        fs::set_permissions(container.root(), fs::Permissions::from_mode(0o755)).expect("chmod");
        container.install(configuration);
        container
    }

    fn install(&self, configuration: &str) {
        let units = binaries::root().join("systemd");
        self.copy(&binaries::program("edgeward"), "usr/bin/edgeward", 0o755);
        let library = "usr/lib/edgeward/libtensorflowlite_c.so";
        self.copy(&binaries::tflite_library(), library, 0o644);
        for unit in ["edgeward.service", "edgeward.socket"] {
            self.copy(
                &units.join(unit),
                &format!("usr/lib/systemd/system/{unit}"),
                0o644,
            );
        }
        let (users, directories) = (
            units.join("edgeward.sysusers"),
            units.join("edgeward.tmpfiles"),
        );
        self.copy(&users, "usr/lib/sysusers.d/edgeward.conf", 0o644);
        self.copy(&directories, "usr/lib/tmpfiles.d/edgeward.conf", 0o644);
        self.write("usr/lib/sysusers.d/scenario.conf", USERS, 0o644);
        self.write("etc/edgeward/agent.toml", configuration, 0o644);
    }

    /// Its root directory, as this machine sees it.
    pub fn root(&self) -> &Path {
        self.files.path()
    }

    fn name(&self) -> String {
        let name = self.root().file_name().expect("a name");
        name.to_string_lossy().into_owned()
    }

    fn place(&self, name: &str, mode: u32, put: impl FnOnce(&Path)) {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("make a directory");
        put(&path);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    pub fn copy(&self, from: &Path, to: &str, mode: u32) {
        self.place(to, mode, |path| {
            fs::copy(from, path).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        });
    }

    pub fn write(&self, to: &str, text: &str, mode: u32) {
        self.place(to, mode, |path| fs::write(path, text).expect("write"));
    }

    /// Copies a directory, for everyone to read.
    pub fn copy_directory(&self, from: &Path, to: &str) {
        let target = self.root().join(to);
        process::run(Command::new("cp").arg("-r").arg(from).arg(&target)).expect_success();
        process::run(Command::new("chmod").args(["-R", "a+rX"]).arg(&target)).expect_success();
    }

    /// Lets a container that is not booted yet use a device of this machine.
    pub fn lend(&mut self, device: &Path) {
        let name = device.file_name().expect("a device's name");
        let node = self.root().join("srv/lent").join(name);
        fs::create_dir_all(node.parent().expect("a parent")).expect("make a directory");
        let mut copy = Command::new("cp");
        process::run(copy.arg("-a").arg(device).arg(&node)).expect_success();
        self.lent.push(Lent {
            node,
            device: device.to_owned(),
        });
    }

    /// Boots it and waits until its systemd has started everything.
    pub fn boot(&mut self) {
        let cgroups = Cgroups::new(&self.name()).expect("control groups");
        let mut command = cgroups.command("unshare");
        command
            .args(ENDING_TOGETHER)
            .args(["systemd-nspawn", "--boot"]);
        command.args(OPTIONS).arg("--directory").arg(self.root());
        for lent in &self.lent {
            let (node, device) = (lent.node.display(), lent.device.display());
            command.arg(format!("--bind={node}:{device}"));
        }
        let log = self.root().with_extension("console");
        self.nspawn = Some(Running {
            process: Process::start("the container", command, &log),
            _cgroups: cgroups,
        });
        wait::until("the container to boot", wait::PATIENCE, || {
            self.init().ok_or("no systemd in it")?;
            let finished = self.run("root", &["systemctl", "is-system-running"]);
            match finished.stdout.trim() {
                "running" => Ok(()),
                _ => Err(finished.to_string()),
            }
        });
    }

    /// Reboots it as its own root would.
    pub fn reboot(&mut self) {
        let ended = self.shut_down("reboot");
        assert_eq!(ended, Some(START_AGAIN));
        self.boot();
    }

    /// Shuts it down in order.
    pub fn power_off(&mut self) {
        assert_eq!(self.shut_down("poweroff"), Some(0));
    }

    fn shut_down(&mut self, how: &str) -> Option<i32> {
        self.root_runs(&["systemctl", how]);
        let mut nspawn = self.nspawn.take().expect("a booted container");
        let process = &mut nspawn.process;
        let status = wait::until("the container to shut down", wait::PATIENCE, || {
            process.ended().ok_or_else(|| process.log())
        });
        status.code()
    }

    /// Its first process, as this machine numbers it: the systemd below ours that is number 1 where it lives.
    fn init(&self) -> Option<u32> {
        let nspawn = self.nspawn.as_ref().expect("a booted container");
        let children = children(nspawn.process.pid());
        children.into_iter().flat_map(self::children).find(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|l| l.strip_prefix("NSpid:"));
            let first = numbers.is_some_and(|n| n.split_whitespace().last() == Some("1"));
            first && status.starts_with("Name:\tsystemd\n")
        })
    }

    /// Runs a command in it, as one of its users.
    pub fn run(&self, user: &str, words: &[&str]) -> Finished {
        let init = self.init().expect("a running container").to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &init]);
        // Its root as well: where these tests run in a chroot, that of its mount namespace is another one.
        command.args([
            "--root", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup",
        ]);
        command.args(["setpriv", "--reuid", user, "--regid", user, "--init-groups"]);
        command.env_clear().env("PATH", "/usr/bin:/usr/sbin");
        process::run(command.args(words))
    }

    /// Runs a command in it as root, which must succeed.
    pub fn root_runs(&self, words: &[&str]) -> String {
        self.run("root", words).expect_success()
    }

    /// A property of the agent's unit.
    pub fn property(&self, name: &str) -> String {
        let show = [
            "systemctl",
            "show",
            "edgeward.service",
            "--value",
            "-p",
            name,
        ];
        self.root_runs(&show).trim().to_owned()
    }

    /// Changes the agent's unit by a drop-in, which a next start obeys.
    pub fn drop_in(&self, text: &str) {
        let path = "etc/systemd/system/edgeward.service.d/scenario.conf";
        self.write(path, text, 0o644);
        self.root_runs(&["systemctl", "daemon-reload"]);
    }

    /// All that its units have logged, over all boots.
    pub fn journal(&self) -> String {
        let journal: PathBuf = self.root().join("var/log/journal");
        let mut command = Command::new("journalctl");
        command.args(["--quiet", "--no-pager", "--output=short-monotonic"]);
        process::run(command.arg("--directory").arg(journal)).stdout
    }
}

impl Drop for Container {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.journal();
            let lines: Vec<_> = journal.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!("---- the container's journal:\n{}", tail.join("\n"));
        }
        // Nothing in there is worth an orderly end.
        drop(self.nspawn.take());
        let _ = fs::remove_file(self.root().with_extension("console"));
        // An empty directory that systemd-nspawn leaves behind.
        let _ = fs::remove_dir(Path::new("/run/systemd/nspawn/propagate").join(self.name()));
    }
}

fn children(pid: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let listed = listed.unwrap_or_default();
    let pids = listed.split_whitespace().map(str::parse);
    pids.collect::<Result<_, _>>().expect("process ids")
}
