//! Joining a fleet: what a device gets, and what nobody gets.

mod desk;

use desk::{Desk, text};
use edgeward_models::fleet::enrolment::EnrolmentBundle;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PublicKeyData};
use x509_parser::prelude::{FromDer, X509Certificate};

#[test]
fn a_home_is_made_whole_once_and_its_secrets_are_the_owners() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::new();
    for file in [
        "fleet.toml",
        "ca/ca.pem",
        "broker/certificate.pem",
        "broker/mosquitto.conf",
        "broker/acl",
    ] {
        assert!(desk.home().join(file).is_file(), "{file} is missing");
    }
    for secret in ["ca/ca.key", "ca/operator.key", "broker/private-key.pem"] {
        let mode = std::fs::metadata(desk.home().join(secret))
            .expect(secret)
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    let said = desk
        .run(&["init", "other", "--broker", "localhost:1"])
        .expect(2);
    assert!(said.err.contains("already holds a fleet"), "{}", said.err);
    let said = desk
        .run_in(&desk.path("nowhere"), &["device", "list"])
        .expect(2);
    assert!(said.err.contains("fleetctl init"), "{}", said.err);
}

#[test]
fn a_hostile_request_becomes_a_device_and_nothing_more() {
    let desk = Desk::new();
    let key = KeyPair::generate().expect("key");
    let mut wanted = CertificateParams::new(vec!["localhost".to_owned()]).expect("params");
    wanted
        .distinguished_name
        .push(DnType::CommonName, "Operator");
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let request = wanted
        .serialize_request(&key)
        .expect("request")
        .pem()
        .expect("pem");
    let file = desk.path("request.pem");
    std::fs::write(&file, request).expect("write");
    let out = desk.path("bundle.json");
    let said = desk
        .run(&[
            "device",
            "enroll",
            text(&file),
            "--id",
            "ct-1",
            "--group",
            "radiology",
            "--out",
            text(&out),
        ])
        .expect(0);
    // There is no broker: the membership waits, and the operator is told.
    assert!(said.err.contains("fleetctl sync"), "{}", said.err);
    assert!(
        said.err
            .contains("device ct-1 is enrolled in group radiology"),
        "{}",
        said.err
    );

    let bundle: EnrolmentBundle =
        serde_json::from_slice(&std::fs::read(&out).expect("read")).expect("bundle");
    assert_eq!(
        (bundle.fleet.as_str(), bundle.device.as_str()),
        ("hospital", "ct-1")
    );
    assert_eq!(bundle.broker.port, desk.port);
    let (_, pem) = x509_parser::pem::parse_x509_pem(bundle.certificate.as_bytes()).expect("pem");
    let (_, certificate) = X509Certificate::from_der(&pem.contents).expect("certificate");
    assert_eq!(certificate.subject().to_string(), "CN=ct-1");
    assert!(!certificate.is_ca());
    assert!(
        certificate
            .subject_alternative_name()
            .expect("extensions")
            .is_none()
    );
    assert_eq!(certificate.public_key().raw, key.subject_public_key_info());
    let said = desk.run(&["device", "list"]).expect(0);
    assert!(said.out.contains("ct-1    radiology"), "{}", said.out);
}

#[test]
fn a_request_changed_on_its_way_is_refused_and_enrols_nobody() {
    let desk = Desk::new();
    let key = KeyPair::generate().expect("key");
    let request = CertificateParams::default()
        .serialize_request(&key)
        .expect("request");
    let pem = request.pem().expect("pem");
    // One character inside the signature, which stands at the end.
    let place = pem.find("-----END").expect("end") - 20;
    let other = if &pem[place..=place] == "A" { "B" } else { "A" };
    let changed = format!("{}{other}{}", &pem[..place], &pem[place + 1..]);
    let file = desk.path("request.pem");
    std::fs::write(&file, changed).expect("write");
    let said = desk
        .run(&["device", "enroll", text(&file), "--id", "ct-1"])
        .expect(2);
    assert!(
        said.err.contains("not signed with its own key"),
        "{}",
        said.err
    );
    assert!(said.out.is_empty());
    let said = desk.run(&["device", "list", "--json"]).expect(0);
    assert_eq!(said.json()["devices"], serde_json::json!([]));
}

#[test]
fn an_id_that_is_taken_goes_to_another_key_only_when_told_so() {
    let desk = Desk::new();
    desk.enroll("ct-1", "radiology");
    let request = CertificateParams::default()
        .serialize_request(&KeyPair::generate().expect("key"))
        .expect("request");
    let file = desk.path("other.pem");
    std::fs::write(&file, request.pem().expect("pem")).expect("write");
    let enroll = ["device", "enroll", text(&file), "--id", "ct-1"];
    let said = desk.run(&enroll).expect(2);
    assert!(said.err.contains("--replace"), "{}", said.err);
    desk.run(&[&enroll[..], &["--replace"]].concat()).expect(0);
    // The same key once more is a renewal.
    desk.run(&enroll).expect(0);
}

#[test]
fn groups_are_changed_by_name_and_shown() {
    let desk = Desk::new();
    desk.enroll("ct-1", "radiology");
    let said = desk
        .run(&["group", "add", "night", "ct-1", "--offline"])
        .expect(0);
    assert!(
        said.err.contains("device ct-1 is in group night"),
        "{}",
        said.err
    );
    let said = desk
        .run(&["group", "add", "night", "ct-9", "--offline"])
        .expect(2);
    assert!(said.err.contains("ct-9 is not enrolled"), "{}", said.err);
    desk.run(&["group", "remove", "radiology", "ct-1", "--offline"])
        .expect(0);
    let groups = desk.run(&["group", "list", "--json"]).expect(0).json();
    assert_eq!(groups["groups"][0]["group"], "night");
    assert_eq!(groups["groups"][0]["devices"], serde_json::json!(["ct-1"]));
    // Without a broker a change of the fleet that should be published is not made at all.
    let said = desk.run(&["group", "add", "day", "ct-1"]).expect(2);
    assert!(said.err.contains("cannot connect"), "{}", said.err);
    assert_eq!(
        desk.run(&["group", "list", "--json"]).expect(0).json(),
        groups
    );
}

#[test]
fn a_second_fleetctl_in_the_same_home_waits_for_the_first() {
    let desk = Desk::new();
    let lock = std::fs::File::open(desk.home().join("repository/.lock")).expect("lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("held");
    let waiting = std::thread::scope(|scope| {
        let second = scope.spawn(|| desk.run(&["group", "list"]));
        // Long enough to be seen waiting, and the answer is the same if it comes late.
        std::thread::sleep(std::time::Duration::from_millis(500));
        drop(lock);
        second.join().expect("runs")
    });
    assert!(waiting.expect(0).err.contains("there is no group"));
}
