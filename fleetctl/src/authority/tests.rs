//! What a hostile certificate request cannot get.

use super::*;
use rcgen::{CustomExtension, PublicKeyData};
use x509_parser::prelude::{FromDer, X509Certificate};

fn authority() -> Authority {
    let files = Authority::generate(&"hospital".parse().expect("name")).expect("authority");
    Authority::from_pem(&files.certificate, &files.key).expect("authority")
}

fn der(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes())
        .expect("pem")
        .1
        .contents
}

#[test]
fn a_hostile_request_gets_our_subject_and_our_extensions() {
    let key = KeyPair::generate().expect("key");
    let mut wanted = CertificateParams::new(vec!["broker.example.org".to_owned()]).expect("params");
    wanted.distinguished_name = DistinguishedName::new();
    wanted.distinguished_name.push(DnType::CommonName, OPERATOR);
    wanted
        .distinguished_name
        .push(DnType::OrganizationName, "root");
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wanted.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    wanted.custom_extensions = vec![CustomExtension::from_oid_content(
        &[1, 3, 6, 1, 4, 1, 99999],
        vec![5, 0],
    )];
    let request = wanted
        .serialize_request(&key)
        .expect("request")
        .pem()
        .expect("pem");

    let pem = authority()
        .device(&request, &"ct-1".parse().expect("name"))
        .expect("certificate");
    let bytes = der(&pem);
    let (_, certificate) = X509Certificate::from_der(&bytes).expect("certificate");
    assert_eq!(certificate.subject().to_string(), "CN=ct-1");
    assert!(!certificate.is_ca());
    assert!(
        certificate
            .subject_alternative_name()
            .expect("extensions")
            .is_none()
    );
    let usage = certificate
        .key_usage()
        .expect("extensions")
        .expect("usage")
        .value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let extended = certificate
        .extended_key_usage()
        .expect("extensions")
        .expect("usage")
        .value;
    assert!(extended.client_auth && !extended.server_auth && !extended.any);
    assert!(
        certificate
            .extensions()
            .iter()
            .all(|e| e.oid.to_id_string() != "1.3.6.1.4.1.99999")
    );
    assert_eq!(certificate.public_key().raw, key.subject_public_key_info());
    let days =
        (certificate.validity().not_after.timestamp() - Timestamp::now().as_second()) / 86_400;
    assert!((363..=366).contains(&days), "{days} days");
}

#[test]
fn a_request_that_its_own_key_did_not_sign_is_refused() {
    let key = KeyPair::generate().expect("key");
    let request = CertificateParams::default()
        .serialize_request(&key)
        .expect("request");
    let mut bytes = request.der().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let forged = pem("CERTIFICATE REQUEST", &bytes);
    let error = requested_key(&forged).expect_err("refused").to_string();
    assert!(error.contains("not signed with its own key"), "{error}");

    // Somebody else's public key under one's own signature.
    let other = KeyPair::generate().expect("key");
    let mut bytes = request.der().to_vec();
    let own = key.public_key_raw();
    let place = bytes
        .windows(own.len())
        .position(|w| w == own)
        .expect("key in request");
    bytes[place..place + own.len()].copy_from_slice(other.public_key_raw());
    assert!(requested_key(&pem("CERTIFICATE REQUEST", &bytes)).is_err());
}

#[test]
fn other_keys_other_files_and_junk_are_refused_in_words() {
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("key");
    let request = CertificateParams::default()
        .serialize_request(&ed25519)
        .expect("request");
    let error = requested_key(&request.pem().expect("pem"))
        .expect_err("refused")
        .to_string();
    assert!(error.contains("P-256"), "{error}");
    let error = requested_key(&ed25519.serialize_pem())
        .expect_err("refused")
        .to_string();
    assert!(error.contains("PRIVATE KEY"), "{error}");
    assert!(requested_key("").is_err());
    assert!(requested_key(&pem("CERTIFICATE REQUEST", b"junk")).is_err());
}

#[test]
fn a_broker_is_certified_for_names_and_addresses() {
    let identity = authority()
        .broker(&["broker.example.org".to_owned(), "127.0.0.1".to_owned()])
        .expect("identity");
    let bytes = der(&identity.certificate);
    let (_, certificate) = X509Certificate::from_der(&bytes).expect("certificate");
    let names = certificate
        .subject_alternative_name()
        .expect("extensions")
        .expect("names");
    assert_eq!(names.value.general_names.len(), 2);
    assert!(
        authority()
            .broker(&["not a host".to_owned(), "ü".to_owned()])
            .is_err()
    );
}

fn pem(label: &str, bytes: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64(bytes).as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("ascii"));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for place in 0..4 {
            let digit = DIGITS[(number >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

#[test]
fn an_operator_certificate_that_is_about_to_end_is_made_anew() {
    use crate::devices::not_after;
    use crate::home::{CA_FILES, FleetFile, Home, OPERATOR_FILES, parse_broker};
    let directory = tempfile::tempdir().expect("tempdir");
    let files = Authority::generate(&"hospital".parse().expect("name")).expect("authority");
    let authority = Authority::from_pem(&files.certificate, &files.key).expect("authority");
    let ending = authority
        .identity(params(OPERATOR, 0).expect("params"))
        .expect("identity");
    Home::prepare(directory.path()).expect("prepare");
    let ca = directory.path().join("ca");
    files.write(&ca, CA_FILES).expect("write");
    ending.write(&ca, OPERATOR_FILES).expect("write");
    let fleet = FleetFile {
        fleet: "hospital".parse().expect("name"),
        broker: parse_broker("localhost:8883").expect("address"),
    };
    let home = Home::create(directory.path(), fleet).expect("create");
    let (renewed, key) = home.operator_certificate().expect("certificate");
    assert_ne!(renewed, ending.certificate);
    assert!(
        not_after(renewed.as_bytes()).expect("end")
            > not_after(ending.certificate.as_bytes()).expect("end")
    );
    // The new one is kept and not made again.
    assert_eq!(
        home.operator_certificate().expect("certificate"),
        (renewed, key)
    );
    // Without the authority's key the old one is used while it lasts.
    std::fs::remove_file(ca.join(CA_FILES[1])).expect("remove");
    ending.write(&ca, OPERATOR_FILES).expect("write");
    assert_eq!(
        home.operator_certificate().expect("certificate").0,
        ending.certificate
    );
}
