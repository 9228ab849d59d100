//! An operator's desk for tests: a home, the real `fleetctl`, its embedded broker, and devices that say what
//! a test wants them to say.

// Each test file uses its part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use edgeward_models::codec;
use edgeward_models::digest::Digest;
use edgeward_models::fleet::enrolment::EnrolmentBundle;
use edgeward_models::fleet::signed::{self, Purpose};
use edgeward_models::fleet::status::{
    ActiveVersion, AppliedGroup, FORMAT, ModelStatus, Online, Phase, Status,
};
use edgeward_models::fleet::topic::Topic;
use edgeward_models::name::Version;
use rcgen::{CertificateParams, KeyPair};
use rumqttc::Transport;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use tempfile::TempDir;

/// What a finished command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.out,
            self.err
        );
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in {}", self.out))
    }
}

pub struct Desk {
    pub directory: TempDir,
    pub port: u16,
    broker: Option<Child>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.stop_broker();
    }
}

impl Desk {
    /// A new fleet `hospital` whose broker does not run yet.
    pub fn new() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("address").port();
        let desk = Self {
            directory: tempfile::tempdir().expect("tempdir"),
            port,
            broker: None,
        };
        let broker = format!("localhost:{port}");
        desk.run(&[
            "init",
            "hospital",
            "--broker",
            &broker,
            "--broker-certificate",
            "localhost",
        ])
        .expect(0);
        desk
    }

    pub fn with_broker() -> Self {
        let mut desk = Self::new();
        desk.start_broker();
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    fn command(&self, home: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fleetctl"));
        command
            .arg("--home")
            .arg(home)
            .env("FLEETCTL_OPERATOR", "night shift")
            .env_remove("FLEETCTL_HOME")
            .env_remove("FLEETCTL_LOG")
            .env_remove("FLEETCTL_PASSPHRASE_FILE");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Said {
        self.run_in(&self.home(), arguments)
    }

    /// Runs fleetctl in another home.
    pub fn run_in(&self, home: &Path, arguments: &[&str]) -> Said {
        self.finish(self.command(home).args(arguments))
    }

    /// Runs fleetctl in a home whose keys' passphrase stands in this file.
    pub fn run_with_passphrase(&self, home: &Path, file: &Path, arguments: &[&str]) -> Said {
        let mut command = self.command(home);
        self.finish(
            command
                .env("FLEETCTL_PASSPHRASE_FILE", file)
                .args(arguments),
        )
    }

    fn finish(&self, command: &mut Command) -> Said {
        let Output {
            status,
            stdout,
            stderr,
        } = command
            .stdin(Stdio::null())
            .output()
            .expect("fleetctl runs");
        Said {
            code: status.code(),
            out: String::from_utf8(stdout).expect("UTF-8"),
            err: String::from_utf8(stderr).expect("UTF-8"),
        }
    }

    /// Starts a new and empty broker; returns when it says that it listens.
    pub fn start_broker(&mut self) {
        self.stop_broker();
        let mut child = self
            .command(&self.home())
            .args(["broker", "--listen", &format!("127.0.0.1:{}", self.port)])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the broker starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout"))
            .read_line(&mut line)
            .expect("read");
        assert!(
            line.contains(&format!("listening on 127.0.0.1:{}", self.port)),
            "{line:?}"
        );
        self.broker = Some(child);
    }

    /// Starts `fleetctl controller`; it ends when it is dropped.
    pub fn start_controller(&self) -> Controller {
        let mut command = self.command(&self.home());
        command.arg("controller").stderr(Stdio::null());
        Controller(command.spawn().expect("the controller starts"))
    }

    pub fn broker_id(&self) -> i32 {
        self.broker
            .as_ref()
            .expect("a broker")
            .id()
            .try_into()
            .expect("pid")
    }

    pub fn wait_for_broker(&mut self) -> Option<i32> {
        self.broker
            .take()
            .expect("a broker")
            .wait()
            .expect("wait")
            .code()
    }

    pub fn stop_broker(&mut self) {
        if let Some(mut broker) = self.broker.take() {
            broker.kill().expect("kill");
            broker.wait().expect("wait");
        }
    }

    /// Enrols a new device into a group.
    pub fn enroll(&self, id: &str, group: &str) -> Device {
        let key = KeyPair::generate().expect("key");
        let request = CertificateParams::default()
            .serialize_request(&key)
            .expect("request");
        let file = self.path(&format!("{id}.csr.pem"));
        std::fs::write(&file, request.pem().expect("pem")).expect("write");
        let said = self
            .run(&[
                "device",
                "enroll",
                text(&file),
                "--id",
                id,
                "--group",
                group,
            ])
            .expect(0);
        Device {
            bundle: serde_json::from_str(&said.out).expect("bundle"),
            key,
        }
    }
}

/// A running controller, which is killed at whatever moment.
pub struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A sample package of the repository.
pub fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../models/samples")
        .join(name)
}

