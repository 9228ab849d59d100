//! Delegate plugins that refuse, crash and hang: the reason is kept, the agent goes on.

use std::time::Duration;

use edgeward_agent::worker::{Worker, WorkerError};

use crate::support::{plugin, refusal, sample, spawner, start_plugin};

async fn refused(options: &[(&str, &str)]) -> String {
    let mut spec = sample("digits-1.0.0").spec("test-npu");
    spec.profile = Some(plugin(options));
    refusal(spec).await
}

#[tokio::test]
async fn a_plugin_takes_its_nodes_and_they_are_counted() {
    let worker = start_plugin(&[]).await.expect("start");
    assert_eq!(worker.facts().delegated_nodes, worker.facts().total_nodes);
    assert_eq!(worker.facts().sandbox, "enforced");
}

#[tokio::test]
async fn a_plugins_own_words_are_the_reason() {
    let reason = refused(&[("do_create", "refuse")]).await;
    assert!(
        reason.ends_with("it refused to start: no device for create"),
        "{reason}"
    );
    let reason = refused(&[("do_prepare", "refuse")]).await;
    assert!(reason.contains("no device for prepare"), "{reason}");
    let reason = refused(&[("colour", "red")]).await;
    assert!(
        reason.ends_with("it refused to start: unknown option"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_failing_invoke_fails_its_request_and_no_more() {
    let worker = start_plugin(&[("do_invoke", "refuse"), ("from_call", "2")])
        .await
        .expect("start");
    let inputs = sample("digits-1.0.0").inputs(0, 1);
    let minute = crate::support::MINUTE;
    crate::support::infer(&worker, &inputs, minute)
        .await
        .expect("first");
    let failed = crate::support::infer(&worker, &inputs, minute).await;
    assert!(matches!(&failed, Err(WorkerError::Invoke(r)) if r.contains("no device for invoke")));
    assert!(worker.resident_bytes() > 0);
}

#[tokio::test]
async fn a_plugin_that_crashes_while_loading_is_refused_with_the_signal() {
    for (option, place) in [("do_create", "create"), ("do_prepare", "prepare")] {
        let reason = refused(&[(option, "crash")]).await;
        assert!(reason.contains("killed by signal 11 (SIGSEGV)"), "{reason}");
        assert!(
            reason.contains(&format!("about to crash in {place}")),
            "{reason}"
        );
    }
    let reason = refused(&[("do_prepare", "exit")]).await;
    assert!(reason.contains("exited with status 7"), "{reason}");
}

#[tokio::test]
async fn a_plugin_that_hangs_while_loading_is_given_up() {
    let mut spec = sample("digits-1.0.0").spec("test-npu");
    spec.profile = Some(plugin(&[("do_create", "hang")]));
    spec.load_timeout = Duration::from_millis(500);
    let reason = refusal(spec).await;
    assert!(
        reason.contains("loading took longer than 500ms"),
        "{reason}"
    );
}

#[tokio::test]
async fn libraries_that_are_no_plugins_are_refused_by_name() {
    let mut spec = sample("digits-1.0.0").spec("test-npu");
    let mut profile = plugin(&[]);
    profile.library = crate::support::library();
    spec.profile = Some(profile.clone());
    let reason = refusal(spec.clone()).await;
    assert!(
        reason.contains("does not export tflite_plugin_create_delegate"),
        "{reason}"
    );

    let directory = tempfile::tempdir().expect("directory");
    let source = directory.path().join("stable.c");
    std::fs::write(&source, "int TFL_TheStableDelegate = 1;").expect("write");
    profile.library = directory.path().join("libstable.so");
    let compiled = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&profile.library, &source])
        .status();
    assert!(compiled.expect("cc").success());
    spec.profile = Some(profile.clone());
    let reason = refusal(spec.clone()).await;
    assert!(reason.contains("TFL_TheStableDelegate"), "{reason}");

    profile.library = directory.path().join("libmissing.so");
    spec.profile = Some(profile);
    let reason = refusal(spec).await;
    assert!(reason.contains("cannot be loaded"), "{reason}");
}

#[tokio::test]
async fn options_of_the_device_override_those_of_the_manifest() {
    let mut spec = sample("digits-1.0.0").spec("test-npu");
    let own = ("do_create".to_owned(), "crash".to_owned());
    spec.delegate.options.extend([own]);
    spec.profile = Some(plugin(&[("do_create", "nothing")]));
    Worker::start(&spawner(), spec).await.expect("start");
}
