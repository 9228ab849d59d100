//! A vendor's driver that fails in every way drivers were seen to fail: the next delegate of the manifest serves,
//! or the version is refused, with a reason that an operator understands; the agent never notices.

use std::path::Path;
use std::time::Duration;

use edgeward_models::manifest::DelegateChoice;
use edgeward_tests::package::known;
use edgeward_tests::{Device, Package, Site, plugin, wait};
use serde_json::{Value, json};

/// The delegate's name in manifests and in the device's configuration.
const NPU: &str = "npu";

fn with_delegate(device: &mut Device, library: &Path, more: &str) {
    let profile = format!(
        "[delegates.{NPU}]\nlibrary = \"{}\"\n{more}\n[log]",
        library.display()
    );
    device.configure("[log]", &profile);
}

fn site() -> Site {
    Site::new(|device| with_delegate(device, &plugin::test_delegate(), ""))
}

/// Digits on the NPU with these options, and on the built-in kernels if `fallback`.
fn digits(site: &Site, version: &str, options: &[(&str, &str)], fallback: bool) -> Package {
    let package = site.fleet.package("digits-1.0.0").version(version);
    package.edit(|manifest| {
        let choice = |name: &str| DelegateChoice::new(name.parse().expect("a delegate's name"));
        let mut npu = choice(NPU);
        let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        npu.options = options.iter().map(text).collect();
        npu.least_share = 0.1;
        manifest.delegates = vec![npu];
        if fallback {
            manifest.delegates.push(choice("builtin"));
        }
        manifest.invoke_limit_ms = 500;
    })
}

fn assert_answers(site: &Site) {
    let question = known("digits-1.0.0", 0);
    let answer = site.device.unix().infer("digits", &question.request);
    let answer = answer.expect("an answer").expect_ok().json();
    question.check(&answer).expect("the known answer");
}

/// The reason why the NPU was refused, as the status gives it.
fn refusal(active: &Value) -> &str {
    let refused = &active["refused_delegates"][0];
    assert_eq!(refused["delegate"], NPU, "{active}");
    refused["reason"].as_str().expect("a reason")
}

#[test]
fn a_delegate_that_computes_right_serves_and_its_share_of_the_graph_is_shown() {
    let site = site();
    site.install(digits(&site, "1.0.1", &[("ops", "FULLY_CONNECTED")], true).path());
    let active = site.active("digits");
    assert_eq!(active["delegate"], NPU, "{active}");
    assert_eq!(active["delegated_nodes"], 1, "{active}");
    assert_eq!(active["total_nodes"], 5, "{active}");
    assert_eq!(active["refused_delegates"], json!([]), "{active}");
    assert_answers(&site);
}

/// What the delegate is told to do, and what an operator must be told of it.
type Misbehaviour = (
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
);

#[test]
fn whatever_a_delegate_does_while_it_is_proven_the_next_one_serves_and_the_status_says_why() {
    let mut site = site();
    let cases: &[Misbehaviour] = &[
        (&[("ops", "none")], &["0 of 5 nodes"]),
        (&[("error", "5")], &["golden vector", "probabilities"]),
        (&[("nonsense", "1")], &["no option nonsense"]),
        (&[("fail", "create")], &["the driver was not found"]),
        (&[("fail", "prepare")], &["there is no device"]),
        (
            &[("fail", "kernel-prepare")],
            &["the driver refused a partition"],
        ),
        (&[("fail", "invoke")], &["the device was lost"]),
        (&[("crash", "create")], &["SIGSEGV"]),
        (&[("crash", "prepare")], &["SIGSEGV"]),
        (&[("crash", "kernel-prepare")], &["SIGSEGV"]),
        (&[("crash", "invoke")], &["SIGSEGV"]),
        (&[("crash", "invoke"), ("from_invoke", "3")], &["SIGSEGV"]),
        (&[("hang", "invoke")], &["limit"]),
    ];
    let agent = site.device.pid();
    for (number, (options, words)) in cases.iter().enumerate() {
        let version = format!("1.1.{number}");
        site.install(digits(&site, &version, options, true).path());
        let active = site.active("digits");
        assert_eq!(active["version"], json!(version), "{options:?}: {active}");
        assert_eq!(active["delegate"], "builtin", "{options:?}: {active}");
        let reason = refusal(&active);
        for word in *words {
            assert!(
                reason.contains(word),
                "{options:?}: no {word:?} in {reason:?}"
            );
        }
        assert_answers(&site);
    }
    assert_eq!(site.device.pid(), agent);
    site.device.stop();
}

