#!/usr/bin/env bash
# Make .venv with everything the project needs; do nothing when pyproject.toml, constraints.txt and this file are unchanged.
# Torch: a wheel from the folder that pip is configured to look in, if there is one; otherwise uv picks the build for this machine.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.setup-$(cat pyproject.toml constraints.txt scripts/setup.sh | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || {
    echo "setup: $("$python" --version 2>&1) found; Python 3.11 or 3.12 is needed. Name one: make setup PYTHON=/path/to/python3.11" >&2
    exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv || {
    echo "setup: $python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
    exit 1
}
.venv/bin/python -m pip install --quiet --constraint constraints.txt uv

torch=(--torch-backend=auto)
folders=${UV_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)}
for folder in ${PIP_FIND_LINKS:-} $folders; do
    if compgen -G "$folder/torch-*.whl" >/dev/null; then
        torch=(--find-links "$folder")
    fi
done
.venv/bin/uv pip install --python .venv/bin/python --constraint constraints.txt "${torch[@]}" --editable '.[dev]'
.venv/bin/python -c 'import cv2' || {
    echo "setup: OpenCV (for text and faces in pictures) cannot be loaded; on Debian: apt-get install libgl1 libglib2.0-0" >&2
    exit 1
}
rm -f .venv/.setup-*
touch "$stamp"
