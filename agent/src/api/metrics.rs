//! GET `/metrics`: for Prometheus and whoever reads its formats.
//!
//! The text format 0.0.4 unless `Accept` prefers OpenMetrics 1.0.0, as Prometheus's own does.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::{self, HeaderMap, HeaderValue};

use crate::watch::metrics::Metrics;
use crate::watch::page::Form;

const OPEN_METRICS: &str = "application/openmetrics-text";

pub fn answer(metrics: &Metrics, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let form = wanted(headers);
    let mut response = Response::new(Full::new(Bytes::from(metrics.text(form))));
    let content_type = HeaderValue::from_static(form.content_type());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    response
}

/// The form that is preferred (RFC 9110, section 12.5.1). OpenMetrics only by its name, and if nothing is liked better.
fn wanted(headers: &HeaderMap) -> Form {
    let (mut open, mut plain) = (0.0, 0.0);
    let values = headers.get_all(header::ACCEPT).iter();
    let ranges = values.filter_map(|value| value.to_str().ok());
    for range in ranges.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
        let quality: f32 = quality.unwrap_or(1.0);
        if kind.eq_ignore_ascii_case(OPEN_METRICS) {
            open = quality;
        } else if ["text/plain", "text/*", "*/*"].contains(&kind) {
            plain = quality.max(plain);
        }
    }
    if open > 0.0 && open >= plain {
        Form::OpenMetrics
    } else {
        Form::Prometheus
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_those_who_prefer_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, form) in [
            (None, Form::Prometheus),
            (Some("*/*"), Form::Prometheus),
            (Some("text/html, */*;q=0.1"), Form::Prometheus),
            (Some(prometheus), Form::OpenMetrics),
            (Some("application/openmetrics-text"), Form::OpenMetrics),
            (Some("application/openmetrics-text;q=0"), Form::Prometheus),
            (
                Some("text/plain, application/openmetrics-text; q=0.9"),
                Form::Prometheus,
            ),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(wanted(&headers), form, "{accept:?}");
        }
    }
}
