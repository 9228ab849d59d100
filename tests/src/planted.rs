//! Patterns that are planted in requests, and the forms in which they might leave.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Something that must not be found.
pub struct Pattern {
    name: String,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Pattern {
    /// Neighbouring numbers of a tensor.
    pub fn of_numbers(numbers: [f32; 2]) -> Self {
        let little = numbers.map(f32::to_le_bytes).concat();
        let big = numbers.map(f32::to_be_bytes).concat();
        let wide = numbers.map(|n| f64::from(n).to_le_bytes()).concat();
        let mut forms = vec![("decimal", numbers[0].to_string().into_bytes())];
        for (name, bytes) in [
            ("little-endian", little),
            ("big-endian", big),
            ("64 bits", wide),
        ] {
            forms.extend(encodings(name, bytes));
        }
        Self {
            name: format!("{numbers:?}"),
            forms,
        }
    }

    pub fn of_text(text: &str) -> Self {
        let wide = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut forms = encodings("text", text.as_bytes().to_vec());
        forms.extend(encodings("UTF-16", wide));
        Self {
            name: text.to_owned(),
            forms,
        }
    }

    /// The form in which it stands in these bytes.
    pub fn found_in(&self, bytes: &[u8]) -> Option<String> {
        let contains = |form: &[u8]| bytes.windows(form.len()).any(|window| window == form);
        let (form, _) = self.forms.iter().find(|(_, form)| contains(form))?;
        Some(format!("{} as {form}", self.name))
    }
}

/// The bytes themselves, in hexadecimal digits, and in base64 wherever they may begin in it.
fn encodings(name: &'static str, bytes: Vec<u8>) -> Vec<(&'static str, Vec<u8>)> {
    let hex = hex::encode(&bytes);
    let mut forms = vec![
        (name, hex.to_uppercase().into_bytes()),
        (name, hex.into_bytes()),
    ];
    for shift in 0..3 {
        let shifted = [&[0; 2][..shift.min(2)], &bytes].concat();
        let text = BASE64_STANDARD.encode(&shifted);
        // Characters that hold bits of a neighbour are left out.
        let begin = (shift * 8).div_ceil(6);
        let end = shifted.len() * 8 / 6;
        forms.push((name, text.as_bytes()[begin..end].to_vec()));
    }
    forms.push((name, bytes));
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_pattern_is_found_and_nothing_in_noise() {
        let numbers = [41.125_f32, -7.5];
        let (pattern, text) = (Pattern::of_numbers(numbers), Pattern::of_text("Jane Doe"));
        let little = numbers.map(f32::to_le_bytes).concat();
        let big = numbers.map(f32::to_be_bytes).concat();
        for before in 0..4 {
            let around = |bytes: &[u8]| [&vec![9; before][..], bytes, &[9]].concat();
            for found in [
                around(&little),
                around(&big),
                BASE64_STANDARD.encode(around(&little)).into_bytes(),
                hex::encode(around(&big)).into_bytes(),
                b"[1.0, 41.125, -7.5]".to_vec(),
            ] {
                assert!(pattern.found_in(&found).is_some(), "{before} {found:?}");
            }
            let encoded = BASE64_STANDARD.encode(around(b"Jane Doe"));
            assert!(text.found_in(encoded.as_bytes()).is_some(), "{before}");
        }
        let noise: Vec<u8> = (0..50_000_u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        assert_eq!(pattern.found_in(&noise), None);
        assert_eq!(text.found_in(&noise), None);
    }
}
