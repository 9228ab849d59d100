//! A version that grows while requests wait, and shrinks when they don't.

use edgeward_agent::worker::cpu::usable_cores;

use crate::support::*;

fn interpreters(device: &Device) -> usize {
    device.engine.models()[0].instances
}

#[tokio::test]
async fn a_version_has_more_interpreters_while_requests_wait_and_the_least_when_they_do_not() {
    if usable_cores(0) < 2 {
        return;
    }
    let device = Device::with(|config| {
        let settings = config.models.entry("digits".parse().expect("name"));
        let settings = settings.or_default();
        (settings.min_instances, settings.max_instances) = (Some(1), Some(2));
        // A third core is no use: there are requests for two at most.
        config.tflite.cores = 2;
    });
    let version = device.package("digits-1.0.0", |manifest, _| with_room(manifest));
    device.serve(&version).await;
    assert_eq!(interpreters(&device), 1);
    let pid = device.pid();
    let mut grown = false;
    for _ in 0..50 {
        let asked = [0.1, 0.2, 0.3].map(|value| device.slow_request(value));
        for request in asked {
            request.await.expect("join").expect("answer");
        }
        grown = interpreters(&device) == 2;
        if grown {
            break;
        }
    }
    assert!(grown, "requests waited, and nothing came");
    until("there is one again", || interpreters(&device) == 1).await;
    let (input, output) = golden("digits-1.0.0");
    let answer = ask(&device.engine, "digits", &input).await;
    assert!(close(&answer.expect("answer"), &output));
    assert_eq!(device.pid(), pid, "the same worker all the time");
}

#[tokio::test]
async fn nobody_grows_on_cores_that_are_anothers() {
    let device = Device::with(|config| {
        let settings = config.models.entry("digits".parse().expect("name"));
        let settings = settings.or_default();
        (settings.min_instances, settings.max_instances) = (Some(1), Some(2));
        config.tflite.cores = 1;
    });
    let version = device.package("digits-1.0.0", |manifest, _| with_room(manifest));
    device.serve(&version).await;
    for _ in 0..3 {
        let asked = [0.1, 0.2, 0.3].map(|value| device.slow_request(value));
        for request in asked {
            request.await.expect("join").expect("answer");
            assert_eq!(interpreters(&device), 1);
        }
    }
}
