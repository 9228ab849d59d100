//! Requests as clients write them, and as they should not.

use super::*;
use proptest::prelude::*;

fn refusal(text: &str, binary: usize) -> String {
    match InferRequest::parse(text.as_bytes(), binary) {
        Ok(_) => panic!("{text} was taken"),
        Err(error) => {
            assert_eq!(error.status, 400);
            error.text
        }
    }
}

#[test]
fn members_may_come_in_any_order() {
    let text = r#"{"outputs":[{"parameters":{"binary_data":true},"name":"y"}],
        "inputs":[{"data":[1,2],"shape":[2],"name":"x","datatype":"FP32"},
                  {"parameters":{"binary_data_size":8},"datatype":"INT64","shape":[],"name":"n"}],
        "parameters":{"timeout":1500,"binary_data_output":true,"priority":0,"signature_name":"s"},
        "id":"a\u0042","model_name":"m"}"#;
    let request = InferRequest::parse(text.as_bytes(), 8).expect("request");
    assert_eq!(request.id.as_deref(), Some("aB"));
    assert_eq!(request.model.as_deref(), Some("m"));
    assert_eq!(request.timeout, Some(Duration::from_micros(1500)));
    assert_eq!(request.signature.as_deref(), Some("s"));
    assert!(request.binary_by_default);
    assert_eq!(request.inputs[0].shape, [2]);
    let Content::Json(data) = request.inputs[0].content.clone() else {
        panic!("json");
    };
    assert_eq!(&text[data], "[1,2]");
    assert_eq!(request.inputs[1].content, Content::Binary(0..8));
    assert_eq!(request.outputs[0].binary, Some(true));
}

#[test]
fn every_wrong_request_says_what_is_wrong_and_with_which_tensor() {
    let input = |members: &str| format!(r#"{{"inputs":[{{{members}}}]}}"#);
    for (text, says) in [
        ("".to_owned(), "a JSON object"),
        ("[]".to_owned(), "a JSON object"),
        ("{}".to_owned(), "no inputs"),
        (r#"{"inputs":[]}x"#.to_owned(), "follows"),
        (r#"{"inputs":[],"inputs":[]}"#.to_owned(), "twice"),
        (r#"{"inputs":[],"output":[]}"#.to_owned(), "\"output\""),
        (r#"{"inputs":[],"id":5}"#.to_owned(), "id must be a string"),
        (
            r#"{"inputs":[],"parameters":{"sequence_id":-1}}"#.to_owned(),
            "sequence_id",
        ),
        (
            r#"{"inputs":[],"parameters":{"sequence_id":1,"sequence_end":1}}"#.to_owned(),
            "sequence_end",
        ),
        (
            r#"{"inputs":[],"parameters":{"sequence_start":true}}"#.to_owned(),
            "need a sequence_id",
        ),
        (
            r#"{"inputs":[],"parameters":{"priority":1}}"#.to_owned(),
            "priority",
        ),
        (
            r#"{"inputs":[],"parameters":{"timeout":-1}}"#.to_owned(),
            "timeout",
        ),
        (
            r#"{"inputs":[],"parameters":{"foo":1}}"#.to_owned(),
            "\"foo\"",
        ),
        (
            r#"{"inputs":[],"parameters":{"foo":{}}}"#.to_owned(),
            "expected a string",
        ),
        (input(r#""datatype":"FP32""#), "no name"),
        (
            input(r#""name":"x","shape":[1],"data":[1]"#),
            "input \"x\": it has no datatype",
        ),
        (
            input(r#""name":"x","datatype":"FP32","data":[1]"#),
            "input \"x\": it has no shape",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[1]"#),
            "input \"x\": it has neither",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[-1],"data":[1]"#),
            "a dimension",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[1.5],"data":[1]"#),
            "a dimension",
        ),
        (
            input(r#""name":"x","datatype":"FP32","shape":[1,1,1,1,1,1,1,1,1],"data":[1]"#),
            "input \"x\": its shape has more than 8",
        ),
        (
            input(r#""parameters":{"shared_memory_region":"r"},"name":"x""#),
            "input \"x\": parameter shared_memory_region",
        ),
        (
            input(
                r#""name":"x","datatype":"FP32","shape":[1],"data":[1],"parameters":{"binary_data_size":4}"#,
            ),
            "input \"x\": it has both",
        ),
        (
            input(
                r#""name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4.0}"#,
            ),
            "input \"x\": parameter binary_data_size",
        ),
        (
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":-3}}]}"#
                .to_owned(),
            "output \"y\": parameter classification must be a whole number",
        ),
        (input(r#""name":"x","dta":[1]"#), "\"dta\""),
    ] {
        let refusal = refusal(&text, 0);
        assert!(refusal.contains(says), "{text}: {refusal}");
    }
}

#[test]
fn binary_sizes_must_be_the_bytes_that_follow() {
    let text = |size: &str| {
        format!(
            r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"parameters":{{"binary_data_size":{size}}}}}]}}"#
        )
    };
    assert!(InferRequest::parse(text("4").as_bytes(), 4).is_ok());
    assert!(refusal(&text("4"), 5).contains("5 bytes follow"));
    assert!(refusal(&text("18446744073709551615"), 4).contains("18446744073709551615"));
    assert!(refusal(&text("18446744073709551616"), 4).contains("binary_data_size"));
    let two = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":18446744073709551615}},
        {"name":"z","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}"#;
    assert!(refusal(two, 3).contains("absurd"));
}

proptest! {
    #[test]
    fn any_bytes_are_taken_or_refused_in_peace(text in proptest::collection::vec(any::<u8>(), 0..300), binary in any::<usize>()) {
        let _ = InferRequest::parse(&text, binary);
    }

    #[test]
    fn almost_right_requests_are_taken_or_refused_in_peace(
        cut in 0usize..200, insert in "[\\[\\]{},:\"0-9a-z.]{0,3}",
    ) {
        let mut text = r#"{"id":"1","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[[1,2]]},{"name":"b","shape":[4],"datatype":"INT8","parameters":{"binary_data_size":4}}]}"#.to_owned();
        let at = cut.min(text.len());
        text.insert_str(at, &insert);
        if let Ok(request) = InferRequest::parse(text.as_bytes(), 4) {
            for input in request.inputs {
                if let Content::Json(range) = input.content {
                    prop_assert!(text.as_bytes().get(range).is_some());
                }
            }
        }
    }
}
