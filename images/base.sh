#!/usr/bin/env bash
# A base image like python:3.11-slim, out of Debian's packages alone, for machines that reach no image registry: base.sh FILE.tar
# Debian 12 with its Python 3.11, certificates and apt (ingest reads packages with it). The same packages give the same bytes.
set -euo pipefail
scripts=$(cd "$(dirname "$0")/../scripts" && pwd)
target=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ "$(id -u)" = 0 ] || {
    echo "base: making a base image from Debian's packages needs root; run this as root, or name a base image that can be pulled" >&2
    exit 2
}
command -v mmdebstrap >/dev/null || {
    "$scripts/unpack.sh" "$work/tools" mmdebstrap
    PATH=$work/tools/usr/bin:$PATH
}
# Documentation and translations stay out, licences stay in. What the set-up of packages leaves of this machine or of today is removed.
SOURCE_DATE_EPOCH=315532800 TMPDIR=$work mmdebstrap --quiet --mode=root --variant=apt --include=python3,ca-certificates \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -rf "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/var/log/* "$1"/var/cache/ldconfig "$1"/var/cache/debconf/*-old' \
    bookworm "$target"
