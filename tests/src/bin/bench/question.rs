//! What a case asks: one fixed request to one model, and a check of the answer against the bare interpreter's.

use serde_json::{Value, json};

use crate::client::Connection;

/// How tensors travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Binary,
    Json,
}

/// A model of the benchmark. All have one float32 input and one float32 output.
pub struct Model {
    pub name: &'static str,
    pub input: &'static str,
    pub shape: &'static [i32],
}

impl Model {
    /// Always the same values, from -1 to 1, without a pattern (xorshift64*).
    pub fn values(&self) -> Vec<f32> {
        let count = self.shape.iter().map(|&d| d as usize).product();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::iter::repeat_with(|| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let random = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
            random as f32 / (1 << 23) as f32 - 1.0
        })
        .take(count)
        .collect()
    }

    /// The values as the interpreter reads them.
    pub fn bytes(&self) -> Vec<u8> {
        self.values().iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// A whole HTTP request.
    pub fn request(&self, encoding: Encoding, token: Option<&str>) -> Vec<u8> {
        let (header, tensors) = match encoding {
            Encoding::Binary => {
                let bytes = self.bytes();
                let input = json!({"name": self.input, "shape": self.shape, "datatype": "FP32",
                    "parameters": {"binary_data_size": bytes.len()}});
                let header = json!({"inputs": [input], "parameters": {"binary_data_output": true}});
                (header.to_string(), bytes)
            }
            Encoding::Json => {
                let input = json!({"name": self.input, "shape": self.shape, "datatype": "FP32",
                    "data": self.values()});
                (json!({"inputs": [input]}).to_string(), Vec::new())
            }
        };
        let mut head = format!(
            "POST /v2/models/{}/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n",
            self.name,
            header.len() + tensors.len()
        );
        if encoding == Encoding::Binary {
            head += &format!(
                "content-type: application/octet-stream\r\ninference-header-content-length: {}\r\n",
                header.len()
            );
        } else {
            head += "content-type: application/json\r\n";
        }
        if let Some(token) = token {
            head += &format!("authorization: Bearer {token}\r\n");
        }
        [head.as_bytes(), b"\r\n", header.as_bytes(), &tensors].concat()
    }
}

/// Panics unless the last answer on `connection` is the bare interpreter's own.
pub fn check_answer(connection: &Connection, encoding: Encoding, expected: &[u8]) {
    let expected = floats(expected);
    let body = connection.body();
    let answer: Vec<f32> = match encoding {
        Encoding::Binary => {
            let header = connection.header("inference-header-content-length");
            floats(&body[header.expect("the length of the JSON header")..])
        }
        Encoding::Json => {
            let answer: Value = serde_json::from_slice(body).expect("JSON");
            let data = answer["outputs"][0]["data"].as_array().expect("data");
            data.iter()
                .filter_map(|v| v.as_f64().map(|v| v as f32))
                .collect()
        }
    };
    assert_eq!(answer.len(), expected.len(), "another number of values");
    let largest = expected.iter().fold(1.0_f32, |a, b| a.max(b.abs()));
    for (a, b) in answer.iter().zip(&expected) {
        assert!((a - b).abs() <= 1e-5 * largest, "{a} instead of {b}");
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let chunks = bytes.chunks_exact(4);
    chunks
        .map(|c| f32::from_le_bytes(c.try_into().expect("four bytes")))
        .collect()
}
