#!/bin/sh
# The compiler for the crates of this workspace in a fuzzing build (RUSTC_WORKSPACE_WRAPPER): it counts which
# edges of the code an input takes. Dependencies are compiled as ever and shared with other builds.
exec "$@" -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
