#!/usr/bin/env bash
# Brings the servers that `make bench-peers` compares with into a Python environment of their own (half a
# gigabyte), and prints where it lies. What is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/../../.."
environment=${CARGO_TARGET_DIR:-$PWD/target}/peers
wanted=tests/python/peers/requirements.txt
if ! cmp -s "$wanted" "$environment/requirements.txt"; then
    echo "preparing Triton and FastAPI" >&2
    rm -rf "$environment"
    # Debian's own Python: the wheel's Triton breaks with a newer 3.11.
    /usr/bin/python3 -m venv "$environment"
    "$environment/bin/python" -m pip --disable-pip-version-check install --quiet --requirement "$wanted" >&2
    cp "$wanted" "$environment/requirements.txt"
fi
echo "$environment"
