#!/usr/bin/env bash
# `make run`: the main job on this machine, from a new fleet to an answer, with everything in target/run/.
#
#   tests/run.sh             shows it and ends
#   KEEP=1 tests/run.sh      leaves broker and agent up, for you to play with
#   tests/run.sh --stop      ends what KEEP=1 left up
#
# Every line that begins with "$" is a command as it was run; after `source target/run/env` it can be typed
# again. Exit status 0: all of it worked and no request failed.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD
state=$root/target/run
programs=${CARGO_TARGET_DIR:-$root/target}/release

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi

title() { printf '\n%s── %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '   %s\n' "$*"; }
give_up() {
    printf '\nmake run: %s\n' "$*" >&2
    exit 1
}

# Shows a command and runs it.
show() {
    printf '%s$%s %s\n' "$dim" "$plain" "$1"
    eval "$1"
}

# ---- processes: their ids lie in target/run/pids, and only a process that runs our programs is ended

begin() { # NAME COMMAND…
    local name=$1
    shift
    setsid "$@" >"$state/$name.log" 2>&1 </dev/null &
    echo "$! $name" >>"$state/pids"
}

end_all() {
    local pid name program
    [ -f "$state/pids" ] || return 0
    # The agent first: its goodbye goes through the broker.
    while read -r pid name; do
        program=$(readlink "/proc/$pid/exe" 2>/dev/null) || continue
        case "${program##*/}" in edgeward* | fleetctl* | python3*) ;; *) continue ;; esac
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 200); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.05
        done
        kill -9 "$pid" 2>/dev/null || true
    done < <(tac "$state/pids")
    rm -f "$state/pids"
}

if [ "${1:-}" = --stop ]; then
    if [ -f "$state/pids" ]; then
        end_all
        echo "stopped; its files stay in target/run/ until the next \`make run\`"
    else
        echo "nothing of \`make run\` is up"
    fi
    exit 0
fi

# A Unix socket's path has at most 107 bytes.
longest=$state/device/admin.sock
if [ ${#longest} -gt 107 ]; then
    give_up "the path of this checkout is too long for Unix sockets ($longest); move it to a shorter one"
fi

title "Building the release programs"
cargo build --release --locked --package edgeward-agent --package fleetctl

end_all
rm -rf "$state"
mkdir -p "$state"
umask 077

leave() {
    local status=$?
    trap - EXIT
    if [ "$status" -ne 0 ]; then
        for log in broker agent client; do
            [ -s "$state/$log.log" ] || continue
            printf '\nThe last lines of target/run/%s.log:\n' "$log" >&2
            tail -n 15 "$state/$log.log" >&2
        done
        end_all
    elif [ -z "${KEEP:-}" ]; then
        end_all
    fi
    exit "$status"
}
trap leave EXIT
trap 'exit 130' INT TERM

read -r broker_port door_port < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))')

token=$("$programs/edgeward" token make-run 2>/dev/null)
cat >"$state/env" <<ENV
# What \`make run\` set up. To be sourced: . target/run/env
export EDGEWARD_SOCKET='$state/edgeward.sock'
export EDGEWARD_URL='https://localhost:$door_port'
export EDGEWARD_CA='$state/door/ca.pem'
export EDGEWARD_TOKEN='$token'
export EDGEWARD_CONFIG='$state/agent.toml'
export FLEETCTL_HOME='$state/fleet'
export PATH='$programs':"\$PATH"
ENV
# shellcheck disable=SC1091
. "$state/env"

# ---- the main job

