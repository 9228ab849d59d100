#!/usr/bin/env bash
# `make test`: everything that must hold before a change lands, in one run, with a summary at the end.
#
# A step that fails does not keep the later ones from running; the exit status is that of the worst.
set -uo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
summary=()
failed=0

step() { # NAME COMMAND…
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    if "$@" 2>&1 | tee -a "$log"; then
        summary+=("$(printf 'ok      %-7s %4d s' "$name" $((SECONDS - start)))")
    else
        summary+=("$(printf 'FAILED  %-7s %4d s' "$name" $((SECONDS - start)))")
        failed=$((failed + 1))
    fi
}

step format cargo fmt --all --check
step clippy cargo clippy --workspace --all-targets --locked -- -D warnings
# The scenarios start the programs as a user does, from the target directory: they are built first.
step build cargo build --workspace --bins --locked
step tests cargo test --workspace --locked --no-fail-fast
step fuzz env FRESH=1 tests/fuzz/run.sh 60

printf '\n== summary\n'
printf '%s\n' "${summary[@]}"
# Counts of every "test result:" line of cargo, doc tests included.
awk '/^test result:/ { for (i = 1; i < NF; i++) {
         if ($(i+1) ~ /^passed/) passed += $i
         if ($(i+1) ~ /^failed/) failed += $i
         if ($(i+1) ~ /^ignored/) skipped += $i } }
     END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
exit "$((failed > 0))"
