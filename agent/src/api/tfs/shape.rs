//! The shape of a tensor that is written as nested lists: how long they are at each depth.
//!
//! Only the lists are looked at: whoever reads the values checks them.

use edgeward_models::manifest::MAX_DIMENSIONS;

/// What a text of nested lists says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nested {
    pub shape: Vec<i64>,
    /// Some values are objects.
    pub has_objects: bool,
}

/// Finds the shape of the value that is `text`, which is a whole one; the error says why it has none.
pub fn of(text: &[u8]) -> Result<Nested, String> {
    let uneven = || "its lists are not all equally long and deep".to_owned();
    let mut lengths: Vec<Option<i64>> = Vec::new();
    // Values so far in each list that is open, and whether one is begun.
    let mut open: Vec<(i64, bool)> = Vec::new();
    let mut depth_of_values = None;
    let mut has_objects = false;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        at += 1;
        match byte {
            b'[' => {
                if open.len() == MAX_DIMENSIONS {
                    return Err(format!("its lists are deeper than {MAX_DIMENSIONS}"));
                }
                if let Some((_, begun)) = open.last_mut() {
                    *begun = true;
                }
                if depth_of_values.is_some_and(|depth| open.len() >= depth) {
                    return Err(uneven());
                }
                open.push((0, false));
                if lengths.len() < open.len() {
                    lengths.push(None);
                }
            }
            b']' => {
                let Some((count, begun)) = open.pop() else {
                    return Err("a list ends that never began".to_owned());
                };
                let count = count + i64::from(begun);
                if *lengths[open.len()].get_or_insert(count) != count {
                    return Err(uneven());
                }
            }
            b',' => {
                if let Some((count, begun)) = open.last_mut() {
                    *count += 1;
                    *begun = false;
                }
            }
            b' ' | b'\n' | b'\r' | b'\t' => {}
            _ => {
                if *depth_of_values.get_or_insert(open.len()) != open.len() {
                    return Err(uneven());
                }
                if let Some((_, begun)) = open.last_mut() {
                    *begun = true;
                }
                has_objects |= *byte == b'{';
                at += rest_of_value(*byte, &text[at..]);
            }
        }
    }
    if !open.is_empty() || depth_of_values.is_some_and(|depth| depth < lengths.len()) {
        return Err(uneven());
    }
    Ok(Nested {
        shape: lengths
            .into_iter()
            .map(|length| length.unwrap_or(0))
            .collect(),
        has_objects,
    })
}

/// How many bytes belong to a value behind its first one.
fn rest_of_value(first: u8, rest: &[u8]) -> usize {
    match first {
        b'"' => string(rest),
        b'{' => {
            let mut at = 0;
            while let Some(byte) = rest.get(at) {
                at += 1;
                match byte {
                    b'"' => at += string(&rest[at..]),
                    b'}' => break,
                    _ => {}
                }
            }
            at
        }
        _ => rest
            .iter()
            .position(|b| matches!(b, b',' | b']' | b'['))
            .unwrap_or(rest.len()),
    }
}

/// How many bytes a string has behind its first quotation mark.
fn string(rest: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = memchr::memchr2(b'"', b'\\', &rest[at..]) {
        at += found + 1;
        if rest[at - 1] == b'"' {
            return at;
        }
        at += 1;
        if at > rest.len() {
            break;
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn shape(text: &str) -> Result<Vec<i64>, String> {
        of(text.as_bytes()).map(|nested| nested.shape)
    }

    #[test]
    fn shapes_are_found_and_uneven_lists_refused() {
        for (text, expected) in [
            ("1.5", &[][..]),
            ("\"[,]\\\"\"", &[]),
            ("[]", &[0]),
            ("[[],[]]", &[2, 0]),
            ("[1, 2 ,3]", &[3]),
            (" [ [1,2] , [3,4] , [5,6] ] ", &[3, 2]),
            ("[[[\"a,\\\\\"],[\"]\"]]]", &[1, 2, 1]),
            ("[{\"b64\":\"],{}\"},{\"b64\":\"\"}]", &[2]),
        ] {
            assert_eq!(shape(text).expect(text), expected, "{text}");
        }
        for text in [
            "[[1,2],[3]]",
            "[[1,2],[3,4,5],[6]]",
            "[1,[2]]",
            "[[1],2]",
            "[[],1]",
            "[[[1]],[2]]",
            "[1",
            "]",
            "[[[[[[[[[1]]]]]]]]]",
        ] {
            assert!(shape(text).is_err(), "{text}");
        }
        assert!(of(b"[{}]").expect("a list").has_objects);
        assert!(!of(b"[\"{}\"]").expect("a list").has_objects);
    }

    fn tensor(shape: &[usize]) -> Value {
        match shape {
            [] => json!(0.5),
            [first, rest @ ..] => (0..*first).map(|_| tensor(rest)).collect(),
        }
    }

    proptest! {
        #[test]
        fn any_shape_is_found(shape in proptest::collection::vec(1usize..4, 0..6)) {
            let found = super::of(tensor(&shape).to_string().as_bytes()).expect("even");
            let expected: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
            prop_assert_eq!(found.shape, expected);
        }

        #[test]
        fn any_text_has_a_shape_or_none_in_peace(text in "[\\[\\]{},\"\\\\a1 ]{0,60}") {
            let _ = super::of(text.as_bytes());
        }
    }
}
