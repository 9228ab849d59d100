//! One record as it lies in sled: layout number, checksum, value.

use std::io;

use edgeward_models::Digest;

/// The layout of a record.
const SCHEMA: u8 = 1;
const CHECKSUM_BYTES: usize = 8;

pub(super) fn key_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.try_into().ok()?))
}

pub(super) fn damaged_record() -> sled::Error {
    sled::Error::Io(io::Error::other("a record does not have its checksum"))
}

pub(super) fn sealed(value: &[u8]) -> Vec<u8> {
    let mut record = vec![SCHEMA];
    record.extend_from_slice(&Digest::of(value).as_bytes()[..CHECKSUM_BYTES]);
    record.extend_from_slice(value);
    record
}

pub(super) fn unsealed(record: &[u8]) -> Option<&[u8]> {
    let (&schema, rest) = record.split_first()?;
    let (checksum, value) = rest.split_at_checked(CHECKSUM_BYTES)?;
    let good = schema == SCHEMA && Digest::of(value).as_bytes()[..CHECKSUM_BYTES] == *checksum;
    good.then_some(value)
}

/// The bytes of a record's value.
pub(super) fn value_bytes(record: &[u8]) -> u64 {
    record.len().saturating_sub(1 + CHECKSUM_BYTES) as u64
}
