#!/usr/bin/env bash
# Makes descriptors.binpb, which reflection answers from, out of the .proto files beside it; to be run whenever one
# of them changes. `make test` fails when it was forgotten.
#
#   agent/protos/compile.sh [OUTPUT]
#
# Needs no protoc: the tests' Python environment (`make setup`) brings one.
set -euo pipefail
cd "$(dirname "$0")"
output=${1:-descriptors.binpb}
python=${EDGEWARD_PYTHON:-${CARGO_TARGET_DIR:-../../target}/python/bin/python}
"$python" -m grpc_tools.protoc --proto_path=. --include_imports --descriptor_set_out="$output" ./*.proto
