//! `fleetctl broker`: an embedded MQTT broker for trials, tests and demonstrations.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings, TlsConfig};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::broker_config::{BROKER_FILES, certify_broker};
use crate::home::Home;
use crate::printer::Printer;

/// Run an MQTT broker in the foreground, for trials and tests
///
/// It listens with TLS only and takes only clients with a certificate of the fleet's authority. It keeps
/// everything in memory: after a restart, run `fleetctl sync`. It has no access list, so every enrolled
/// device can write every topic; nothing false is believed, but one device can waste the others' time. For a
/// fleet in earnest use mosquitto, EMQX, HiveMQ or AWS IoT Core (see `fleetctl init --broker-certificate`).
///
/// It ends on SIGTERM or SIGINT.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  fleetctl broker --listen 127.0.0.1:8883
  fleetctl broker --certificate broker.example.org,192.0.2.7")]
pub struct Args {
    /// Where to listen for MQTT 5; absent: every address, the port of the fleet's broker
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Also listen for MQTT 3.1.1, on a port of its own
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen_v4: Option<SocketAddr>,
    /// Certify a broker under these names and addresses, write a configuration for mosquitto, and end
    #[arg(long, value_name = "HOST", value_delimiter = ',', conflicts_with_all = ["listen", "listen_v4"])]
    certificate: Vec<String>,
}

/// The largest payload: a status of a hundred models, with room.
const MAX_PAYLOAD_BYTES: usize = 512 * 1024;
/// How long a listener may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(5);

impl Args {
    pub async fn run(self, home: &Path, printer: &Printer) -> Result<ExitCode> {
        let home = Home::open(home)?;
        if !self.certificate.is_empty() {
            certify_broker(&home, &home.authority()?, &self.certificate, printer)?;
            return Ok(ExitCode::SUCCESS);
        }
        let directory = home.broker_directory();
        let certificate = directory.join(BROKER_FILES[0]);
        let key = directory.join(BROKER_FILES[1]);
        if !certificate.exists() || !key.exists() {
            bail!(
                "the broker has no certificate; make one with `fleetctl broker --certificate {},localhost,127.0.0.1`",
                home.broker().host
            );
        }
        let tls = TlsConfig::Rustls {
            capath: Some(text(&home.ca_certificate_path())?),
            certpath: text(&certificate)?,
            keypath: text(&key)?,
        };
        let v5 = free(
            self.listen
                .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], home.broker().port))),
        )?;
        let v4 = self.listen_v4.map(free).transpose()?;
        let mut ended = [
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        ];
        let mut broker = Broker::new(configuration(v5, v4, &tls));
        std::thread::Builder::new()
            .name("broker".to_owned())
            // It ends with the process; what it could not do shows in the wait below.
            .spawn(move || drop(broker.start()))
            .context("cannot start the broker")?;
        for address in [Some(v5), v4].into_iter().flatten() {
            wait_for(address).await?;
        }
        printer.data(&format!(
            "listening on {v5}: MQTT 5 over TLS, for clients certified by fleet {}",
            home.fleet()
        ))?;
        if let Some(v4) = v4 {
            printer.data(&format!("listening on {v4}: MQTT 3.1.1 over TLS"))?;
        }
        let [terminate, interrupt] = &mut ended;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        printer.note("the broker ends");
        Ok(ExitCode::SUCCESS)
    }
}

fn text(path: &Path) -> Result<String> {
    let path =
        std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))?;
    path.into_os_string()
        .into_string()
        .map_err(|p| anyhow::anyhow!("{} is not UTF-8", p.display()))
}

/// Makes sure that an address can be listened on, since the broker itself would only log that it cannot.
/// Port 0 becomes a free one.
fn free(address: SocketAddr) -> Result<SocketAddr> {
    TcpListener::bind(address)
        .and_then(|listener| listener.local_addr())
        .with_context(|| format!("cannot listen on {address}"))
}

async fn wait_for(mut address: SocketAddr) -> Result<()> {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let until = Instant::now() + START_TIMEOUT;
    while let Err(error) = TcpStream::connect(address).await {
        if Instant::now() > until {
            return Err(error).with_context(|| format!("the broker does not listen on {address}"));
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn configuration(v5: SocketAddr, v4: Option<SocketAddr>, tls: &TlsConfig) -> Config {
    let server = |name: &str, listen| {
        let settings = ServerSettings {
            name: name.to_owned(),
            listen,
            tls: Some(tls.clone()),
            next_connection_delay_ms: 1,
            connections: ConnectionSettings {
                connection_timeout_ms: 10_000,
                max_payload_size: MAX_PAYLOAD_BYTES,
                max_inflight_count: 500,
                auth: None,
                external_auth: None,
                // Topics that nobody has subscribed to yet are taken too.
                dynamic_filters: true,
            },
        };
        HashMap::from([(name.to_owned(), settings)])
    };
    Config {
        id: 0,
        router: RouterConfig {
            max_connections: 10_000,
            // Retained messages beyond this many at once would be dropped without a word.
            max_outgoing_packet_count: 1000,
            // Per topic; a chunk's topic holds one message.
            max_segment_size: 2 * 1024 * 1024,
            max_segment_count: 2,
            custom_segment: None,
            initialized_filters: None,
            shared_subscriptions_strategy: Default::default(),
        },
        v5: Some(server("v5", v5)),
        v4: v4.map(|v4| server("v4", v4)),
        ..Config::default()
    }
}
