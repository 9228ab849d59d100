//! How fast one caller may ask, whatever protocol it speaks; others do not feel it.

use std::time::Duration;

use edgeward_agent::config::{Config, Rate};
use edgeward_agent::watch::page::{Form, Page};
use serde_json::json;

use crate::device::{Device, INFER, golden};

fn slow(config: &mut Config) {
    config.caller_rates.each = Some(Rate {
        requests_per_second: 1,
        burst: 3,
    });
}

/// The name of this very user in the configuration.
fn own_name() -> String {
    format!("uid:{}", rustix::process::getuid().as_raw())
}

#[tokio::test]
async fn a_caller_that_asks_too_fast_is_429_until_it_has_waited_and_may_ask_what_is_no_inference() {
    let device = Device::serving_changed("digits-1.0.0", slow, |_| {}).await;
    let (image, _) = golden("digits-1.0.0");
    let input = json!({"name": "image", "datatype": "FP32", "shape": [1, 8, 8, 1], "data": image});
    let body = json!({"inputs": [input]}).to_string();
    let predict = json!({"inputs": {"image": [vec![vec![[0.5]; 8]; 8]]}}).to_string();
    let mut client = device.client().await;
    let mut answered = 0;
    let refused = loop {
        assert!(answered < 50, "nobody stops it");
        // One bucket for both protocols.
        let reply = match answered % 2 {
            0 => client.post(INFER, &body).await,
            _ => client.post("/v1/models/digits:predict", &predict).await,
        };
        if reply.status == 429 {
            break reply;
        }
        assert_eq!(reply.status, 200, "{}", reply.error());
        answered += 1;
    };
    assert!(answered >= 3, "{answered}");
    assert!(refused.error().contains(&own_name()), "{}", refused.error());
    assert!(
        refused.error().contains("1 times a second"),
        "{}",
        refused.error()
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    // The same connection, and the same caller.
    assert_eq!(client.get("/v2/health/ready").await.status, 200);
    let line = format!(
        "edgeward_caller_refusals_total{{caller=\"{}\"}} 1\n",
        own_name()
    );
    let mut page = Page::new(Form::Prometheus);
    device.recorder.write_metrics(&mut page);
    let page = page.finish();
    assert!(page.contains(&line), "{page}");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(client.post(INFER, &body).await.status, 200);
    device.close().await;
}

#[tokio::test]
async fn a_caller_that_is_named_has_a_rate_of_its_own() {
    let own = |config: &mut Config| {
        slow(config);
        let rate = Rate {
            requests_per_second: 1000,
            burst: 1000,
        };
        config.caller_rates.named.insert(own_name(), rate);
    };
    let device = Device::serving_changed("digits-1.0.0", own, |_| {}).await;
    let mut client = device.client().await;
    for _ in 0..20 {
        // Wrong in itself, and asked all the same.
        assert_eq!(client.post(INFER, "{}").await.status, 400);
    }
    device.close().await;
}
