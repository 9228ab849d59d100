//! Other servers with the same models, questions and load generator, in the same run: `make bench-peers`.
//!
//! A real tritonserver (out of the wheel `nvidia-pytriton`, its Python backend around the interpreter) and what
//! a team writes by hand with FastAPI, both over plain HTTP on loopback, one interpreter with one thread each.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use edgeward_tests::binaries;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::client::Door;
use crate::question::Model;
use crate::system;

/// Importing everything takes its time on a cold disk.
const START_TIME: Duration = Duration::from_secs(120);

/// A model, its file, and the shape of its output.
pub type Served<'a> = (&'a Model, PathBuf, &'static [i32]);

/// A running server, ended when dropped.
pub struct Peer {
    pub name: &'static str,
    process: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Triton's model runs in a process of its own, which does not end with it.
        if let Some(group) = Pid::from_raw(self.process.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

impl Peer {
    /// `environment`: the Python environment that holds it.
    pub fn fastapi(environment: &Path, models: &[Served<'_>]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let mut command = Command::new(environment.join("bin/python"));
        command
            .arg(scripts().join("fastapi_server.py"))
            .arg(port.to_string());
        for (model, file, _) in models {
            command.arg(format!("{}={}", model.name, file.display()));
        }
        Self::started("FastAPI", command, port, directory)
    }

    pub fn triton(environment: &Path, models: &[Served<'_>]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let packages = environment.join("lib/python3.11/site-packages");
        let triton = packages.join("pytriton/tritonserver");
        let backend = directory.path().join("backends/python");
        fs::create_dir_all(&backend).expect("make a directory");
        for file in [
            "backends/python/libtriton_python.so",
            "backends/python/triton_python_backend_utils.py",
            "python_backend_stubs/3.11/triton_python_backend_stub",
        ] {
            let from = triton.join(file);
            let to = backend.join(from.file_name().expect("a name"));
            fs::copy(&from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        }
        let repository = directory.path().join("models");
        for (model, file, output) in models {
            let version = repository.join(model.name).join("1");
            fs::create_dir_all(&version).expect("make a directory");
            fs::copy(file, version.join("model.tflite")).expect("copy a model");
            fs::copy(scripts().join("triton_model.py"), version.join("model.py"))
                .expect("copy a script");
            let config = format!(
                "name: \"{}\"\nbackend: \"python\"\nmax_batch_size: 0\n\
                 input [ {{ name: \"{}\" data_type: TYPE_FP32 dims: {:?} }} ]\n\
                 output [ {{ name: \"output\" data_type: TYPE_FP32 dims: {output:?} }} ]\n\
                 instance_group [ {{ kind: KIND_CPU count: 1 }} ]\n",
                model.name, model.input, model.shape
            );
            fs::write(repository.join(model.name).join("config.pbtxt"), config)
                .expect("write a configuration");
        }
        let port = free_port();
        let mut command = Command::new(triton.join("bin/tritonserver"));
        command
            .arg(format!("--model-repository={}", repository.display()))
            .arg(format!(
                "--backend-directory={}",
                directory.path().join("backends").display()
            ))
            .arg("--http-address=127.0.0.1")
            .arg(format!("--http-port={port}"))
            .args(["--allow-grpc=false", "--allow-metrics=false"])
            .arg("--disable-auto-complete-config")
            .env("LD_LIBRARY_PATH", packages.join("nvidia_pytriton.libs"))
            .env("PYTHONPATH", &packages)
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", environment.join("bin").display()),
            );
        Self::started("Triton", command, port, directory)
    }

    fn started(
        name: &'static str,
        mut command: Command,
        port: u16,
        directory: tempfile::TempDir,
    ) -> Self {
        let log = directory.path().join("log");
        let output = fs::File::create(&log).expect("a log");
        let errors = output.try_clone().expect("a log");
        let process = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|e| panic!("start {name}: {e}"));
        let peer = Self {
            name,
            process,
            port,
            _directory: directory,
        };
        let begun = Instant::now();
        while !peer.ready() {
            assert!(
                begun.elapsed() < START_TIME,
                "{name} does not answer; it says: {}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        peer
    }

    fn ready(&self) -> bool {
        let request = b"GET /v2/health/ready HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let asked = self.door().connect().and_then(|mut c| c.ask(request));
        asked.is_ok()
    }

    pub fn door(&self) -> Door {
        Door::Plain(self.port)
    }

    /// Of all its processes.
    pub fn resident_bytes(&self) -> u64 {
        system::resident_bytes_of_all(self.process.id())
    }
}

fn scripts() -> PathBuf {
    binaries::root().join("tests/python/peers")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}