#[test]
fn a_delegate_that_hangs_while_it_starts_costs_its_load_time_and_no_more() {
    let site = Site::new(|device| {
        with_delegate(device, &plugin::test_delegate(), "");
        device.configure("[tflite]", "[tflite]\nload_timeout_ms = 2000");
    });
    for (number, moment) in ["create", "prepare"].iter().enumerate() {
        let version = format!("1.2.{number}");
        site.install(digits(&site, &version, &[("hang", moment)], true).path());
        let active = site.active("digits");
        assert_eq!(active["delegate"], "builtin", "{moment}: {active}");
        assert!(refusal(&active).contains("longer than 2s"), "{active}");
        assert_answers(&site);
    }
}

#[test]
fn a_library_that_crashes_while_it_is_loaded_is_refused_like_any_other() {
    let library = plugin::test_delegate_that_crashes_on_load();
    let site = Site::new(|device| with_delegate(device, &library, ""));
    site.install(digits(&site, "1.0.1", &[], true).path());
    let active = site.active("digits");
    assert_eq!(active["delegate"], "builtin", "{active}");
    assert!(refusal(&active).contains("SIGSEGV"), "{active}");
    assert_answers(&site);
}

#[test]
fn the_gpu_delegates_own_functions_serve_with_the_manifests_options() {
    let site = Site::new(|device| with_delegate(device, &plugin::test_gpu_delegate(), ""));
    let options = [
        ("inference_priority3", "3"),
        ("experimental_flags", "1099511627776"),
        ("max_delegated_partitions", "7"),
    ];
    site.install(digits(&site, "1.0.1", &options, true).path());
    let active = site.active("digits");
    assert_eq!(active["delegate"], NPU, "{active}");
    assert_eq!(active["delegated_nodes"], 1, "{active}");
    assert_answers(&site);
    for (version, options, word) in [
        ("1.0.2", &options[..2], "refused to start"),
        ("1.0.3", &[("colour", "1")], "no option colour"),
        (
            "1.0.4",
            &[("inference_preference", "fast")],
            "whole numbers",
        ),
    ] {
        site.install(digits(&site, version, options, true).path());
        let active = site.active("digits");
        assert_eq!(active["delegate"], "builtin", "{active}");
        assert!(refusal(&active).contains(word), "{active}");
        assert_answers(&site);
    }
}

#[test]
fn a_stable_delegate_is_refused_by_name() {
    let site = Site::new(|device| with_delegate(device, &plugin::test_stable_delegate(), ""));
    site.install(digits(&site, "1.0.1", &[], true).path());
    let active = site.active("digits");
    assert_eq!(active["delegate"], "builtin", "{active}");
    assert!(
        refusal(&active).contains("TFL_TheStableDelegate"),
        "{active}"
    );
    assert_answers(&site);
}

#[test]
fn a_delegate_that_this_device_does_not_have_is_passed_over_by_name() {
    let site = Site::new(|_| {});
    site.install(digits(&site, "1.0.1", &[], true).path());
    let active = site.active("digits");
    assert_eq!(active["delegate"], "builtin", "{active}");
    assert!(refusal(&active).contains(NPU), "{active}");
}

#[test]
fn a_version_that_no_delegate_can_run_is_refused_and_the_one_before_serves_on() {
    let site = site();
    site.install(digits(&site, "1.0.1", &[], true).path());
    for (version, options, word) in [
        ("1.0.2", ("crash", "prepare"), "SIGSEGV"),
        ("1.0.3", ("error", "5"), "golden vector"),
        ("1.0.4", ("fail", "prepare"), "there is no device"),
    ] {
        let package = digits(&site, version, &[options], false);
        site.sign(package.path(), &[]).expect_success();
        let said = site.carry().expect_failure();
        assert!(said.contains(word), "{said}");
        let status = site.device.model_status("digits").expect("a status");
        assert_eq!(status["active"]["version"], "1.0.1", "{status}");
        assert_eq!(status["phase"], "refused", "{status}");
        let reason = status["reason"].as_str().expect("a reason");
        assert!(reason.contains(NPU) && reason.contains(word), "{reason}");
        assert_answers(&site);
    }
}

