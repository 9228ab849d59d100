//! From a published repository to an answer, and what the device says of it.

use std::collections::BTreeSet;
use std::time::Duration;

use edgeward_models::Digest;
use edgeward_models::codec;
use edgeward_models::fleet::signed::{self, Purpose};
use edgeward_models::fleet::status::{Phase, Status};

use crate::broker::{Broker, Party};
use crate::device::Device;
use crate::site::{DEVICE, FLEET, Site, noise};
use crate::wait;

const QUIET: Duration = Duration::from_millis(200);

/// The device's public key, as its certificate has it.
fn public_key(device: &Device) -> Vec<u8> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use x509_parser::prelude::FromDer;
    let path = device.state().join("identity/certificate.pem");
    let der = CertificateDer::from_pem_file(path).expect("certificate");
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&der).expect("x509");
    certificate.public_key().raw.to_vec()
}

/// The newest status on the broker, after its signature was checked.
async fn status(operator: &Party, key: &[u8]) -> Option<Status> {
    let topic = format!("edgeward/v1/{FLEET}/device/{DEVICE}/status");
    let message = operator.link.retained(&topic, QUIET).await.expect("read")?;
    let device = DEVICE.parse().expect("name");
    let payload = signed::open(Purpose::Status, &device, key, &message).expect("signature");
    Some(codec::decode("status", &payload).expect("status"))
}

async fn wait_told(operator: &Party, key: &[u8], version: &str) -> Status {
    let end = tokio::time::Instant::now() + wait::PATIENCE;
    loop {
        if let Some(status) = status(operator, key).await
            && let Some(model) = status.models.first()
            && model.phase == Phase::Active
            && model
                .active
                .as_ref()
                .is_some_and(|a| a.version.to_string() == version)
        {
            return status;
        }
        assert!(tokio::time::Instant::now() < end, "no status of {version}");
    }
}

#[tokio::test]
async fn a_published_version_serves_and_the_device_says_so_with_its_signature() {
    let mut site = Site::new();
    let mut broker = Broker::start(&site).await;
    let operator = Party::operator(&site, broker.port).await;
    let mut device = Device::new(&site, Some(broker.port));
    device.config().telemetry.interval_seconds = 1;
    let key = public_key(&device);
    device.start().await;
    site.push("digits-1.0.0", "r1");
    operator.publish(&site).await;
    device.wait_serves("digits", "1.0.0").await;
    let first = wait_told(&operator, &key, "1.0.0").await;
    assert_eq!(first.groups[0].sequence, 1);
    assert_eq!(first.sandbox, "enforced");

    // The broker loses everything: nothing happens to what serves.
    operator.stop().await;
    broker.restart().await;
    assert_eq!(device.serves("digits").as_deref(), Some("1.0.0"));
    let operator = Party::operator(&site, broker.port).await;
    site.push("digits-2.0.0", "r2");
    operator.publish(&site).await;
    device.wait_serves("digits", "2.0.0").await;
    let second = wait_told(&operator, &key, "2.0.0").await;
    assert_eq!(second.boot_id, first.boot_id);
    assert!(second.sequence > first.sequence);
    assert!(second.audit_length > first.audit_length);
    device.stop().await;
}

#[tokio::test]
async fn an_interrupted_fetch_goes_on_without_asking_again_for_what_it_has() {
    let mut site = Site::new();
    let broker = Broker::start(&site).await;
    let operator = Party::operator(&site, broker.port).await;
    let mut device = Device::new(&site, Some(broker.port));
    device.start().await;
    let before: BTreeSet<Digest> = digests(&site);
    let release = site.add("digits-1.0.0", |_, files| {
        files.insert("notes.bin".parse().expect("name"), noise(2_000_000));
    });
    site.wish("digits", "1.0.0", release, "r1");
    let large: Vec<Digest> = digests(&site)
        .difference(&before)
        .copied()
        .filter(|digest| site.repository.chunk(digest).expect("chunk").len() > 15_000)
        .collect();
    assert!(large.len() > 20, "{} large chunks", large.len());
    // A few of the model's chunks have not reached the broker.
    let (late, early) = large.split_at(3);
    operator.publish_without(&site, late).await;
    let cache = device.state().join("chunks");
    let cached = || std::fs::read_dir(&cache).map_or(0, Iterator::count);
    wait::until("most chunks to be there", || cached() >= early.len()).await;
    for digest in early {
        operator.remove_chunk(digest).await;
    }
    for digest in late {
        operator.put_chunk(&site, digest).await;
    }
    device.wait_serves("digits", "1.0.0").await;
    device.stop().await;
}

fn digests(site: &Site) -> BTreeSet<Digest> {
    let everything = site.repository.everything().expect("everything");
    everything.chunks.into_iter().collect()
}

#[tokio::test]
async fn a_newer_wish_supersedes_a_fetch_that_cannot_end() {
    let mut site = Site::new();
    let broker = Broker::start(&site).await;
    let operator = Party::operator(&site, broker.port).await;
    let mut device = Device::new(&site, Some(broker.port));
    let before = digests(&site);
    let release = site.add("digits-2.0.0", |_, _| {});
    let lost: Vec<Digest> = digests(&site).difference(&before).copied().collect();
    site.wish("digits", "2.0.0", release, "r1");
    operator.publish_without(&site, &lost).await;
    device.start().await;
    let end = tokio::time::Instant::now() + wait::PATIENCE;
    loop {
        let status = device.model("digits").await;
        let reason = status.and_then(|s| s.reason).unwrap_or_default();
        if reason.contains("fleetctl sync") {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{reason:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let release = site.add("digits-1.0.0", |_, _| {});
    site.wish("digits", "1.0.0", release, "r2");
    operator.publish_without(&site, &lost).await;
    device.wait_serves("digits", "1.0.0").await;
    device.stop().await;
}

#[tokio::test]
async fn chunks_that_the_installed_version_has_are_not_fetched_again() {
    let mut site = Site::new();
    let broker = Broker::start(&site).await;
    let operator = Party::operator(&site, broker.port).await;
    let mut device = Device::new(&site, Some(broker.port));
    device.start().await;
    let weights = noise(1_000_000);
    let release = site.add("digits-1.0.0", |_, files| {
        files.insert("weights.bin".parse().expect("name"), weights.clone());
    });
    site.wish("digits", "1.0.0", release, "r1");
    operator.publish(&site).await;
    device.wait_serves("digits", "1.0.0").await;
    let shared: Vec<Digest> = digests(&site)
        .into_iter()
        .filter(|digest| site.repository.chunk(digest).expect("chunk").len() > 15_000)
        .collect();
    let release = site.add("digits-2.0.0", |_, files| {
        let mut changed = weights;
        changed.splice(500_000..500_100, [1, 2, 3]);
        files.insert("weights.bin".parse().expect("name"), changed);
    });
    site.wish("digits", "2.0.0", release, "r2");
    for digest in &shared {
        operator.remove_chunk(digest).await;
    }
    operator.publish_without(&site, &shared).await;
    device.wait_serves("digits", "2.0.0").await;
    device.stop().await;
}
