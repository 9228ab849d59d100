//! CBOR (RFC 8949) for what devices and operators send each other, with the limits that foreign bytes need.
//!
//! The crate behind it is old and unmaintained, so only this file knows it. A message is decoded only after
//! its length was checked, nesting is bounded by the decoder (128), and trailing bytes are an error. What is
//! signed is always the exact bytes that travelled, never a re-encoding.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest message that is decoded, in bytes. A status of a device with a hundred models is about 30 kB.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("{what}: {length} bytes are more than the {MAX_MESSAGE_BYTES} allowed")]
    TooLong { what: &'static str, length: usize },
    #[error("{what} is not the CBOR document it should be")]
    Decode {
        what: &'static str,
        #[source]
        source: serde_cbor::Error,
    },
    #[error("cannot encode {what}")]
    Encode {
        what: &'static str,
        #[source]
        source: serde_cbor::Error,
    },
}

/// Encodes `value`; `what` names it in the error.
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, CodecError> {
    serde_cbor::to_vec(value).map_err(|source| CodecError::Encode { what, source })
}

/// Decodes one whole document; `what` names it in the error.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(CodecError::TooLong {
            what,
            length: bytes.len(),
        });
    }
    serde_cbor::from_slice(bytes).map_err(|source| CodecError::Decode { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn deep_nesting_long_messages_and_trailing_bytes_are_errors() {
        let deep = vec![0x81; 100_000];
        assert!(decode::<serde_cbor::Value>("test", &deep).is_err());
        let long = vec![0; MAX_MESSAGE_BYTES + 1];
        assert!(matches!(
            decode::<u8>("test", &long),
            Err(CodecError::TooLong { .. })
        ));
        assert!(decode::<u8>("test", &[1, 2]).is_err());
        // A string that claims 4 GiB and holds nothing must not be allocated for.
        assert!(decode::<String>("test", &[0x7a, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<serde_cbor::Value>("test", &bytes);
            let _ = decode::<crate::fleet::status::Status>("test", &bytes);
        }
    }
}
