//! A body for the refusals that the HTTP library writes by itself.
//!
//! What is so broken that no request can be made out of it never reaches our code: hyper answers it with a
//! head of its own and no body, and ends the connection. Callers are promised one error shape, so
//! [`spelled_out`] finds such a head among the bytes to be written and says the same with words. Answers of
//! ours are never mistaken for one, since each names its content type and none of these does.

use hyper::StatusCode;

use super::error;

/// The longest head that the library writes without headers of ours.
const MAX_HEAD: usize = 256;

/// The refusal that `written` is, with a body. `None`: it is something else.
pub fn spelled_out(written: &[u8]) -> Option<Vec<u8>> {
    let rest = written.strip_prefix(b"HTTP/1.1 4")?;
    if rest.len() > MAX_HEAD || !rest.ends_with(b"\r\n\r\n") {
        return None;
    }
    let head = std::str::from_utf8(rest).ok()?.to_ascii_lowercase();
    let bare = head.contains("\r\ncontent-length: 0\r\n") && !head.contains("\r\ncontent-type:");
    let status: u16 = head.get(..2)?.parse().ok()?;
    let status = StatusCode::from_u16(400 + status).ok().filter(|_| bare)?;
    let text = match status {
        StatusCode::URI_TOO_LONG => "the path is longer than this server takes",
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            "the request has more or longer headers than this server takes"
        }
        _ => "this is no request in HTTP/1.1 or HTTP/2 that can be understood",
    };
    let body = error::body(text);
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    Some([head, body].concat().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_without_a_body_is_spelled_out() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\
            date: Wed, 25 Nov 2026 06:00:00 GMT\r\n\r\n";
        let said = String::from_utf8(spelled_out(bare).expect("a refusal")).expect("text");
        let (head, body) = said.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"));
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
        let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert!(json["error"].as_str().expect("text").contains("headers"));
        for other in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\nx",
            b"HTTP/1.1 4",
            b"",
        ] {
            assert_eq!(spelled_out(other), None);
        }
    }
}
