//! Text into tensors, tensors into text: what is taken, what comes back.

use super::*;
use proptest::prelude::*;

fn read_f32(text: &str, count: usize) -> Result<Vec<f32>, DataError> {
    let mut out = vec![0; count * 4];
    read(Datatype::Fp32, text.as_bytes(), &mut out)?;
    Ok(out
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("four")))
        .collect())
}

fn read_one(datatype: Datatype, text: &str) -> Result<Vec<u8>, DataError> {
    let mut out = vec![0; datatype.size().unwrap_or(1)];
    read(datatype, format!("[{text}]").as_bytes(), &mut out).map(|()| out)
}

#[test]
fn flat_and_nested_data_mean_the_same() {
    let flat = read_f32("[1, 2.5,-3e2 , 0]", 4).expect("flat");
    let nested = read_f32("[[1,2.5],\n[-3E+2,0.0]]", 4).expect("nested");
    assert_eq!(flat, [1.0, 2.5, -300.0, 0.0]);
    assert_eq!(flat, nested);
}

#[test]
fn what_is_not_a_json_number_is_refused_by_its_place() {
    for wrong in [
        "01", "+1", "1.", ".5", "1e", "NaN", "Infinity", "\"1\"", "null", "true", "0x1", "--1",
        "1.e3", "-", "1_0", "é",
    ] {
        let error = read_f32(&format!("[7,{wrong}]"), 2).expect_err(wrong);
        assert!(
            matches!(
                error,
                DataError::Element { element: 1, .. } | DataError::Form { element: 2, .. }
            ),
            "{wrong}: {error}"
        );
    }
}

#[test]
fn the_array_must_be_whole_and_of_the_right_length() {
    for wrong in [
        "", "[", "[1", "[1,", "[1,2", "[1,2]]", "[1,2],", "[,1]", "[1,,2]", "[1,]", "1", "[1 2]",
    ] {
        assert!(read_f32(wrong, 2).is_err(), "{wrong:?} was taken");
    }
    assert_eq!(
        read_f32("[1]", 2),
        Err(DataError::TooFew {
            found: 1,
            expected: 2
        })
    );
    assert_eq!(
        read_f32("[1,2,3]", 2),
        Err(DataError::TooMany { expected: 2 })
    );
    assert_eq!(read_f32("[[],[1,2],[]]", 2), Ok(vec![1.0, 2.0]));
    assert_eq!(read_f32(&"[".repeat(100_000), 2), Err(DataError::Depth));
}

#[test]
fn integers_are_whole_and_in_range() {
    assert_eq!(read_one(Datatype::Int8, "-128"), Ok(vec![0x80]));
    assert_eq!(read_one(Datatype::Int8, "-0"), Ok(vec![0]));
    assert_eq!(
        read_one(Datatype::Uint64, "18446744073709551615"),
        Ok(vec![0xff; 8])
    );
    assert_eq!(
        read_one(Datatype::Int64, "-9223372036854775808"),
        Ok(vec![0, 0, 0, 0, 0, 0, 0, 0x80])
    );
    for (datatype, text) in [
        (Datatype::Int8, "128"),
        (Datatype::Int8, "-129"),
        (Datatype::Uint8, "-1"),
        (Datatype::Uint8, "256"),
        (Datatype::Uint64, "18446744073709551616"),
        (Datatype::Int64, "9223372036854775808"),
        (Datatype::Int64, "99999999999999999999999999"),
        (Datatype::Fp32, "1e39"),
        (Datatype::Fp32, "-3.5e38"),
        (Datatype::Fp64, "1e309"),
        (Datatype::Fp64, "1e999999999999"),
    ] {
        assert!(
            matches!(
                read_one(datatype, text),
                Err(DataError::Range { element: 0, .. })
            ),
            "{text} was taken as {datatype:?}"
        );
    }
    for text in ["1.0", "1e2", "true", "01"] {
        assert!(read_one(Datatype::Int32, text).is_err(), "{text}");
    }
}

#[test]
fn sixty_four_bits_come_back_exactly_and_never_as_floats() {
    for value in [
        i64::MIN,
        i64::MIN + 1,
        -9007199254740993,
        9007199254740993,
        i64::MAX,
    ] {
        let text = format!("[{value}]");
        let mut out = [0; 8];
        read(Datatype::Int64, text.as_bytes(), &mut out).expect("read");
        assert_eq!(i64::from_le_bytes(out), value);
        let mut written = Vec::new();
        write(Datatype::Int64, &out, &mut written).expect("written");
        assert_eq!(String::from_utf8(written).expect("text"), text);
    }
    let text = format!("[{}]", u64::MAX - 1);
    let mut out = [0; 8];
    read(Datatype::Uint64, text.as_bytes(), &mut out).expect("read");
    assert_eq!(u64::from_le_bytes(out), u64::MAX - 1);
}

