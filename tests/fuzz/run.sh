#!/usr/bin/env bash
# Hunts with libFuzzer: tests/fuzz/run.sh SECONDS [TARGET…], each target for that long, two at a time.
#
# The stable compiler does (rustc.sh instruments our own crates). What a hunt learns is kept below the target
# directory and helps the next one; with FRESH=1 it begins with the seeds alone and takes the same way every time, so
# that a test run does not depend on chance. An input that breaks a target
# is left there as crash-…, to be made a seed once the fault is mended.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=$1
shift
out=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
RUSTC_WORKSPACE_WRAPPER=$PWD/tests/fuzz/rustc.sh \
    cargo build --workspace --locked --features edgeward-fuzz/libfuzzer --bin fuzz
# Beside the ordinary programs' directory: another build may replace what lies there.
mkdir -p "$out/fuzz"
cp "$out/debug/fuzz" "$out/fuzz/fuzz"

hunt() { # TARGET
    local target=$1 seeds=tests/fuzz/seeds/$1 learnt=$out/fuzz/$1 way=0
    if [ -n "${FRESH:-}" ]; then learnt=$(mktemp -d) way=1; fi
    mkdir -p "$learnt"
    if FUZZ_TARGET=$target "$out/fuzz/fuzz" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 \
        -seed="$way" -verbosity=0 -print_final_stats=1 -artifact_prefix="$out/fuzz/$target-" \
        "$learnt" "$seeds" >"$out/fuzz/$target.log" 2>&1; then
        printf 'ok      %-20s %s\n' "$target" "$(awk '/number_of_executed_units/ { print $2 " inputs" }' "$out/fuzz/$target.log")"
    else
        tail -n 50 "$out/fuzz/$target.log"
        printf 'FAILED  %-20s see %s\n' "$target" "$out/fuzz/$target.log"
        return 1
    fi
    if [ -n "${FRESH:-}" ]; then rm -rf "$learnt"; fi
}
export -f hunt
export out seconds

if [ $# -eq 0 ]; then set -- $(ls tests/fuzz/seeds); fi
printf '%s\n' "$@" | xargs -P 2 -I {} bash -c 'hunt {}'
