#!/usr/bin/env bash
# A Docker engine: the one that answers already or, where there is none, a private one made of Debian's packages, with nothing installed.
#   eval "$(scripts/engine.sh start)"    prints what points `docker` at a private engine; nothing for an engine that answers anyway
#   scripts/engine.sh status             says which engine is in use; exit status 1 if none answers
#   scripts/engine.sh stop               ends the private engine; images stay in its folder until that is deleted
# All of the private engine is in the folder ANYMAL_ENGINE (.engine in the checkout if unset). It has no bridge network, for which most sandboxes
# lack the rights: containers get the network `host` or `none`.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
engine=$(realpath -m "${ANYMAL_ENGINE:-$scripts/../.engine}")
packages=(docker.io containerd runc libdevmapper1.02.1)
socket=$engine/docker.sock
pidfile=$engine/docker.pid

fail() {
    echo "engine: $*" >&2
    exit 2
}

answers() { # [HOST]: whether an engine answers there, or at the address that docker is set up for
    command -v docker >/dev/null && timeout 20 docker ${1:+--host "$1"} version --format '{{.Server.Version}}' 2>/dev/null
}

private_client() {
    PATH=$engine/root/usr/bin:$PATH
}

running() { # whether the private engine's process lives
    [ -e "$pidfile" ] && tr '\0' ' ' <"/proc/$(cat "$pidfile")/cmdline" 2>/dev/null | grep -qF "$socket"
}

private_answers() {
    running && (private_client && answers "unix://$socket" >/dev/null)
}

usable() { # whether an engine that is not ours answers
    [ "${DOCKER_HOST:-}" != "unix://$socket" ] && answers >/dev/null
}

libraries() { # where the unpacked packages keep theirs
    dirname "$(find "$engine/root" -name 'libdevmapper.so.*' | head -n 1)"
}

start() {
    [ "$(id -u)" = 0 ] || fail "no Docker engine answers, and a private one needs root; start Docker, or run this as root"
    # A socket's path has 107 characters at most; containerd's is the longest.
    [ ${#engine} -le 64 ] || fail "the folder $engine has too long a path for sockets; set ANYMAL_ENGINE to one of at most 64 characters"
    mkdir -p "$engine"
    exec 9>"$engine/lock"
    flock 9
    private_answers && return
    if [ ! -e "$engine/root/complete" ]; then
        echo "engine: no Docker engine answers; unpacking ${packages[*]} into $engine" >&2
        "$scripts/unpack.sh" "$engine/root" "${packages[@]}"
        touch "$engine/root/complete"
    fi
    rm -f "$pidfile" # of an engine that was killed; its number may be another process's by now
    PATH=$engine/root/usr/sbin:$engine/root/usr/bin:$PATH LD_LIBRARY_PATH=$(libraries) setsid dockerd \
        --host "unix://$socket" --pidfile "$pidfile" --data-root "$engine/data" --exec-root "$engine/run" \
        --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
        >"$engine/dockerd.log" 2>&1 </dev/null 9>&- &
    for _ in $(seq 240); do
        private_answers && return
        kill -0 $! 2>/dev/null || break
        sleep 0.25
    done
    tail -n 5 "$engine/dockerd.log" >&2
    fail "the engine does not start; its whole log is $engine/dockerd.log"
}

stop() {
    running || {
        echo "engine: no private engine runs in $engine" >&2
        return
    }
    pid=$(cat "$pidfile")
    kill "$pid"
    for _ in $(seq 240); do
        kill -0 "$pid" 2>/dev/null || {
            # The engine leaves its data folder mounted onto itself, which would keep it from being deleted.
            awk -v folder="$engine/" 'index($2, folder) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount
            return
        }
        sleep 0.25
    done
    fail "process $pid does not end; its log is $engine/dockerd.log"
}

case ${1:-} in
start)
    usable || {
        start
        echo "export DOCKER_HOST=unix://$socket"
        echo "export PATH=$engine/root/usr/bin:\$PATH"
    }
    ;;
stop) stop ;;
status)
    if usable; then
        echo "engine: Docker $(answers) answers${DOCKER_HOST:+ at $DOCKER_HOST}"
    elif private_answers; then
        echo "engine: Docker $(private_client && answers "unix://$socket") answers at unix://$socket"
    else
        echo "engine: none answers; 'scripts/engine.sh start' starts a private one in $engine"
        exit 1
    fi
    ;;
*) fail "say start, stop or status" ;;
esac
