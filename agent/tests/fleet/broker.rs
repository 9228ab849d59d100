//! A real mosquitto with TLS, client certificates and access control, and an operator who fills it.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use edgeward_agent::fleet::identity::{self, Identity, TrustedClock};
use edgeward_agent::fleet::mqtt::{Link, Presence, Settings};
use edgeward_models::Digest;
use edgeward_models::fleet::topic::Topic;
use edgeward_models::name::FileName;
use rustls::ClientConfig;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::site::{FLEET, Site};
use crate::wait;

/// Devices read the repository and write what is theirs; the operator does the rest.
const ACCESS: &str = "\
pattern read edgeward/v1/+/repo/#
pattern write edgeward/v1/+/device/%u/#
user operator
topic readwrite edgeward/v1/#
";

pub struct Broker {
    directory: TempDir,
    pub port: u16,
    process: Option<Child>,
}

impl Broker {
    pub async fn start(site: &Site) -> Self {
        let mut broker = Self {
            directory: tempfile::tempdir().expect("tempdir"),
            port: free_port(),
            process: None,
        };
        let (certificate, key) = site.authority.server();
        for (name, text) in [
            ("ca.pem", site.authority.pem.as_str()),
            ("certificate.pem", &certificate),
            ("key.pem", &key),
            ("access", ACCESS),
        ] {
            std::fs::write(broker.file(name), text).expect("write");
        }
        let configuration = format!(
            "user root\nlistener {} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\n\
             require_certificate true\nuse_identity_as_username true\nallow_anonymous false\n\
             acl_file {}\nset_tcp_nodelay true\npersistence false\nlog_dest stderr\n",
            broker.port,
            broker.file("ca.pem").display(),
            broker.file("certificate.pem").display(),
            broker.file("key.pem").display(),
            broker.file("access").display(),
        );
        std::fs::write(broker.file("mosquitto.conf"), configuration).expect("write");
        broker.restart().await;
        broker
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill");
            process.wait().expect("wait");
        }
    }

    /// A new and empty one on the same port.
    pub async fn restart(&mut self) {
        self.kill();
        // Debian keeps it where only root's PATH looks.
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"]
            .into_iter()
            .map(Path::new)
            .find(|path| path.is_file())
            .expect("mosquitto is not installed: run `make setup`");
        let process = Command::new(program)
            .arg("-c")
            .arg(self.file("mosquitto.conf"))
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto");
        self.process = Some(process);
        let port = self.port;
        wait::until("mosquitto to listen", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        })
        .await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    listener.local_addr().expect("address").port()
}

/// A link of its own for whoever has a certificate of this site.
pub struct Party {
    pub link: Link,
    stop: watch::Sender<bool>,
    running: tokio::task::JoinHandle<()>,
}

impl Party {
    pub async fn connect(site: &Site, name: &str, port: u16, max_packet_bytes: u32) -> Self {
        let party = Self::begin(site, name, port, max_packet_bytes);
        party.wait_session(1).await;
        party
    }

    /// Without waiting for a connection.
    pub fn begin(site: &Site, name: &str, port: u16, max_packet_bytes: u32) -> Self {
        let link = Link::new(Settings {
            host: "localhost".to_owned(),
            port,
            client_id: name.to_owned(),
            tls: tls(site, name),
            keep_alive: Duration::from_secs(5),
            max_packet_bytes,
            standing_topic: format!("edgeward/v1/{FLEET}/repo/metadata/timestamp.json"),
            presence_topic: format!("edgeward/v1/{FLEET}/device/{name}/online"),
            presence: Presence {
                born: Box::new(|session| format!("born {session}").into_bytes()),
                lost: Box::new(|session| format!("lost {session}").into_bytes()),
                stopped: Box::new(|session| format!("stopped {session}").into_bytes()),
            },
            leaving: Box::new(|_, _| Ok(())),
        });
        let (stop, stopping) = watch::channel(false);
        let running = tokio::spawn(link.clone().run(stopping));
        Self {
            link,
            stop,
            running,
        }
    }

    pub async fn operator(site: &Site, port: u16) -> Self {
        Self::connect(site, "operator", port, 1 << 20).await
    }

    pub async fn wait_session(&self, number: u64) {
        let sessions = self.link.sessions();
        wait::until("a session", || *sessions.borrow() >= number).await;
    }

    pub async fn stop(self) {
        self.stop.send(true).expect("running");
        self.running.await.expect("join");
    }

    /// As a process that is killed.
    pub fn abandon(self) {
        self.running.abort();
    }

    pub async fn put(&self, topic: &str, payload: Vec<u8>) {
        self.link.publish(topic, payload, true).await.expect(topic);
    }

    pub async fn put_chunk(&self, site: &Site, digest: &Digest) {
        let bytes = site.repository.chunk(digest).expect("chunk");
        let topic = Topic::Chunk(*digest).in_fleet(&FLEET.parse().expect("name"));
        self.put(&topic, bytes).await;
    }

    pub async fn remove_chunk(&self, digest: &Digest) {
        let topic = Topic::Chunk(*digest).in_fleet(&FLEET.parse().expect("name"));
        self.put(&topic, Vec::new()).await;
    }

    pub async fn put_metadata(&self, site: &Site, file: &FileName) {
        let packed = site.repository.packed_metadata(file).expect("metadata");
        let fleet = FLEET.parse().expect("name");
        for (digest, bytes) in packed.chunks {
            let topic = Topic::Chunk(digest).in_fleet(&fleet);
            self.put(&topic, bytes).await;
        }
        let topic = Topic::Metadata(file.clone()).in_fleet(&fleet);
        self.put(&topic, packed.head).await;
    }

    /// The whole repository, timestamp last.
    pub async fn publish(&self, site: &Site) {
        self.publish_without(site, &[]).await;
    }

    /// The repository but for some chunks.
    pub async fn publish_without(&self, site: &Site, missing: &[Digest]) {
        let everything = site.repository.everything().expect("everything");
        for digest in everything.chunks.iter().filter(|d| !missing.contains(d)) {
            self.put_chunk(site, digest).await;
        }
        for file in &everything.metadata {
            self.put_metadata(site, file).await;
        }
    }
}

fn tls(site: &Site, name: &str) -> Arc<ClientConfig> {
    let own = tempfile::tempdir().expect("tempdir");
    let request = identity::request(own.path(), name).expect("request");
    let root = site.repository.root().expect("root");
    let bundle = site.authority.enrol(&request, name, 1, &root);
    identity::store(own.path(), &bundle).expect("store");
    let identity = Identity::load(own.path()).expect("load").expect("identity");
    let clock = Arc::new(TrustedClock::new(identity.credentials.validity().begins));
    Arc::new(identity.tls(clock).expect("tls"))
}
