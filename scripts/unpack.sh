#!/usr/bin/env bash
# Unpack Debian packages into a folder, with nothing installed on the system: unpack.sh FOLDER PACKAGE…
# Package lists that are missing or too old are fetched beside the folder; the system's stay as they are.
set -euo pipefail
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
if ! apt-get download -qq "${settings[@]}" "$@" 2>"$work/first"; then
    settings+=(-o Dir::State::lists="$work/lists")
    apt-get update -qq "${settings[@]}" && apt-get download -qq "${settings[@]}" "$@" || {
        cat "$work/first" >&2
        echo "unpack: apt cannot fetch $*; check the network and apt's sources" >&2
        exit 2
    }
fi
for package in *.deb; do
    dpkg-deb -x "$package" "$folder"
done
