//! Delegates are proven in the manifest's order, and every refusal keeps its reason.

use edgeward_agent::serving::LoadFailure;
use edgeward_models::Version;
use edgeward_models::manifest::Tolerance;

use crate::support::*;

async fn refused(
    device: &Device,
    version: &edgeward_models::package::InstalledVersion,
) -> LoadFailure {
    match device.engine.prepare(version).await {
        Ok(_) => panic!("it was accepted"),
        Err(failure) => failure,
    }
}

#[tokio::test]
async fn a_sample_loads_on_its_first_delegate_and_answers_as_its_golden_vectors_say() {
    let device = Device::new();
    for sample in ["digits-1.0.0", "digits-2.0.0", "breast-cancer-1.0.0"] {
        let version = device.sample(sample);
        let manifest = version.manifest();
        let prepared = device.engine.prepare(&version).await.expect(sample);
        let active = prepared.active_version();
        assert_eq!(active.delegate, manifest.delegates[0].delegate, "{sample}");
        assert!(active.refused_delegates.is_empty());
        device.engine.activate(prepared);
        let (input, output) = golden(sample);
        let answer = ask(&device.engine, manifest.model.as_str(), &input).await;
        assert!(close(&answer.expect(sample), &output), "{sample}");
    }
    device.engine.shutdown().await;
}

#[tokio::test]
async fn integers_and_state_are_proven_too() {
    let device = Device::new();
    for sample in ["digits-int8-1.0.0", "accumulator-1.0.0"] {
        device.serve(&device.sample(sample)).await;
    }
    assert_eq!(device.engine.models().len(), 2);
}

#[tokio::test]
async fn a_delegate_that_the_device_lacks_is_passed_over_with_its_reason_kept() {
    let device = Device::new();
    let version = device.package("digits-1.0.0", |manifest, _| {
        manifest.delegates = vec![choice("npu"), choice("builtin")];
    });
    let prepared = device.engine.prepare(&version).await.expect("builtin");
    let active = prepared.active_version();
    assert_eq!(active.delegate.as_str(), "builtin");
    assert_eq!(active.refused_delegates.len(), 1);
    assert_eq!(active.refused_delegates[0].delegate.as_str(), "npu");
    let reason = &active.refused_delegates[0].reason;
    assert_eq!(reason, "this device has no delegate profile npu");
}

#[tokio::test]
async fn a_delegate_outside_its_own_tolerance_is_refused_and_the_next_one_is_tried() {
    let device = Device::new();
    let version = device.package("digits-1.0.0", |manifest, golden| {
        let strict = Tolerance {
            float: 1e-6,
            integer_steps: 0,
        };
        let loose = Tolerance {
            float: 1e-2,
            integer_steps: 0,
        };
        manifest.delegates = vec![choice("xnnpack"), choice("builtin")];
        manifest.delegates[0].tolerance = strict;
        manifest.delegates[1].tolerance = loose;
        let outputs = golden.vectors[1].outputs.values_mut();
        outputs.for_each(|tensor| tensor.data[7] += 1e-3);
    });
    let prepared = device.engine.prepare(&version).await.expect("builtin");
    let active = prepared.active_version();
    assert_eq!(active.delegate.as_str(), "builtin");
    let reason = &active.refused_delegates[0].reason;
    assert!(
        reason.starts_with("golden vector 2: output \"probabilities\" differs by 1.000e-3"),
        "{reason}"
    );
    assert!(reason.contains("element 7"), "{reason}");
}

#[tokio::test]
async fn a_version_that_answers_wrong_everywhere_is_refused_and_what_serves_goes_on() {
    let device = Device::new();
    device.serve(&device.sample("digits-1.0.0")).await;
    let before = device.pid();
    let wrong = device.package("digits-2.0.0", |manifest, golden| {
        manifest.delegates = vec![choice("xnnpack"), choice("builtin")];
        let outputs = golden.vectors[0].outputs.values_mut();
        outputs.for_each(|tensor| tensor.data[0] += 0.5);
    });
    let failure = refused(&device, &wrong).await;
    assert!(!failure.device_fault);
    assert_eq!(failure.refused.len(), 2);
    for refusal in &failure.refused {
        assert!(failure.reason.contains(&refusal.reason), "{failure}");
        assert!(refusal.reason.contains("golden vector 1"), "{failure}");
    }
    assert_eq!(device.pid(), before);
    let (input, output) = golden("digits-1.0.0");
    let answer = ask(&device.engine, "digits", &input).await.expect("answer");
    assert!(close(&answer, &output));
}

