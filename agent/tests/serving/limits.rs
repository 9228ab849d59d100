//! What a caller may ask, and how fast it is told no.

use std::time::{Duration, Instant};

use edgeward_agent::serving::ServeError;

use crate::support::*;

/// A device with one slot, whose digits take slow batches.
async fn narrow(queue_timeout_ms: u64) -> Device {
    let device = Device::with(|config| {
        config.limits.slots_per_instance = 1;
        config.limits.queue_timeout_ms = queue_timeout_ms;
    });
    let version = device.package("digits-1.0.0", |manifest, _| with_room(manifest));
    device.serve(&version).await;
    device
}

#[tokio::test]
async fn without_a_free_slot_the_answer_is_overloaded_after_the_queue_time() {
    let device = narrow(20).await;
    let slow = device.slow_request(0.5);
    until("the slow request runs", || device.busy()).await;
    let (input, _) = golden("digits-1.0.0");
    let asked = Instant::now();
    match ask(&device.engine, "digits", &input).await {
        Err(ServeError::Overloaded {
            retry_after_seconds,
            ..
        }) => assert!(retry_after_seconds >= 1),
        other => panic!("{other:?}"),
    }
    let waited = asked.elapsed();
    assert!(waited >= Duration::from_millis(20), "{waited:?}");
    assert!(!slow.is_finished(), "the slow request must be slow enough");
    slow.await.expect("join").expect("its answer");
    ask(&device.engine, "digits", &input)
        .await
        .expect("afterwards");
}

#[tokio::test]
async fn the_queue_has_an_end_and_whoever_finds_it_full_does_not_wait() {
    let device = narrow(60_000).await;
    let slow = device.slow_request(0.5);
    until("the slow request runs", || device.busy()).await;
    let (input, _) = golden("digits-1.0.0");
    let mut waiting: Vec<_> = (0..100)
        .map(|_| {
            let (engine, input) = (device.engine.clone(), input.clone());
            tokio::spawn(async move { ask(&engine, "digits", &input).await.map(|_| ()) })
        })
        .collect();
    tokio::task::yield_now().await;
    until("most are refused at once", || {
        waiting.iter().filter(|w| w.is_finished()).count() >= 90
    })
    .await;
    assert!(!slow.is_finished());
    slow.await.expect("join").expect("its answer");
    let mut answered = 0;
    for request in waiting.drain(..) {
        match request.await.expect("join") {
            Ok(()) => answered += 1,
            Err(error) => assert!(matches!(error, ServeError::Overloaded { .. }), "{error}"),
        }
    }
    assert!((1..=10).contains(&answered), "{answered} were let wait");
}

#[tokio::test]
async fn a_deadline_is_kept_while_the_model_runs_and_while_the_request_waits() {
    let device = narrow(60_000).await;
    let images = slow_batch(0.5);
    let asked = Instant::now();
    let late = infer(&device.engine, "digits", &images, Duration::from_millis(50)).await;
    assert!(
        matches!(late, Err(ServeError::Deadline(..=50))),
        "{:?}",
        late.err()
    );
    // Copying the batch into its slot counts too.
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );

    until("the worker is free again", || !device.busy()).await;
    let slow = device.slow_request(0.5);
    until("the slow request runs", || device.busy()).await;
    let (input, _) = golden("digits-1.0.0");
    let late = infer(
        &device.engine,
        "digits",
        &bytes(&input),
        Duration::from_millis(10),
    )
    .await;
    assert!(
        matches!(late, Err(ServeError::Deadline(..=10))),
        "{:?}",
        late.err()
    );
    assert!(!slow.is_finished());
    slow.await.expect("join").expect("its answer");
    let past = infer(&device.engine, "digits", &bytes(&input), Duration::ZERO).await;
    assert!(matches!(past, Err(ServeError::Deadline(_))));
    assert!(
        device.engine.models()[0].ready,
        "no caller can end a worker"
    );
}

#[tokio::test]
async fn wrong_requests_are_named_and_take_nothing_away() {
    let device = narrow(1_000).await;
    let served = device.engine.resolve("digits", None).expect("found");
    let deadline = Instant::now() + PATIENCE;
    let limit = (SLOW_IMAGES * 256) as u64;
    match served.begin(0, limit as usize + 1, deadline).await {
        Err(ServeError::TooLarge {
            needed, limit: l, ..
        }) => {
            assert_eq!((needed, l), (limit + 1, limit));
        }
        _ => panic!("taken"),
    }
    assert!(matches!(
        served.begin(1, 256, deadline).await,
        Err(ServeError::Invalid(_))
    ));
    let mut request = served.begin(0, 256, deadline).await.expect("a slot");
    let error = request
        .input(&[1, 8, 8], 256)
        .map(|_| ())
        .expect_err("rank");
    assert!(error.to_string().contains("image"), "{error}");
    drop(request);
    let request = served.begin(0, 256, deadline).await.expect("a slot");
    let error = request.infer().await.map(|_| ()).expect_err("no input");
    assert_eq!(error.to_string(), "input \"image\" is missing");
    let mut request = served.begin(0, 256, deadline).await.expect("a slot");
    request
        .input(&[1, 8, 8, 1], 256)
        .expect("the only input")
        .fill(0);
    let error = request
        .input(&[1, 8, 8, 1], 256)
        .map(|_| ())
        .expect_err("one more");
    assert!(matches!(error, ServeError::Invalid(_)), "{error}");
    drop(request);
    // The single slot came back each time.
    let (input, _) = golden("digits-1.0.0");
    ask(&device.engine, "digits", &input).await.expect("answer");
    let sample = &device.engine.take_samples()[0];
    assert_eq!((sample.succeeded, sample.refused, sample.failed), (1, 5, 0));
}

#[tokio::test]
async fn a_caller_who_left_is_counted_as_such_and_gives_its_slot_back() {
    let device = narrow(60_000).await;
    let slow = device.slow_request(0.5);
    until("the slow request runs", || device.busy()).await;
    slow.abort();
    assert!(slow.await.is_err());
    let (input, _) = golden("digits-1.0.0");
    ask(&device.engine, "digits", &input).await.expect("answer");
    let text = device.metrics();
    for line in [
        "edgeward_requests_total{model=\"digits\",version=\"1.0.0\",outcome=\"cancelled\"} 1",
        "edgeward_requests_total{model=\"digits\",version=\"1.0.0\",outcome=\"succeeded\"} 1",
        "edgeward_model_ready{model=\"digits\",version=\"1.0.0\"} 1",
        "edgeward_request_seconds_count{model=\"digits\",version=\"1.0.0\"} 1",
        "edgeward_request_seconds_bucket{model=\"digits\",version=\"1.0.0\",le=\"+Inf\"} 1",
        "# TYPE edgeward_invoke_seconds histogram",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
