#!/usr/bin/env bash
# Unpack Debian packages into a folder, with nothing installed on the system: unpack.sh [--with-dependencies] FOLDER PACKAGE…
# The option adds the packages that they depend on and this machine lacks.
# Package lists that are missing or too old are fetched beside the folder; the system's stay as they are.
set -euo pipefail
dependencies=
if [ "$1" = --with-dependencies ]; then
    dependencies=yes
    shift
fi
folder=$1
shift
mkdir -p "$folder"
work=$(mktemp -d "$(dirname "$folder")/unpack-XXXXXX")
trap 'rm -rf "$work"' EXIT
command -v apt-get >/dev/null || {
    echo "unpack: this machine has no apt-get, from whose archive $* would come; install them by other means" >&2
    exit 2
}
mkdir -p "$work"/{lists/partial,cache/archives/partial,log,packages}
settings=(-o Dir::Cache="$work/cache" -o Dir::Log="$work/log" -o APT::Sandbox::User=root -o Debug::NoLocking=1)
cd "$work/packages"

fetch() {
    local wanted=("$@") missing
    if [ -n "$dependencies" ]; then
        missing=$(apt-get install -qq --print-uris --no-install-recommends "${settings[@]}" "$@") || return
        mapfile -t wanted < <({ printf '%s\n' "$@"; sed -n "s/^'[^']*' \\([^_]*\\)_.*/\\1/p" <<<"$missing"; } | sort -u)
    fi
    apt-get download -qq "${settings[@]}" "${wanted[@]}"
}

if ! fetch "$@" 2>"$work/first"; then
    settings+=(-o Dir::State::lists="$work/lists")
    apt-get update -qq "${settings[@]}" && fetch "$@" || {
        cat "$work/first" >&2
        echo "unpack: apt cannot fetch $*; check the network and apt's sources" >&2
        exit 2
    }
fi
for package in *.deb; do
    dpkg-deb -x "$package" "$folder"
done
