//! One device: its configuration, its agent, its doors.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use edgeward_models::Digest;
use jiff::Timestamp;
use serde_json::Value;

use crate::http::Client;
use crate::isolated::Isolated;
use crate::package::known;
use crate::process::{self, Finished, Process, dying_with_us};
use crate::{binaries, plugin, wait};

/// The bearer token of every device's TLS door (of tests only).
pub const TOKEN: &str = "a-token-for-tests-that-nobody-guesses";

/// A device and, while it is switched on, its agent.
pub struct Device {
    id: String,
    directory: PathBuf,
    tls_port: u16,
    /// The TOML text of the configuration.
    configuration: String,
    agent: Option<Process>,
    /// Seconds by which its clock is wrong.
    clock_shift: i64,
    /// The network that its agent is in, if not everybody's.
    namespace: Option<String>,
}

impl Device {
    /// A device with both doors, not enrolled and not running. Its files lie below `parent`.
    pub fn new(id: &str, parent: &Path) -> Self {
        let directory = parent.join(id);
        std::fs::create_dir_all(&directory).expect("make a directory");
        let tls_port = wait::free_port();
        make_certificate(&directory);
        let shown = directory.display();
        let configuration = format!(
            r#"state_directory = "{shown}/state"

[unix]
path = "{shown}/sock"
mode = "0600"

[tls]
listen = "127.0.0.1:{tls_port}"
certificate = "{shown}/door.pem"
private_key = "{shown}/door-key.pem"
tokens = [{{ name = "tests", sha256 = "{token}" }}]

[tflite]
library = "{library}"

[fleet]
reconcile_seconds = 5

[log]
filter = "info,edgeward_agent=debug"
"#,
            token = Digest::of(TOKEN.as_bytes()),
            library = binaries::tflite_library().display(),
        );
        let device = Self {
            id: id.to_owned(),
            directory,
            tls_port,
            configuration,
            agent: None,
            clock_shift: 0,
            namespace: None,
        };
        device.write_configuration();
        device
    }

    /// A device with a copy of this one's state, below the same directory and not running: the same identity,
    /// so only one of the two may be connected.
    pub fn clone_as(&self, id: &str) -> Self {
        let twin = Self::new(id, self.directory.parent().expect("a parent"));
        twin.take_state(&self.state_directory());
        twin
    }

    /// Begins with a copy of this state.
    pub fn take_state(&self, state: &Path) {
        let mut copy = Command::new("cp");
        copy.arg("--archive").arg(state).arg(self.state_directory());
        process::run(&mut copy).expect_success();
    }

    /// Changes the configuration's text; the next start reads it. `from` must be in it.
    pub fn configure(&mut self, from: &str, to: &str) {
        assert!(
            self.configuration.contains(from),
            "no {from:?} in the configuration"
        );
        self.configuration = self.configuration.replace(from, to);
        self.write_configuration();
    }

    /// From its next start on it takes this moment for now.
    pub fn set_clock(&mut self, now: Timestamp) {
        self.clock_shift = now.as_second() - Timestamp::now().as_second();
    }

    /// From its next start on it knows what time it is.
    pub fn mend_clock(&mut self) {
        self.clock_shift = 0;
    }

    /// A command that has this device's clock.
    fn command(&self, mut command: Command) -> Command {
        if self.clock_shift != 0 {
            command.env("LD_PRELOAD", plugin::shifted_clock());
            command.env("CLOCK_SHIFT", self.clock_shift.to_string());
        }
        command
    }

    /// Connects to the broker through another port (a [`Relay`](crate::relay::Relay)).
    pub fn use_broker_port(&mut self, port: u16) {
        self.configure("[fleet]\n", &format!("[fleet]\nbroker_port = {port}\n"));
    }

    /// From its next start on its agent is in a network of its own.
    pub fn isolate(&mut self, isolated: &Isolated) {
        self.namespace = Some(isolated.path());
    }

    /// A device that is not told to connect to anything.
    pub fn without_fleet(&mut self) {
        self.configure("[fleet]\nreconcile_seconds = 5\n", "");
    }

