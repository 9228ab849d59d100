//! Every target on every seed, without a fuzzer.

use std::path::Path;

#[test]
fn every_target_has_seeds_and_withstands_them() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for (name, target) in edgeward_fuzz::TARGETS {
        let directory = seeds.join(name);
        let entries = std::fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let mut count = 0;
        for entry in entries {
            let path = entry.expect("entry").path();
            let seed = std::fs::read(&path).expect("seed");
            std::panic::catch_unwind(|| target(&seed))
                .unwrap_or_else(|_| panic!("{} broke the target", path.display()));
            count += 1;
        }
        assert!(count > 0, "no seeds in {}", directory.display());
    }
    for entry in std::fs::read_dir(&seeds).expect("seeds") {
        let name = entry.expect("entry").file_name();
        let name = name.to_str().expect("a name");
        assert!(
            edgeward_fuzz::target(name).is_some(),
            "seeds/{name} belongs to no target"
        );
    }
}
