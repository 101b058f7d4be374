"""A real S3 server on the loopback (SeaweedFS) that tests can kill and start again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
READER = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader"}
"""An account that may read and list, and nothing else."""
BUCKET = "data"
START_SECONDS = 120


def _ports(names: tuple[str, ...]) -> dict[str, int]:
    """A free port for each; the one 10000 above it is free as well, for gRPC."""
    ports: dict[str, int] = {}
    while len(ports) < len(names):
        with socket.socket() as probe, socket.socket() as grpc:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            if port > 55000 or any(abs(port - other) in {0, 10000} for other in ports.values()):
                continue
            try:
                grpc.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
            ports[names[len(ports)]] = port
    return ports


class S3Server:
    """`weed server -s3` with its data in a folder, and a bucket `data`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = _ports(("master", "volume", "filer", "s3"))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self._process: subprocess.Popen[bytes] | None = None
        identities = [{"name": "writer", "credentials": [{"accessKey": "test", "secretKey": "test"}], "actions": ["Admin", "Read", "Write", "List"]},
                      {"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "reader"}], "actions": ["Read", "List"]}]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))

    @property
    def environment(self) -> dict[str, str]:
        """What points boto3 at it."""
        return {"AWS_ENDPOINT_URL_S3": self.endpoint, **KEYS}

    @property
    def client(self) -> Any:
        """A plain boto3 client."""
        import boto3

        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test")

    def start(self) -> None:
        """Start it and wait until objects can be written."""
        weed = Path(sys.executable).with_name("weed")
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(weed), "server", f"-dir={self._folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={self._folder / 's3.json'}",
                 "-s3.port.iceberg=0", "-master.volumeSizeLimitMB=64", "-volume.max=32", "-master.telemetry=false",
                 *(f"-{name}.port={port}" for name, port in self._ports.items())],
                stdout=log, stderr=log, cwd=self._folder)
        client, deadline = self.client, time.monotonic() + START_SECONDS
        while True:
            try:
                if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                    client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"x")
                return
            except Exception:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise RuntimeError(f"weed did not start: {(self._folder / 'weed.log').read_text()[-2000:]}") from None
                time.sleep(0.3)

    @property
    def running(self) -> bool:
        """Whether it was started and not killed."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it at once (its graceful end takes half a minute)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def keys(self, prefix: str) -> dict[str, int]:
        """Key below a prefix, without the prefix -> bytes."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return {item["Key"].removeprefix(prefix): item["Size"] for item in found if not item["Key"].endswith("/")}
