//! Names that would be paths: of targets, files, groups and models.

use edgeward_models::fleet::rollout::membership_target;
use edgeward_tests::binaries;
use serde_json::json;

use crate::Verdict::Refused;
use crate::past::{GROUP, past_releases, past_rollouts, signed_target};
use crate::{Attack, attack};

pub fn attacks() -> Vec<Attack> {
    vec![
        attack(
            "path tricks: a target that climbs out of its directory",
            |past| signed_target(past, "releases", "models/../../../etc/cron.d/x", b"evil"),
            Refused(&["refused"]),
        ),
        attack(
            "path tricks: a file name that is hidden and long",
            |past| {
                let name = format!("models/digits/4.0.0/.{}", "x".repeat(300));
                signed_target(past, "releases", &name, b"evil")
            },
            Refused(&["refused"]),
        ),
        attack(
            "path tricks: a manifest whose file lies elsewhere",
            |past| {
                let sample = binaries::sample("digits-1.0.0").join("manifest.json");
                let text = std::fs::read_to_string(sample).expect("read");
                let text = text
                    .replace("\"1.0.0\"", "\"3.0.0\"")
                    .replace("model.tflite", "../../../../active/digits/pointer");
                signed_target(
                    past,
                    "releases",
                    "models/digits/3.0.0/manifest.json",
                    text.as_bytes(),
                )
            },
            Refused(&["manifest"]),
        )
        .and_then_published(past_releases),
        attack(
            "path tricks: a group whose name is a path",
            |past| {
                let device = membership_target(&past.device.id().parse().expect("name"));
                let document =
                    json!({"format": 1, "devices": {past.device.id(): ["../../releases"]}});
                signed_target(past, "rollouts", &device, document.to_string().as_bytes())
            },
            Refused(&["devices/", "refused"]),
        )
        .and_then_published(past_rollouts),
        attack(
            "path tricks: a model whose name is a path",
            |past| {
                let wish = json!({
                    "format": 1, "group": GROUP, "sequence": 90,
                    "models": {"../../identity": {
                        "version": "3.0.0", "release": 3, "rollout": "r", "percent": 100,
                        "jitter_seconds": 0, "soak_seconds": 0,
                    }},
                });
                signed_target(
                    past,
                    "rollouts",
                    "groups/radiology.json",
                    wish.to_string().as_bytes(),
                )
            },
            Refused(&["groups/radiology.json is refused"]),
        )
        .and_then_published(past_rollouts),
    ]
}