/// A digits request that no other is like.
fn question(number: usize) -> Value {
    let mut request = known("digits-1.0.0", 0).request;
    request["inputs"][0]["data"][0] = json!(number as f64 / 1000.0);
    request
}

/// Asks until the NPU was put aside; returns the bodies of the failed answers.
fn ask_until_put_aside(site: &Site) -> Vec<String> {
    let mut client = site.device.unix();
    let mut other = site.device.unix();
    let mut failures = Vec::new();
    let mut number = 0;
    wait::until(
        "the delegate to be put aside",
        Duration::from_secs(90),
        || {
            for _ in 0..10 {
                number += 1;
                let answer = client
                    .infer("digits", &question(number))
                    .map_err(|e| e.to_string())?;
                if answer.status != 200 {
                    assert!(
                        // 400: the batch is the caller's choice, and may be what the model cannot do.
                        [400, 500, 503, 504].contains(&answer.status),
                        "{}",
                        answer.text()
                    );
                    failures.push(answer.text());
                    let bystander =
                        other.infer("breast-cancer", &known("breast-cancer-1.0.0", 0).request);
                    bystander.expect("another model's answer").expect_ok();
                }
            }
            let active = site.active("digits");
            match active["delegate"].as_str() {
                Some("builtin") => Ok(()),
                _ => Err(active.to_string()),
            }
        },
    );
    failures
}

#[test]
fn a_delegate_that_crashes_hangs_or_fails_in_service_is_put_aside_and_no_other_model_notices() {
    let mut site = site();
    site.install(site.fleet.package("breast-cancer-1.0.0").path());
    let agent = site.device.pid();
    for (version, misbehaviour, words, more) in [
        ("1.0.1", "crash", "SIGSEGV", "different inputs"),
        ("1.0.2", "hang", "limit", "different inputs"),
        ("1.0.3", "fail", "the device was lost", "golden vector 1"),
    ] {
        // Late enough to pass the golden vectors and the warm-up.
        let options = [(misbehaviour, "invoke"), ("from_invoke", "30")];
        let package = digits(&site, version, &options, true);
        // Nobody watches it as a new version: it would give way to the one before at its first crash.
        site.sign(package.path(), &["--soak", "0"]).expect_success();
        site.carry().expect_success();
        assert_eq!(site.active("digits")["delegate"], NPU);
        let failures = ask_until_put_aside(&site);
        assert!(failures.len() >= 3, "{failures:?}");
        let active = site.active("digits");
        let reason = refusal(&active);
        assert!(reason.contains(words), "{reason}");
        assert!(reason.contains(more), "{reason}");
        assert_answers(&site);
    }
    assert_eq!(site.device.pid(), agent);
    site.device.stop();
}

#[test]
fn a_driver_inside_the_sandbox_opens_no_file_no_socket_and_no_program() {
    let site = site();
    // The twentieth invoke comes after the worker was sealed.
    for (version, from_invoke) in [("1.0.1", "1"), ("1.0.2", "20")] {
        let options = [("probe", "1"), ("from_invoke", from_invoke)];
        site.install(digits(&site, version, &options, true).path());
        assert_eq!(site.active("digits")["delegate"], NPU);
        for number in 0..30 {
            let answer = site.device.unix().infer("digits", &question(number));
            answer.expect("an answer").expect_ok();
        }
        for moment in ["create", "invoke"] {
            for attempt in ["open /etc/passwd", "socket", "exec"] {
                let line = format!("probe {moment} {attempt}: ");
                wait::until(&line, wait::PATIENCE, || {
                    let log = site.device.log();
                    let found = log.lines().rfind(|l| l.contains(&line)).map(str::to_owned);
                    let found = found.ok_or_else(|| format!("no {line:?} in the log"))?;
                    assert!(!found.contains("allowed"), "{found}");
                    Ok(())
                });
            }
        }
    }
}
