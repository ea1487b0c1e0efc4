#!/usr/bin/env bash
# Installs what Ballast needs and a fresh Debian machine lacks. Safe to repeat:
# it touches nothing that is there already, and needs no network then.
#
#   deploy/bootstrap.sh build   what `make demo` needs: compiler, linker, protoc
#   deploy/bootstrap.sh lab     the same, and what `make lab` needs: QEMU, strip, ip, lists of packages
#   deploy/bootstrap.sh test    the same, and what `make test` needs: etcd, cargo-nextest
#
# Rust itself is expected (https://rustup.rs); the version is in Cargo.toml.
set -euo pipefail

purpose=${1:-build}
# Debian has the definitions that protoc brings along in a package of their own.
packages=(gcc libc6-dev make protobuf-compiler libprotobuf-dev)
lab_packages=(qemu-system-x86 xz-utils binutils iproute2)
case $purpose in
build) ;;
lab) packages+=("${lab_packages[@]}") ;;
test) packages+=("${lab_packages[@]}" etcd-server) ;;
*)
    echo "bootstrap: unknown purpose '$purpose'; use 'build', 'lab' or 'test'" >&2
    exit 2
    ;;
esac

say() { echo "bootstrap: $*" >&2; }

if ! command -v cargo >/dev/null; then
    say "cargo is missing; install Rust 1.95 or later from https://rustup.rs, then run this again"
    exit 1
fi

missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done

# The lab unpacks Debian's kernel without installing it, so the lists of packages must be there.
lists_missing=
if [[ $purpose != build ]] && ! apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; then
    lists_missing=yes
fi

if ((${#missing[@]})) || [[ $lists_missing ]]; then
    say "installing ${missing[*]:-lists of packages}"
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || {
            say "not root and no sudo; as root run: apt-get update && apt-get install --no-install-recommends ${missing[*]}"
            exit 1
        }
        as_root=(sudo)
    fi
    # Packaged services (etcd) must not start by being installed: tests start their own.
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod 755 "$policy"
        trap '"${as_root[@]}" rm -f "$policy"' EXIT
    fi
    apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -qq)
    "${apt[@]}" update
    ((${#missing[@]} == 0)) || "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null
fi

if [[ $purpose == test ]]; then
    for component in rustfmt clippy; do
        if ! cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1; then
            say "installing $component"
            rustup component add "$component"
        fi
    done
    if ! cargo nextest --version >/dev/null 2>&1; then
        say "installing cargo-nextest (a few minutes)"
        cargo install --locked --quiet cargo-nextest
    fi
fi

if [[ ! -w /dev/kvm ]]; then
    say "note: /dev/kvm is missing or not writable for $(id -un); the demo falls back to simulated VMs, and tests that need KVM say that they skip"
fi
