"""Objects of S3 servers, one by one or all below a prefix."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from anymal.data.archives import destination
from anymal.data.asset_folders import ASSET, cache_folder, ensure_free
from anymal.data.lock import S3Entry, is_safe
from anymal.data.manifest import MANIFEST
from anymal.data.sources.transfer import BLOCK, Broken, Opened, download, fetch_unpinned, wrong_hash
from anymal.errors import AssetError
from anymal.progress import track

THREADS = 8


def _client() -> Any:
    """An S3 client; AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, credentials and region come from the environment as always with boto3."""
    import boto3
    from botocore.config import Config

    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    # A session of its own: the default one keeps the first credentials it saw.
    config = Config(max_pool_connections=2 * THREADS, retries={"mode": "standard", "max_attempts": 4})
    return boto3.session.Session().client("s3", region_name=region, config=config)


def _split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def _s3_error(name: str, url: str, error: Exception) -> AssetError:
    from botocore import exceptions

    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        text = "no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile)"
    elif isinstance(error, exceptions.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        known = {"404": "there is no such object", "NoSuchKey": "there is no such object", "NoSuchBucket": "there is no such bucket",
                 "403": "access was denied", "AccessDenied": "access was denied"}
        text = f"{known.get(code, f'S3 answered {code}')}; correct the address, or the credentials in the environment"
    else:
        text = "the S3 server cannot be reached; check the network and AWS_ENDPOINT_URL_S3"
    return AssetError(f"asset {name}: {url}: {text}")


def open_s3(name: str, url: str, at: int, client: Any = None) -> Opened:
    """Open an S3 object at an offset."""
    from botocore import exceptions

    bucket, key = _split(url)
    try:
        answer = (client or _client()).get_object(Bucket=bucket, Key=key, **({"Range": f"bytes={at}-"} if at else {}))
    except exceptions.ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 416:
            raise _s3_error(name, url, error) from error
        size = (client or _client()).head_object(Bucket=bucket, Key=key)["ContentLength"]
        return (at, at, iter(())) if size == at else open_s3(name, url, 0, client)
    except exceptions.BotoCoreError as error:
        raise _s3_error(name, url, error) from error
    # A server that ignores the range starts again from 0.
    offset = at if at and str(answer.get("ContentRange", "")).startswith(f"bytes {at}-") else 0
    return offset, offset + answer["ContentLength"], _s3_blocks(answer["Body"])


def _s3_blocks(body: Any) -> Iterator[bytes]:
    from botocore import exceptions

    try:
        with closing(body):
            yield from body.iter_chunks(BLOCK)
    except exceptions.BotoCoreError as error:
        raise Broken("the connection to S3 broke") from error


def list_prefix(name: str, url: str) -> dict[str, tuple[str, int]]:
    """Objects below a prefix: relative name -> (ETag, size)."""
    from botocore import exceptions

    bucket, prefix = _split(url)
    found: dict[str, tuple[str, int]] = {}
    try:
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    found[item["Key"].removeprefix(prefix)] = (item["ETag"].strip('"'), item["Size"])
    except (exceptions.ClientError, exceptions.BotoCoreError) as error:
        raise _s3_error(name, url, error) from error
    if not found:
        raise AssetError(f"asset {name}: {url}: there is no object below this prefix; correct the address")
    return found


def read_s3(name: str, url: str) -> bytes:
    """A small object, whole."""
    try:
        return b"".join(open_s3(name, url, 0)[2])
    except Broken as error:
        raise AssetError(f"asset {name}: {url}: {error}; check the network and run the same command again") from error


def pin_prefix(name: str, url: str) -> dict[str, Any]:
    """What pins the present content of a prefix: `manifest_sha256` of the manifest.json there, else `files` with each object's SHA-256.

    Objects without a manifest are downloaded to be hashed, once as long as the bucket's listing does not change.
    """
    listing = list_prefix(name, url)
    if MANIFEST in listing:
        return {"manifest_sha256": hashlib.sha256(read_s3(name, f"{url}{MANIFEST}")).hexdigest()}
    note = cache_folder() / "pins" / f"{hashlib.sha256(json.dumps([url, listing], sort_keys=True).encode()).hexdigest()}.json"
    if note.is_file():
        return {"files": json.loads(note.read_text(encoding="utf-8"))}
    client = _client()
    bar = track(total=sum(size for _, size in listing.values()), label=f"hash {name}", unit="B")
    bar.unit_scale = True

    def pin_one(key: str) -> tuple[str, str]:
        return key, fetch_unpinned(name, lambda at: open_s3(name, f"{url}{key}", at, client), bar)

    with bar, ThreadPoolExecutor(THREADS) as pool:
        files = dict(_first_failure(pool.map(pin_one, sorted(listing)), pool))
    note.parent.mkdir(exist_ok=True)
    temporary = note.with_suffix(".partial")
    temporary.write_text(json.dumps(files), encoding="utf-8")
    temporary.replace(note)
    return {"files": files}


def collect_prefix(name: str, entry: S3Entry, folder: Path) -> None:
    """Fetch what `take` names of the objects below a prefix, several at a time."""
    listed = dict(entry.files) if entry.files is not None else _manifest_files(name, entry)
    wanted = {key: goal for key in sorted(listed) if (goal := destination(key, entry.take)) is not None and key not in (ASSET, MANIFEST)}
    unsafe = [key for key, goal in wanted.items() if not is_safe(key) or not is_safe(goal)]
    if unsafe or not wanted:
        problem = f"the file name {unsafe[0]!r} leaves its folder" if unsafe else "`take` names none of its files"
        raise AssetError(f"asset {name}: {entry.url}: {problem}; correct its entry of the lock")
    present = list_prefix(name, entry.url)
    missing = sorted(wanted.keys() - present.keys())
    if missing:
        raise AssetError(f"asset {name}: {entry.url}: {len(missing)} objects that the lock names are not there, e.g. {missing[0]}; upload them again")
    total = sum(present[key][1] for key in wanted)
    ensure_free(folder, total, f"asset {name}")
    client = _client()
    bar = track(total=total, label=f"fetch {name}", unit="B")
    bar.unit_scale = True

    def fetch_one(key: str) -> tuple[str, Path]:
        return key, download(name, listed[key], lambda at: open_s3(name, f"{entry.url}{key}", at, client), bar=bar)

    with bar, ThreadPoolExecutor(THREADS) as pool:
        fetched = dict(_first_failure(pool.map(fetch_one, wanted), pool))
    for key, goal in wanted.items():
        target = folder / goal
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(fetched[key], target)  # several names may have the same content, so it is linked, not moved
        except OSError:
            shutil.copyfile(fetched[key], target)
    for path in set(fetched.values()):
        path.unlink()


def _first_failure(results: Iterable[Any], pool: ThreadPoolExecutor) -> list[Any]:
    """All results; the first error cancels what has not started, rather than fetching terabytes before it is shown."""
    try:
        return list(results)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _manifest_files(name: str, entry: S3Entry) -> dict[str, str]:
    content = read_s3(name, f"{entry.url}{MANIFEST}")
    found = hashlib.sha256(content).hexdigest()
    if found != entry.manifest_sha256:
        raise wrong_hash(f"{name}, {MANIFEST}", str(entry.manifest_sha256), found)
    try:
        return {key: value["sha256"] for key, value in json.loads(content)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssetError(f"asset {name}: {entry.url}{MANIFEST} is not a manifest; write one with anymal.data.manifest.write_manifest") from error
