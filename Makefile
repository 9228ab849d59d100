# `make run` shows the main job, `make test` proves it. Both prepare the machine first (Debian 12 with cargo,
# Python, pip and apt); what is there already is left alone.

.PHONY: help run stop test fuzz soak bench bench-peers deny setup
.DEFAULT_GOAL := help

help:
	@echo "make run         a fleet on this machine, from push to answer, in one minute (KEEP=1 leaves it up)"
	@echo "make stop        ends what KEEP=1 make run left up"
	@echo "make test        format, clippy, all tests"
	@echo "make fuzz        each parser of foreign bytes for ten minutes (SECONDS_EACH=60 for a minute)"
	@echo "make soak        ten times the load that a device can bear; a power cut at every moment; a model of 200 MiB"
	@echo "make bench       latency beside the bare interpreter, into target/bench/summary.json"
	@echo "make bench-peers the same, then Triton and FastAPI in the same run"
	@echo "make deny        licences, sources and bans of all dependencies (builds cargo-deny: minutes)"
	@echo "make setup       only the preparation"

setup:
	@tests/setup.sh --tests

run:
	@tests/setup.sh
	@tests/run.sh

stop:
	@tests/run.sh --stop

test:
	@tests/setup.sh --tests
	@tests/check.sh

SECONDS_EACH ?= 600
fuzz:
	@tests/setup.sh --tests
	@tests/fuzz/run.sh $(SECONDS_EACH)

soak:
	@tests/setup.sh --tests
	cargo build --release --locked --workspace --bins
	$${CARGO_TARGET_DIR:-target}/release/soak
	cargo build --locked --workspace --bins
	EDGEWARD_SOAK=1 EDGEWARD_WRONG_MODELS=1000 \
		cargo test --locked --workspace --test power_cut --test small_packets --test wrong_models -- --nocapture

bench:
	@tests/setup.sh --tests
	cargo build --release --locked --workspace --bins
	$${CARGO_TARGET_DIR:-target}/release/bench

bench-peers:
	@tests/setup.sh --tests
	cargo build --release --locked --workspace --bins
	BENCH_PEERS=$$(tests/python/peers/prepare.sh) $${CARGO_TARGET_DIR:-target}/release/bench

deny:
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny --workspace check bans licenses sources
