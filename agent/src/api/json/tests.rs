//! What is read is JSON, and anything else is refused in peace.

use super::*;
use proptest::prelude::*;

/// Reads any document with the reader's own calls, as deep as test texts go.
fn walk(reader: &mut Reader<'_>, depth: usize) -> Result<(), JsonError> {
    if depth > 8 {
        return Err(reader.error("deep"));
    }
    match reader.peek() {
        Some(b'{') => reader.object("an object", |r, _| walk(r, depth + 1)),
        Some(b'[') => reader.array("an array", |r| walk(r, depth + 1)),
        _ => reader.scalar().map(|_| ()),
    }
}

fn reads(text: &[u8]) -> bool {
    let mut reader = Reader::new(text);
    walk(&mut reader, 0).and_then(|()| reader.end()).is_ok()
}

#[test]
fn ordinary_documents_are_read() {
    for text in [
        r#"{"a": [1, -2.5e3, "x\n\u00e9", true, false, null], "b": {}}"#,
        " [ ] ",
        "\"é\"",
    ] {
        assert!(reads(text.as_bytes()), "{text}");
    }
}

#[test]
fn doubled_keys_trailing_text_and_broken_syntax_are_refused() {
    for text in [
        r#"{"a":1,"a":2}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"a":1}{"#,
        r#"{"a":1,}"#,
        r#"{"a" 1}"#,
        r#"[1,]"#,
        r#"["\x"]"#,
        "[\"a\nb\"]",
        "[01]",
        "[nul]",
        "[truefalse]",
        "\"",
        "\"\\",
        "",
    ] {
        assert!(!reads(text.as_bytes()), "{text} was taken");
    }
    assert!(!reads(b"\"\xff\""));
}

#[test]
fn an_array_is_stepped_over_whole_even_with_brackets_in_strings() {
    let text = br#" [[1,2],["]\"]"]] , 3"#;
    let mut reader = Reader::new(text);
    let array = reader.array_extent().expect("array");
    assert_eq!(&text[array], br#"[[1,2],["]\"]"]]"#);
    assert_eq!(reader.peek(), Some(b','));
    for wrong in ["[[1]", "{}", "[\"", &"[".repeat(100)] {
        assert!(
            Reader::new(wrong.as_bytes()).array_extent().is_err(),
            "{wrong}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_is_read_is_json(text in r#"[\[\]{},:"\\ a-c0-2.eu+-]{0,16}"#) {
        let json: Result<serde_json::Value, _> = serde_json::from_str(&text);
        if reads(text.as_bytes()) {
            prop_assert!(json.is_ok(), "{} is not JSON", text);
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read_in_peace(text in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = reads(&text);
        let _ = Reader::new(&text).array_extent();
    }
}
