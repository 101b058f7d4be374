"""A real S3 server on the loopback (SeaweedFS) that tests can kill and start again."""

from __future__ import annotations

from pathlib import Path

from pipelines import servers

READER = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader"}
"""An account that may read and list, and nothing else."""
BUCKET = "data"


class S3Server(servers.S3Server):
    """`weed server -s3` with its data in a folder, a bucket `data`, and a second account, `READER`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, bucket=BUCKET, accounts={"test": ("test", servers.ADMIN), "reader": ("reader", ("Read", "List"))})

    def kill(self) -> None:
        """End it at once."""
        self.stop()

    def keys(self, prefix: str) -> dict[str, int]:
        """Key below a prefix, without the prefix -> bytes."""
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return {item["Key"].removeprefix(prefix): item["Size"] for item in found if not item["Key"].endswith("/")}
