"""A process that has imported MLflow, which takes 5 to 20 s, and forks a recorder for each stage: the stages of a graph share one.

The first stage starts it; it listens on a socket in a folder that its user alone can enter, and ends when no stage came for `IDLE_SECONDS`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from filelock import FileLock

from anymal.errors import TrackingError
from anymal.tracking.store import STUCK_SECONDS, environment

IDLE_SECONDS = 60.0


def connect(log: TextIO) -> socket.socket:
    """A recorder for this process: a stream that takes operations and gives reports, a JSON line each.

    Args:
        log: file for what MLflow prints.

    Raises:
        TrackingError: if another user's files are where the socket should be.
    """
    folder = _folder()
    path = folder / f"{_key()}.sock"
    with _lock(path):
        line = _call(path) or _start(path, log)
    socket.send_fds(line, [b"\n"], [log.fileno()])
    line.sendall(json.dumps({"environment": dict(os.environ) | environment(), "folder": str(Path.cwd())}).encode() + b"\n")
    return line


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"anymal-{os.getuid()}"
    if len(os.fsencode(folder)) > 60:  # with a name in it, an address of a Unix socket has at most 104 bytes
        folder = Path(f"/tmp/anymal-{os.getuid()}")  # noqa: S108
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise TrackingError(f"{folder}: is not a folder that only this user can enter, so MLflow's client cannot be reached through it; "
                            "remove it, set TMPDIR to another folder, or set ANYMAL_TRACKING=off")
    return folder


def _key() -> str:
    """Recorders are shared by processes with the same interpreter and the same code."""
    digest = hashlib.sha256(sys.executable.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_suffix(".lock"), timeout=STUCK_SECONDS)


def _call(path: Path) -> socket.socket | None:
    """A connection; None if nobody listens."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        line.close()
        return None
    return line


def _start(path: Path, log: TextIO) -> socket.socket:
    """Start the process; connections wait until it has imported MLflow, and end if it cannot."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(128)
        # A session of its own: Ctrl-C and a group's SIGTERM must reach the stage only, which then says how it ended.
        subprocess.Popen([sys.executable, "-m", "anymal.tracking.warm", str(path), str(listener.fileno())], env=os.environ | environment(),
                         pass_fds=[listener.fileno()], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                         start_new_session=True)
        line = _call(path)
    assert line is not None, "the process above has the socket"
    return line


def _main(path: Path, listener: socket.socket) -> None:
    from mlflow.store.artifact import artifact_repository_registry  # noqa: F401
    from mlflow.store.tracking import sqlalchemy_store  # noqa: F401
    from mlflow.tracking import MlflowClient  # noqa: F401

    children: set[int] = set()
    last = time.monotonic()
    while True:
        ready, _, _ = select.select([listener], [], [], 1.0)
        if ready:
            line, _ = listener.accept()
            last = time.monotonic()
            child = os.fork()
            if child == 0:
                listener.close()
                _serve(line)
            children.add(child)
            line.close()
        children -= set(_ended())
        if children:
            last = time.monotonic()
        elif time.monotonic() - last > IDLE_SECONDS:
            with _lock(path):  # no stage is between finding the socket and using it
                if not select.select([listener], [], [], 0.0)[0]:
                    path.unlink(missing_ok=True)
                    return


def _ended() -> Iterator[int]:
    with contextlib.suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            yield child


def _serve(line: socket.socket) -> None:
    """Record one stage in this process, a fresh copy of the one that listens."""
    from anymal.tracking.recorder import record

    code = 1
    try:
        os.setsid()
        _, (log, *_), _, _ = socket.recv_fds(line, 1, 1)
        os.dup2(log, 1)  # whatever a library prints must not be taken for a report
        os.dup2(log, 2)
        with line.makefile("r", encoding="utf-8") as operations, line.makefile("w", encoding="utf-8") as reports:
            caller = json.loads(operations.readline())
            os.environ.clear()
            os.environ.update(caller["environment"])
            os.chdir(caller["folder"])
            record(operations, reports)
        code = 0
    except BaseException as error:  # the log is what the stage reports; a copy must not go on as if it were the one that listens
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _main(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
