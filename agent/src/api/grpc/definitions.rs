//! Compares messages in Rust with their definitions, both as text: names, numbers and types of their fields.

use std::collections::BTreeSet;

/// Panics unless each field of each message in `rust` stands in `definition`.
pub fn assert_defined(rust: &str, definition: &str) {
    let (fields, defined) = (fields_in_rust(rust), fields_in_definition(definition));
    assert!(!fields.is_empty(), "no messages in Rust");
    for field in &fields {
        assert!(
            defined.contains(field),
            "{field:?} is not among {defined:#?}"
        );
    }
}

/// `Message.field = 1: type` of each.
fn fields_in_rust(source: &str) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    let mut message = "";
    let mut attributes: Option<(String, &str)> = None;
    for line in source.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("pub struct ") {
            message = rest.trim_end_matches(" {");
        } else if let Some(rest) = line.strip_prefix("#[prost(") {
            let kind = rest.split_once(", tag = ").map(|(kind, _)| kind.to_owned());
            let tag = rest.split('"').rev().nth(1).unwrap_or_default();
            attributes = kind.map(|kind| (kind, tag));
        } else if let Some(rest) = line.strip_prefix("pub ")
            && let Some((kind, tag)) = attributes.take()
            && let Some((name, own)) = rest.trim_end_matches(',').split_once(": ")
        {
            let repeated = if kind.contains("repeated") {
                "repeated "
            } else {
                ""
            };
            let inner = own.trim_end_matches('>').rsplit(['<', ' ']).next();
            let quoted = kind.split('"').nth(1).unwrap_or_default();
            let word = kind.split([',', ' ']).next().unwrap_or_default();
            let declared = match word {
                "message" => inner.unwrap_or_default().to_owned(),
                "enumeration" => quoted.to_owned(),
                "btree_map" => {
                    let value = quoted.trim_start_matches("string, ");
                    let value = value.replace("message", inner.unwrap_or_default());
                    format!("map<string, {value}>")
                }
                word => word.to_owned(),
            };
            fields.insert(format!("{message}.{name} = {tag}: {repeated}{declared}"));
        }
    }
    fields
}

fn fields_in_definition(definition: &str) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    // Nested messages go by their own name, as in Rust.
    let mut messages = Vec::new();
    for line in definition.lines().map(str::trim) {
        if let Some((_, rest)) = line.split_once("message ").filter(|(b, _)| b.is_empty()) {
            if !line.ends_with("{}") {
                messages.push(rest.trim_end_matches(" {"));
            }
        } else if line.ends_with('{') {
            // Of a oneof, the fields are the message's own.
            messages.push(messages.last().copied().unwrap_or_default());
        } else if line == "}" {
            messages.pop();
        } else if let Some((field, number)) = line.trim_end_matches(';').split_once(" = ")
            && let Some((declared, name)) = field.rsplit_once(' ')
        {
            let message = messages.last().copied().unwrap_or_default();
            fields.insert(format!("{message}.{name} = {number}: {declared}"));
        }
    }
    fields
}

#[test]
fn the_messages_of_each_service_are_as_they_are_defined() {
    assert_defined(
        include_str!("../oip_grpc/messages.rs"),
        include_str!("../../../protos/inference.proto"),
    );
    assert_defined(
        include_str!("health.rs"),
        include_str!("../../../protos/health.proto"),
    );
    let tensorflow = concat!(
        include_str!("../../../protos/tensorflow.proto"),
        include_str!("../../../protos/tensorflow_serving.proto"),
        // Of protobuf's own definitions.
        "message Int64Value {\nint64 value = 1;\n}\n",
        "message Any {\nstring type_url = 1;\nbytes value = 2;\n}\n",
    )
    .replace("google.protobuf.", "");
    assert_defined(include_str!("../tfs/messages.rs"), &tensorflow);
    for version in [
        include_str!("../../../protos/reflection_v1.proto"),
        include_str!("../../../protos/reflection_v1alpha.proto"),
    ] {
        let source = include_str!("reflection.rs");
        let own = source
            .split("mod descriptor {")
            .next()
            .expect("a beginning");
        assert_defined(own, version);
    }
}

#[test]
fn a_field_of_another_number_or_type_is_found() {
    let definition = "message M {\n  repeated int64 shape = 3;\n}\n";
    let rust = "pub struct M {\n#[prost(int64, repeated, tag = \"3\")]\npub shape: Vec<i64>,\n}";
    assert_defined(rust, definition);
    for wrong in [
        rust.replace('3', "4"),
        rust.replace("int64", "int32"),
        rust.replace("repeated, ", ""),
        rust.replace("shape", "shapes"),
    ] {
        let found = std::panic::catch_unwind(|| assert_defined(&wrong, definition));
        assert!(found.is_err(), "{wrong}");
    }
}
