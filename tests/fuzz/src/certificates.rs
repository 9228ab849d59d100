//! Certificates and requests for them.

use edgeward_agent::api::tls::certificate_name;
use fleetctl::request::requested_key;
use rcgen::PublicKeyData;

/// A client's certificate, as it is named in the log.
pub fn client(data: &[u8]) {
    let name = certificate_name(&data.to_vec().into());
    assert!(name.chars().count() <= 200, "a name that fills the log");
    assert!(!name.chars().any(char::is_control), "{name:?} in the log");
}

/// A device's request: what becomes of it is a key and nothing else.
pub fn request(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(key) = requested_key(text)
    {
        assert!(!key.der_bytes().is_empty());
    }
}
