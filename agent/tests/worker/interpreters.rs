//! More and fewer interpreters while requests are answered.

use std::time::{Duration, Instant};

use edgeward_agent::worker::Worker;
use futures::future::join_all;

use crate::support::{MINUTE, infer, sample, spawner, start_plugin, until};

/// Interpreter threads that the process really has.
fn threads(worker: &Worker) -> usize {
    let tasks = format!("/proc/{}/task", worker.facts().pid);
    let tasks = std::fs::read_dir(tasks).expect("tasks").flatten();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    let names = tasks.filter_map(|task| name(task).ok());
    names
        .filter(|name| name.starts_with("interpreter-"))
        .count()
}

#[tokio::test]
async fn interpreters_come_and_go_while_every_request_gets_its_answer() {
    let sample = sample("digits-1.0.0");
    for delegate in ["builtin", "xnnpack"] {
        let mut spec = sample.spec(delegate);
        spec.slots = 16;
        let worker = Worker::start(&spawner(), spec).await.expect("start");
        // They are built under the last filter too.
        worker.seal().await.expect("seal");
        // A thread takes its name when it first runs.
        until("the first one to run", || threads(&worker) == 1).await;
        for wanted in [3, 1, 4, 2, 5, 1] {
            worker.set_interpreters(wanted).await.expect("told");
            let vectors = sample.golden.vectors.len();
            let asked = (0..100).map(async |number| {
                let vector = number % vectors;
                let answer = infer(&worker, &sample.inputs(vector, 1), MINUTE).await;
                sample.assert_golden(&answer.expect("answer"), vector, 1);
            });
            join_all(asked).await;
            until("as many as were asked for", || threads(&worker) == wanted).await;
        }
        worker.set_interpreters(0).await.expect("told");
        let answer = infer(&worker, &sample.inputs(0, 1), MINUTE).await;
        sample.assert_golden(&answer.expect("answer"), 0, 1);
        assert_eq!(threads(&worker), 1, "the last one stays");
    }
}

#[tokio::test]
async fn several_interpreters_run_at_the_same_time() {
    let worker = start_plugin(&[("sleep_ms", "200")]).await.expect("start");
    let inputs = sample("digits-1.0.0").inputs(0, 1);
    let four = async || {
        let begun = Instant::now();
        for answer in join_all((0..4).map(|_| infer(&worker, &inputs, MINUTE))).await {
            answer.expect("answer");
        }
        begun.elapsed()
    };
    assert!(four().await >= Duration::from_millis(800));
    worker.set_interpreters(4).await.expect("told");
    until("all are built", || threads(&worker) == 4).await;
    // On a machine that does much else, once in a while.
    let mut fastest = MINUTE;
    for _ in 0..5 {
        fastest = fastest.min(four().await);
    }
    assert!(fastest < Duration::from_millis(800), "{fastest:?}");
}
