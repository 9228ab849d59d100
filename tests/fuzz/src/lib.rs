//! Fuzz targets: one function for each parser of bytes that strangers write.
//!
//! A target takes any bytes, and what it promises stands in it as assertions: no panic, no place outside the
//! input, and what was understood means the same when it is written and read again. `make fuzz` hunts with
//! libFuzzer for ten minutes a target, `make test` for one; the test `seeds` only runs what lies in
//! `seeds/TARGET`, the inputs that any hunt begins with. An input that once broke something joins them.

mod certificates;
mod doors;
mod fleet;
mod grpc;
mod versions;
mod worker;

/// Takes any bytes; panics when a promise is broken.
pub type Target = fn(&[u8]);

/// What can be hunted, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("certificate", certificates::client),
    ("certificate-request", certificates::request),
    ("chunk-list", fleet::chunk_list),
    ("content-coding", doors::content_coding),
    ("enrolment", fleet::enrolment),
    ("fleet-cbor", fleet::cbor),
    ("grpc-framing", grpc::framing),
    ("grpc-infer", grpc::infer),
    ("golden", versions::golden),
    ("headers", doors::headers),
    ("infer-body", doors::infer_body),
    ("infer-json", doors::infer_json),
    ("manifest", versions::manifest),
    ("metadata", fleet::metadata),
    ("model-file", versions::model_file),
    ("name", versions::name),
    ("path", doors::path),
    ("rollout", versions::rollout),
    ("strings", doors::strings),
    ("strings-json", doors::strings_json),
    ("tensor-json", doors::tensor_json),
    ("topic", fleet::topic),
    ("worker", worker::wire),
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    found.map(|(_, function)| *function)
}
