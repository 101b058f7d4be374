#!/bin/sh
# One layer of an image: install the wheels in /mnt, all that its requirements.txt names and nothing else, into /opt/anymal.
# Runs inside a build. The same wheels give the same files with the same times: one date for all, and compiled code that is bound to no date.
set -eu
start=$(mktemp)
sleep 0.1 # times of files are coarse: what this step writes must be newer
if [ ! -e /opt/anymal ]; then
    # For programs that ask who they are; where Kubernetes reads the user (runAsNonRoot) it must be a number.
    echo 'anymal:x:1000:1000::/tmp:/usr/sbin/nologin' >>/etc/passwd
    echo 'anymal:x:1000:' >>/etc/group
    /media/uv venv --quiet --no-config --offline --python python3 /opt/anymal
fi
# The cache lies on the same file system for the time of this step, so that files move from it by hard links.
/media/uv pip install --quiet --no-config --offline --no-index --find-links /mnt --no-deps --requirement /mnt/requirements.txt \
    --python /opt/anymal/bin/python --cache-dir /opt/cache --link-mode hardlink
rm -rf /opt/cache /opt/anymal/.lock
# The installer notes when it unpacked a wheel.
find /opt/anymal -cnewer "$start" -name RECORD -exec sed -i '/\/uv_cache\.json,/d' {} +
find /opt/anymal -cnewer "$start" -name uv_cache.json -delete
# Once and for good: a container with a read-only root would compile all it imports at every start. Packages' own tests are never imported; a few
# packages carry templates that do not compile.
find /opt/anymal -cnewer "$start" -name '*.py' ! -path '*/tests/*' | /opt/anymal/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash -i - || true
find / -xdev -cnewer "$start" ! -path '/proc/*' ! -path '/sys/*' ! -path '/dev/*' -exec touch --no-dereference --date=@315532800 {} +