wait_for() { # WHAT SECONDS COMMAND…
    local what=$1 end=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || give_up "waited in vain for $what"
        sleep 0.05
    done
}
port_answers() { python3 -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1)' "$1"; }
agent_lives() { curl --silent --fail --unix-socket "$EDGEWARD_SOCKET" http://localhost/v2/health/live; }

title "1. A new fleet and its broker: TLS, client certificates, a process of its own"
show "fleetctl init demo --broker localhost:$broker_port --broker-certificate localhost >target/run/init.log"
say "fleetctl broker --listen 127.0.0.1:$broker_port   (in the background, log in target/run/broker.log)"
begin broker fleetctl broker --listen "127.0.0.1:$broker_port"
wait_for "the broker" 20 port_answers "$broker_port"

title "2. A device joins: its key never leaves it, the fleet's authority decides its name"
mkdir -p "$state/door" "$state/device"
door_certificate() {
    cd "$state/door"
    local curve=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
    openssl req -x509 "${curve[@]}" -keyout ca.key -out ca.pem -days 30 -subj "/CN=make run"
    openssl req "${curve[@]}" -keyout door.key -out door.csr -subj "/CN=localhost"
    openssl x509 -req -in door.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -out door.pem \
        -extfile <(echo "subjectAltName=DNS:localhost,IP:127.0.0.1")
}
(door_certificate) >"$state/door.log" 2>&1 || give_up "openssl could not make a certificate; see target/run/door.log"
cat >"$EDGEWARD_CONFIG" <<TOML
state_directory = "$state/device"

[unix]
path = "$EDGEWARD_SOCKET"
mode = "0600"

[tls]
listen = "127.0.0.1:$door_port"
certificate = "$state/door/door.pem"
private_key = "$state/door/door.key"
tokens = [{ name = "make-run", sha256 = "$(printf %s "$EDGEWARD_TOKEN" | sha256sum | cut -d ' ' -f 1)" }]

[tflite]
library = "${EDGEWARD_TFLITE:-$root/cross/lib/$(uname -m)/libtensorflowlite_c.so}"

[fleet]

[telemetry]
level = "metrics"
interval_seconds = 10
TOML
show 'edgeward enroll --request target/run/ct-1.csr.pem'
show 'fleetctl device enroll target/run/ct-1.csr.pem --id ct-1 --group radiology --out target/run/ct-1.json'
show 'edgeward enroll --accept target/run/ct-1.json'
say "edgeward serve   (in the background, log in target/run/agent.log)"
begin agent edgeward serve
wait_for "the agent" 30 agent_lives

title "3. A model version, signed, to every device of a group"
show 'fleetctl push models/samples/digits-1.0.0 --group radiology'

title "4. An answer, over the Unix socket and over TLS"
# The question: the first golden vector's picture, an eight by eight handwritten digit.
python3 - models/samples/digits-1.0.0/golden.json "$state/question.json" <<'PYTHON'
import json, sys
picture = json.load(open(sys.argv[1]))["vectors"][0]["inputs"]["image"]
json.dump({"inputs": [{"name": "image", "datatype": "FP32", **picture}]}, open(sys.argv[2], "w"))
for row in range(8):
    print("      " + "".join(" .:-=+*#%@"[int(v * 9)] * 2 for v in picture["data"][row * 8 : row * 8 + 8]))
PYTHON
explain() {
    python3 -c '
import json, sys
answer = json.load(sys.stdin)
[output] = answer["outputs"]
best = max(range(10), key=output["data"].__getitem__)
print("   version %s says: a %d (%.1f %%)" % (answer["model_version"], best, output["data"][best] * 100))'
}
show 'curl --silent --show-error --fail-with-body --unix-socket "$EDGEWARD_SOCKET" --json @target/run/question.json \
    http://localhost/v2/models/digits/infer | tee target/run/answer.json'
printf '\n'
explain <"$state/answer.json"
show 'curl --silent --show-error --fail-with-body --cacert "$EDGEWARD_CA" -H "Authorization: Bearer $EDGEWARD_TOKEN" \
    --json @target/run/question.json "$EDGEWARD_URL/v2/models/digits/infer" >target/run/answer.json'
explain <"$state/answer.json"

title "5. What the operator sees"
show 'fleetctl status'

title "6. The second version takes over while a client keeps asking; then the first is put back"
say "python3 tests/python/keep_asking.py   (in the background)"
begin client python3 tests/python/keep_asking.py "$EDGEWARD_SOCKET" digits "$state/question.json" "$state/client.json"
client=$(awk '$2 == "client" { print $1 }' "$state/pids")
show 'fleetctl push models/samples/digits-2.0.0 --group radiology'
show 'fleetctl rollback digits --group radiology'
show 'fleetctl status'
kill "$client"
wait "$client" || true
python3 - "$state/client.json" <<'PYTHON' || give_up "requests failed while the version changed"
import json, sys
report = json.load(open(sys.argv[1]))
versions = ", ".join(f"{n} by {v}" for v, n in sorted(report["by_version"].items()))
print(f"   {report['requests']} requests while the version changed twice ({versions}); failed: {report['failed']}")
for failure in report["failures"]:
    print("   " + failure)
sys.exit(report["failed"] > 0 or set(report["by_version"]) != {"1.0.0", "2.0.0"})
PYTHON

if [ -n "${KEEP:-}" ]; then
    title "Broker and agent stay up, serving digits 1.0.0"
    say ". target/run/env        sets EDGEWARD_SOCKET, _URL, _CA, _TOKEN, _CONFIG, FLEETCTL_HOME and PATH; then for example"
    say 'edgeward status'
    say 'curl --unix-socket "$EDGEWARD_SOCKET" http://localhost/v2/models/digits'
    say 'curl --cacert "$EDGEWARD_CA" -H "Authorization: Bearer $EDGEWARD_TOKEN" "$EDGEWARD_URL/v2/models/digits"'
    say 'fleetctl push models/samples/breast-cancer-1.0.0 --group radiology'
    say "make stop               ends it"
else
    title "Done. KEEP=1 make run leaves it up."
fi