#[tokio::test]
async fn a_delegate_that_takes_too_few_nodes_is_refused_with_both_numbers() {
    let device = Device::new();
    // The delegate leaves the reading and writing of variables to the built-in kernels.
    let version = device.package("accumulator-1.0.0", |manifest, _| {
        manifest.delegates = vec![choice("xnnpack"), choice("builtin")];
        manifest.delegates[0].least_share = 1.0;
        manifest.delegates[1].least_share = 1.0;
    });
    let prepared = device.engine.prepare(&version).await.expect("builtin");
    let active = prepared.active_version();
    assert_eq!(active.delegate.as_str(), "builtin");
    let reason = &active.refused_delegates[0].reason;
    assert!(reason.contains("at least 100 %"), "{reason}");
}

#[tokio::test]
async fn without_golden_vectors_a_delegate_is_measured_against_the_built_in_kernels() {
    let device = Device::new();
    for sample in ["digits-1.0.0", "digits-int8-1.0.0", "breast-cancer-1.0.0"] {
        let version = device.package(sample, |manifest, _| {
            without_golden(manifest);
            manifest.delegates = vec![choice("xnnpack"), choice("builtin")];
            manifest.delegates[0].tolerance.integer_steps = 6;
        });
        let prepared = device.engine.prepare(&version).await.expect(sample);
        let active = prepared.active_version();
        assert_eq!(active.delegate.as_str(), "xnnpack", "{active:?}");
    }
}

/// What a device with this NPU says of it when the built-in kernels take its place.
async fn npu_refusal(options: &[(&str, &str)], golden: bool) -> String {
    let device = Device::with(|config| idle_npu(config, options));
    let version = device.package("digits-1.0.0", |manifest, _| {
        manifest.delegates = vec![choice("npu"), choice("builtin")];
        manifest.invoke_limit_ms = 300;
        if !golden {
            without_golden(manifest);
        }
    });
    let prepared = device.engine.prepare(&version).await.expect("builtin");
    let active = prepared.active_version();
    assert_eq!(active.delegate.as_str(), "builtin");
    active.refused_delegates[0].reason.clone()
}

#[tokio::test]
async fn a_delegate_that_takes_every_node_and_computes_wrong_never_serves() {
    let reason = npu_refusal(&[], true).await;
    assert!(
        reason.starts_with("golden vector 1: output \"probabilities\" differs"),
        "{reason}"
    );
    let reason = npu_refusal(&[], false).await;
    assert!(
        reason.starts_with("generated input 1 of serving_default: output"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_delegate_that_crashes_or_hangs_while_it_proves_itself_is_refused_with_its_last_words() {
    let reason = npu_refusal(&[("do_invoke", "crash")], true).await;
    assert!(reason.contains("SIGSEGV"), "{reason}");
    assert!(reason.contains("about to crash in invoke"), "{reason}");
    let reason = npu_refusal(&[("do_invoke", "hang")], true).await;
    assert!(reason.contains("limit of 300ms"), "{reason}");
    let reason = npu_refusal(&[("do_invoke", "refuse")], true).await;
    assert!(reason.contains("no device for invoke"), "{reason}");
}

#[tokio::test]
async fn a_version_for_a_newer_agent_is_refused_with_what_to_do() {
    let device = Device::new();
    let version = device.package("digits-1.0.0", |manifest, _| {
        manifest.minimum_agent = Version::new(99, 0, 0);
    });
    let failure = refused(&device, &version).await;
    assert!(!failure.device_fault);
    assert!(failure.reason.contains("99.0.0"), "{failure}");
    assert!(failure.reason.contains("update the agent"), "{failure}");
}

#[tokio::test]
async fn a_missing_tflite_library_is_the_devices_fault() {
    let device = Device::with(|config| config.tflite.library = "/nowhere/libtflite.so".into());
    let failure = refused(&device, &device.sample("digits-1.0.0")).await;
    assert!(failure.device_fault, "{failure}");
}

#[tokio::test]
async fn a_manifest_that_does_not_describe_its_model_is_the_versions_fault() {
    let device = Device::new();
    let version = device.package("digits-1.0.0", |manifest, _| {
        without_golden(manifest);
        manifest.signatures[0].inputs[0].shape = vec![1, 7];
    });
    let failure = refused(&device, &version).await;
    assert!(!failure.device_fault, "{failure}");
    assert_eq!(failure.refused.len(), version.manifest().delegates.len());
}