/// A device that only speaks.
pub struct Device {
    pub bundle: EnrolmentBundle,
    pub key: KeyPair,
}

impl Device {
    /// A status about model `digits`.
    pub fn status(
        &self,
        sequence: u64,
        applied: u64,
        active: Option<u64>,
        target: u64,
        phase: Phase,
    ) -> Status {
        let version = |major| Version::new(major, 0, 0);
        Status {
            format: FORMAT,
            device: self.bundle.device.clone(),
            boot_id: "boot".to_owned(),
            sequence,
            at: jiff::Timestamp::now().as_second(),
            agent_version: "0.1.0".to_owned(),
            groups: vec![AppliedGroup {
                group: "radiology".parse().expect("name"),
                sequence: applied,
            }],
            models: vec![ModelStatus {
                model: "digits".parse().expect("name"),
                active: active.map(|major| ActiveVersion {
                    version: version(major),
                    release: major,
                    delegate: "xnnpack".parse().expect("name"),
                    delegated_nodes: 6,
                    total_nodes: 7,
                    refused_delegates: Vec::new(),
                }),
                previous: None,
                target: Some(version(target)),
                rollout: None,
                soak: None,
                phase,
                reason: (phase == Phase::Refused).then(|| "golden vector 0 differs".to_owned()),
                routing: None,
            }],
            timestamp_version: 1,
            stale: false,
            sandbox: "enforced".to_owned(),
            audit_length: 1,
            audit_head: Digest::of(b""),
            disk_free_bytes: 1 << 30,
            last_error: None,
            warnings: Vec::new(),
        }
    }

    /// The status as this device signs it.
    pub fn signed(&self, status: &Status) -> Vec<u8> {
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.key.serialize_der())
                .expect("key");
        let payload = codec::encode("status", status).expect("encode");
        let envelope = signed::seal(Purpose::Status, &self.bundle.device, payload, |bytes| {
            key.sign(&SystemRandom::new(), bytes)
                .map(|s| s.as_ref().to_vec())
        })
        .expect("sign");
        codec::encode("envelope", &envelope).expect("encode")
    }

    pub fn says(&self, status: &Status) {
        self.publishes(
            Topic::Status(self.bundle.device.clone()),
            self.signed(status),
        );
    }

    pub fn is_online(&self, online: bool) {
        let online = Online {
            online,
            reason: "as told".to_owned(),
            boot_id: "boot".to_owned(),
            session: 1,
        };
        let message = codec::encode("online", &online).expect("encode");
        self.publishes(Topic::Online(self.bundle.device.clone()), message);
    }

    pub fn publishes(&self, topic: Topic, message: Vec<u8>) {
        self.publishes_all(vec![(topic, message)]);
    }

    /// Publishes retained messages with this device's certificate, each with the broker's word.
    pub fn publishes_all(&self, messages: Vec<(Topic, Vec<u8>)>) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut options = MqttOptions::new(
            self.bundle.device.as_str(),
            &self.bundle.broker.host,
            self.bundle.broker.port,
        );
        options.set_transport(Transport::tls_with_config(
            rumqttc::TlsConfiguration::Rustls(Arc::new(self.tls())),
        ));
        options.set_max_packet_size(Some(1 << 20));
        let publish = async {
            let (client, mut events) = AsyncClient::new(options, 4);
            for (topic, message) in messages {
                let topic = topic.in_fleet(&self.bundle.fleet);
                client
                    .publish(topic, QoS::AtLeastOnce, true, message)
                    .await
                    .expect("publish");
                loop {
                    if let Event::Incoming(Packet::PubAck(ack)) =
                        events.poll().await.expect("connection")
                    {
                        assert!(matches!(
                            ack.reason,
                            PubAckReason::Success | PubAckReason::NoMatchingSubscribers
                        ));
                        break;
                    }
                }
            }
            client.disconnect().await.expect("disconnect");
            while events.poll().await.is_ok() {}
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(20), publish).await })
            .expect("the broker answers");
    }

    fn tls(&self) -> rustls::ClientConfig {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let certificate =
            |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("certificate");
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(certificate(&self.bundle.broker_ca))
            .expect("root");
        let key = PrivateKeyDer::from_pem_slice(self.key.serialize_pem().as_bytes()).expect("key");
        rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate(&self.bundle.certificate)], key)
            .expect("client certificate")
    }
}
