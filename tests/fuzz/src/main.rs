//! libFuzzer around the target that the environment variable `FUZZ_TARGET` names (`run.sh` sets it).

#![no_main]

use std::sync::OnceLock;

static TARGET: OnceLock<edgeward_fuzz::Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let found = edgeward_fuzz::target(&name);
        TARGET.get_or_init(|| found.unwrap_or_else(|| panic!("FUZZ_TARGET={name:?} is no target")));
    },
    |data: &[u8]| {
        if let Some(target) = TARGET.get() {
            target(data);
        }
    }
);