    fn write_configuration(&self) {
        std::fs::write(self.config_path(), &self.configuration).expect("write a configuration");
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn config_path(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }

    pub fn state_directory(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// The authority of the TLS door's certificate.
    pub fn ca_path(&self) -> PathBuf {
        self.directory.join("door.pem")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// All that its agents have logged.
    pub fn log(&self) -> String {
        process::read_log(&self.log_path())
    }

    /// Runs a verb of `edgeward` to its end.
    pub fn edgeward(&self, arguments: &[&str]) -> Finished {
        let mut command = self.command(Command::new(binaries::program("edgeward")));
        command
            .arg("--config")
            .arg(self.config_path())
            .args(arguments);
        process::run(&mut command)
    }

    /// Switches the device on and waits until its Unix socket answers. Call it on the test's own thread: the
    /// agent ends with the thread that started it.
    pub fn start(&mut self) {
        self.spawn();
        let mut client = self.unix();
        let id = self.id.clone();
        let agent = self.agent.as_mut().expect("just started");
        wait::until(&format!("{id} to be live"), wait::PATIENCE, || {
            if let Some(status) = agent.ended() {
                panic!("the agent of {id} ended with {status}:\n{}", agent.log());
            }
            match client.get("/v2/health/live") {
                Ok(response) if response.status == 200 => Ok(()),
                Ok(response) => Err(format!("{}: {}", response.status, response.text())),
                Err(e) => Err(e.to_string()),
            }
        });
    }

    /// Switches the device on and waits for nothing.
    pub fn spawn(&mut self) {
        assert!(self.agent.is_none(), "{} is running already", self.id);
        let program = binaries::program("edgeward");
        let command = match &self.namespace {
            None => dying_with_us(&program),
            Some(namespace) => {
                let mut command = dying_with_us("/usr/bin/nsenter".as_ref());
                command.arg(format!("--net={namespace}")).arg(program);
                command
            }
        };
        let mut command = self.command(command);
        command.arg("--config").arg(self.config_path()).arg("serve");
        self.agent = Some(Process::start(&self.id, command, &self.log_path()));
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut agent = self.agent.take().expect("a running agent");
        agent.kill();
    }

    /// SIGTERM; panics unless the agent ends with success.
    pub fn stop(&mut self) {
        let mut agent = self.agent.take().expect("a running agent");
        let status = agent.stop(Duration::from_secs(20));
        assert!(status.success(), "{}: {status}\n{}", self.id, agent.log());
    }

    pub fn pid(&self) -> u32 {
        self.agent.as_ref().expect("a running agent").pid()
    }

    pub fn socket_path(&self) -> PathBuf {
        self.directory.join("sock")
    }

    /// A client of the Unix socket.
    pub fn unix(&self) -> Client {
        Client::unix(&self.socket_path())
    }

    /// Asks a sample's known question at the local socket and compares the answer.
    pub fn answers_as(&self, model: &str, sample: &str) -> Result<(), String> {
        let question = known(sample, 0);
        let answer = self.unix().infer(model, &question.request);
        question.check(&answer.map_err(|e| e.to_string())?.expect_ok().json())
    }

    /// A client of the TLS door, with the right token.
    pub fn tls(&self) -> Client {
        Client::tls(self.tls_port, &self.ca_path()).with_token(TOKEN)
    }

    /// What `edgeward status --json` says of the device.
    pub fn status(&self) -> Result<Value, String> {
        let finished = self.edgeward(&["status", "--json"]);
        if finished.code != Some(0) {
            return Err(finished.to_string());
        }
        let report: Value = serde_json::from_str(&finished.stdout)
            .map_err(|e| format!("{e} in {}", finished.stdout))?;
        Ok(report["status"].clone())
    }

    /// What `edgeward status` warns of.
    pub fn warnings(&self) -> Result<Vec<String>, String> {
        let status = self.status()?;
        let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
        let texts = warnings.iter().filter_map(|w| w.as_str());
        Ok(texts.map(str::to_owned).collect())
    }

    /// Waits until the warnings are what `expected` says.
    pub fn wait_warnings(&self, what: &str, expected: impl Fn(&[String]) -> bool) -> Vec<String> {
        wait::until(what, wait::PATIENCE, || {
            let warnings = self.warnings()?;
            match expected(&warnings) {
                true => Ok(warnings),
                false => Err(format!("{warnings:?}")),
            }
        })
    }

    /// Number and bytes (as they travelled) of the chunks that wait for their version to be whole.
    pub fn cached_chunks(&self) -> (usize, u64) {
        let entries = std::fs::read_dir(self.state_directory().join("chunks"));
        let lengths = entries.into_iter().flatten().flatten().filter_map(|entry| {
            let whole = entry.path().extension().is_none();
            whole.then(|| entry.metadata().map_or(0, |m| m.len()))
        });
        lengths.fold((0, 0), |(count, bytes), length| (count + 1, bytes + length))
    }

    /// What the status says of one model; JSON null when it says nothing.
    pub fn model_status(&self, model: &str) -> Result<Value, String> {
        let status = self.status()?;
        let models = status["models"].as_array().cloned().unwrap_or_default();
        let found = models.into_iter().find(|m| m["model"] == model);
        Ok(found.unwrap_or(Value::Null))
    }

    /// The active version of a model, if any.
    pub fn active(&self, model: &str) -> Result<Option<String>, String> {
        let status = self.model_status(model)?;
        Ok(status["active"]["version"].as_str().map(str::to_owned))
    }

    /// Waits until `version` is active and the device wants nothing else.
    pub fn wait_active(&self, model: &str, version: &str) {
        let what = format!("{model} {version} to be active on {}", self.id);
        wait::until(&what, wait::PATIENCE, || {
            let status = self.model_status(model)?;
            if status["active"]["version"] == version && status["phase"] == "active" {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
    }

    /// Waits until the device has refused something with all of `words`; returns where it said so.
    pub fn wait_refusal(&self, model: &str, words: &[&str]) -> String {
        let what = format!("{} to refuse with {words:?}", self.id);
        wait::until(&what, wait::PATIENCE, || {
            let status = self.status()?;
            let model = self.model_status(model)?;
            let texts = [&status["last_error"], &model["reason"]];
            let said = texts.iter().filter_map(|t| t.as_str());
            said.map(str::to_owned)
                .find(|text| words.iter().all(|word| text.contains(word)))
                .ok_or_else(|| format!("{status}"))
        })
    }
}

/// A self-signed certificate for the TLS door, which is its own authority.
pub fn make_certificate(directory: &Path) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("make a certificate");
    std::fs::write(directory.join("door.pem"), made.cert.pem()).expect("write a certificate");
    std::fs::write(
        directory.join("door-key.pem"),
        made.signing_key.serialize_pem(),
    )
    .expect("write a key");
}