#[test]
fn odd_floats_are_what_they_say_or_refused() {
    let digits = format!("1{}", "0".repeat(30_000));
    let fraction = format!("0.{}1e30000", "0".repeat(29_999));
    for (text, value) in [
        ("-0", Some(-0.0f32)),
        ("-0.0e5", Some(-0.0)),
        ("1E2", Some(100.0)),
        ("1e+2", Some(100.0)),
        ("100e-2", Some(1.0)),
        ("0e999999999999", Some(0.0)),
        ("1e-999999999999", Some(0.0)),
        ("1e-46", Some(0.0)),
        ("1e-45", Some(f32::from_bits(1))),
        ("340282346638528859811704183484516925440", Some(f32::MAX)),
        (&fraction, Some(1.0)),
        (&digits, None),
        ("3.5e38", None),
        ("1e999999999999", None),
    ] {
        let read = read_f32(&format!("[{text}]"), 1);
        let shown = &text[..text.len().min(40)];
        match value {
            Some(value) => {
                assert_eq!(read.expect(shown)[0].to_bits(), value.to_bits(), "{shown}");
            }
            None => assert!(matches!(read, Err(DataError::Range { .. })), "{shown}"),
        }
    }
    let error = read_f32("[1,NaN]", 2).expect_err("NaN").to_string();
    assert!(
        error.contains("element 1") && error.contains("binary"),
        "{error}"
    );
}

#[test]
fn booleans_are_words() {
    assert_eq!(read_one(Datatype::Bool, "true"), Ok(vec![1]));
    assert_eq!(read_one(Datatype::Bool, "false"), Ok(vec![0]));
    assert!(read_one(Datatype::Bool, "1").is_err());
}

#[test]
fn strings_are_json_strings_in_utf_8() {
    let text = r#"["plain", ["\u00e9\n\"", ""], "\u0000", "é\ud83d\ude00"]"#;
    let bytes = read_strings(text.as_bytes(), 5).expect("strings");
    let elements: Result<Vec<&[u8]>, _> = strings::elements(&bytes).collect();
    let expected = ["plain", "é\n\"", "", "\0", "é😀"].map(str::as_bytes);
    assert_eq!(elements.expect("whole"), expected);
    let mut written = Vec::new();
    write(Datatype::Bytes, &bytes, &mut written).expect("text");
    let back: Vec<String> = serde_json::from_slice(&written).expect("JSON");
    assert_eq!(
        back.iter().map(String::as_bytes).collect::<Vec<_>>(),
        expected
    );

    for wrong in [
        "7",
        "null",
        "true",
        "{}",
        r#""\ud83d""#,
        r#""\x""#,
        "\"a\nb\"",
    ] {
        let error = read_strings(format!("[\"a\",{wrong}]").as_bytes(), 2).expect_err(wrong);
        assert!(
            matches!(error, DataError::Element { element: 1, .. }),
            "{wrong}: {error}"
        );
    }
    assert!(read_strings(b"[\"\xff\"]", 1).is_err());
    assert_eq!(
        read_strings(br#"["a"]"#, 2),
        Err(DataError::TooFew {
            found: 1,
            expected: 2
        })
    );
    assert_eq!(
        read_strings(br#"["a","b"]"#, 1),
        Err(DataError::TooMany { expected: 1 })
    );
    assert!(read_strings(br#"["a"]x"#, 1).is_err());
}

#[test]
fn bytes_that_are_not_utf_8_have_no_json() {
    let mut bytes = Vec::new();
    for (number, string) in [&b"text"[..], b"\xff\xfe"].into_iter().enumerate() {
        strings::push(&mut bytes, number, string).expect("short");
    }
    let refused = NoJson {
        element: 1,
        expected: "UTF-8",
    };
    assert_eq!(
        write(Datatype::Bytes, &bytes, &mut Vec::new()),
        Err(refused)
    );
}

#[test]
fn half_precision_is_rounded_to_the_nearest_and_reads_back_as_it_was() {
    for (text, bits) in [
        ("1", 0x3c00u16),
        ("-0.1", 0xae66),
        ("65504", 0x7bff),
        ("65519.9", 0x7bff),
        ("5.960464477539063e-8", 0x0001),
        ("1e-9", 0x0000),
        ("2049", 0x6800),
    ] {
        let read = read_one(Datatype::Fp16, text).expect(text);
        assert_eq!(read, bits.to_le_bytes(), "{text}");
    }
    for text in ["65520", "-1e5", "1e400"] {
        let read = read_one(Datatype::Fp16, text);
        assert!(matches!(read, Err(DataError::Range { .. })), "{text}");
    }
    for bits in 0..=u16::MAX {
        let mut out = Vec::new();
        let written = write(Datatype::Fp16, &bits.to_le_bytes(), &mut out);
        assert_eq!(written.is_ok(), f16::from_bits(bits).is_finite());
        if written.is_ok() {
            let mut back = [0; 2];
            read(Datatype::Fp16, &out, &mut back).expect("own text");
            assert_eq!(u16::from_le_bytes(back), bits);
        }
    }
}

#[test]
fn outputs_are_written_shortest_and_non_finite_ones_are_not_written() {
    let mut out = Vec::new();
    let bytes: Vec<u8> = [0.1f32, 1.0, -2.5e-30]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    write(Datatype::Fp32, &bytes, &mut out).expect("finite");
    assert_eq!(String::from_utf8(out).expect("text"), "[0.1,1.0,-2.5e-30]");
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let bytes: Vec<u8> = [0f32, wrong].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(
            write(Datatype::Fp32, &bytes, &mut Vec::new()),
            Err(NoJson {
                element: 1,
                expected: "a finite number"
            })
        );
    }
}

#[test]
fn halfway_cases_round_like_the_standard_library() {
    for text in [
        "16777217",
        "16777219",
        "1.00000005960464477539",
        "1.000000059604644775390625",
        "1.000000059604644775390624",
        "1.000000178813934326171875",
        "3.4028235e38",
        "3.4028235677973366e38",
        "1.1754943e-38",
        "1e-45",
        "7e-46",
        "1.401298464324817e-45",
        "0.9364840984344482",
        "9007199254740993",
        "0.000000000000000000000000000000000000011754944",
    ] {
        let standard: Result<f32, _> = text.parse();
        let ours = read_f32(&format!("[{text}]"), 1);
        match standard {
            Ok(value) if value.is_finite() => {
                assert_eq!(ours.expect(text)[0].to_bits(), value.to_bits(), "{text}");
            }
            _ => assert!(ours.is_err(), "{text}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_decimal_reads_like_the_standard_library(text in "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,22})?([eE][+-]?[0-9]{1,2})?") {
        let array = format!("[{text}]");
        let standard: f32 = text.parse().expect("a number");
        match read_f32(&array, 1) {
            Ok(ours) => prop_assert_eq!(ours[0].to_bits(), standard.to_bits(), "{}", text),
            Err(_) => prop_assert!(standard.is_infinite(), "{} was refused", text),
        }
        let standard: f64 = text.parse().expect("a number");
        let mut out = [0; 8];
        read(Datatype::Fp64, array.as_bytes(), &mut out).expect("in range");
        prop_assert_eq!(u64::from_le_bytes(out), standard.to_bits(), "{}", text);
    }

    #[test]
    fn every_float_comes_back_as_it_was(bits in any::<u32>(), wide in any::<u64>()) {
        let value = f32::from_bits(bits);
        let mut text = Vec::new();
        if write(Datatype::Fp32, &value.to_le_bytes(), &mut text).is_ok() {
            let mut out = [0; 4];
            read(Datatype::Fp32, &text, &mut out).expect("own text");
            prop_assert_eq!(u32::from_le_bytes(out), bits);
            // Python writes an FP32 as the double of the same value.
            let widened = format!("[{}]", f64::from(value));
            read(Datatype::Fp32, widened.as_bytes(), &mut out).expect("widened");
            prop_assert_eq!(u32::from_le_bytes(out), bits);
        } else {
            prop_assert!(!value.is_finite());
        }
        let mut text = Vec::new();
        if write(Datatype::Fp64, &wide.to_le_bytes(), &mut text).is_ok() {
            let mut out = [0; 8];
            read(Datatype::Fp64, &text, &mut out).expect("own text");
            prop_assert_eq!(u64::from_le_bytes(out), wide);
        }
    }

    #[test]
    fn any_bytes_are_taken_or_refused_in_peace(text in proptest::collection::vec(any::<u8>(), 0..200), count in 0usize..8) {
        for datatype in [Datatype::Bool, Datatype::Int8, Datatype::Uint64, Datatype::Fp16, Datatype::Fp32, Datatype::Fp64, Datatype::Bytes] {
            let mut out = vec![0; count * datatype.size().unwrap_or(1)];
            let _ = read(datatype, &text, &mut out);
        }
        let _ = read_strings(&text, count);
    }

    #[test]
    fn every_string_comes_back_as_it_was(all in proptest::collection::vec(any::<String>(), 0..6)) {
        let text = serde_json::to_vec(&all).expect("JSON");
        let bytes = read_strings(&text, all.len()).expect("strings");
        let mut written = Vec::new();
        write(Datatype::Bytes, &bytes, &mut written).expect("UTF-8");
        let back: Vec<String> = serde_json::from_slice(&written).expect("JSON");
        prop_assert_eq!(back, all);
    }

    #[test]
    fn strings_that_are_taken_are_json(text in r#"[\[\], "\\ua0d8]{0,16}"#, count in 0usize..3) {
        if read_strings(text.as_bytes(), count).is_ok() {
            let value: Result<serde_json::Value, _> = serde_json::from_str(&text);
            prop_assert!(value.is_ok(), "{} is not JSON", text);
        }
    }

    #[test]
    fn what_is_taken_is_json(text in "[\\[\\], 0-9.eE+-]{0,24}") {
        let mut out = [0; 8];
        if read(Datatype::Fp32, text.as_bytes(), &mut out).is_ok() {
            let value: Result<serde_json::Value, _> = serde_json::from_str(&text);
            prop_assert!(value.is_ok(), "{} is not JSON", text);
        }
    }
}
