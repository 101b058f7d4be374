"""The one way to S3 servers: requests that are repeated while a server is away, objects and prefixes, and each trouble in a sentence.

Endpoint, credentials and region come from the environment, as always with boto3: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (or `AWS_PROFILE`, or the machine's own role), `AWS_REGION`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.data.sources.transfer import BLOCK, Broken, Opened
from anymal.errors import AnymalError

SCHEME = "s3://"
THREADS = 8
ATTEMPTS = 10
"""How often a request is made, each time with botocore's own repetitions, before a server that has answered before is given up."""
PART = 16 * 2**20
"""Bytes of a part of a multipart upload; each thread holds one part at a time."""
MAX_PARTS = 10_000
"""S3's limit for an object."""
SHA256 = "sha256"
"""Name of the SHA-256 among the metadata of an object."""

UNREACHABLE = "the S3 server cannot be reached; check the network and AWS_ENDPOINT_URL_S3"
CODES = {
    "404": "there is no such object", "NoSuchKey": "there is no such object", "NoSuchBucket": "there is no such bucket",
    "403": "access was denied", "AccessDenied": "access was denied", "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key is wrong", "ExpiredToken": "the credentials have expired",
    "412": "the object was changed meanwhile", "PreconditionFailed": "the object was changed meanwhile",
    "BadDigest": "other bytes arrived than were sent", "XAmzContentChecksumMismatch": "other bytes arrived than were sent",
}
PASSING = {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "BadDigest", "XAmzContentChecksumMismatch"}
"""Answers after which the same request may succeed."""


class S3Error(AnymalError):
    """A request to an S3 server failed. The message begins with the address."""


@dataclass(frozen=True)
class Found:
    """An object as the server describes it."""

    size: int
    etag: str
    sha256: str | None = None
    """As its metadata have it; a listing does not say."""


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://BUCKET/KEY`."""
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    return bucket, key


def in_parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Results in order, several at a time; the first error cancels what has not started, rather than moving terabytes before it is shown."""
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            return list(pool.map(function, items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Storage:
    """The S3 server that the environment names. Several threads may use one.

    A server that never answered is reported at once; one that goes away later is waited for.
    """

    def __init__(self, *, attempts: int = 4, timeout: float = 60.0) -> None:
        """
        Args:
            attempts: of botocore itself, at each request.
            timeout: seconds for a connection and for each answer.
        """
        import boto3
        from botocore.config import Config

        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        config = Config(max_pool_connections=2 * THREADS, retries={"mode": "standard", "max_attempts": attempts}, connect_timeout=timeout,
                        read_timeout=timeout)
        try:
            # A session of its own: the default one keeps the first credentials it saw.
            self._client = boto3.session.Session().client("s3", region_name=region, config=config)
        except ValueError as error:
            raise S3Error(f"AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: is no address ({error}); write http://HOST:PORT or https://HOST") from error
        except Exception as error:
            raise _explain("S3 settings", error) from error
        self._answered = False

    def call(self, operation: str, uri: str, **arguments: Any) -> Any:
        """One request about an object or prefix; `Bucket` is filled in.

        Raises:
            S3Error: with the address and the remedy.
        """
        attempt = 0
        while True:
            try:
                answer = getattr(self._client, operation)(Bucket=split(uri)[0], **arguments)
                self._answered = True
                return answer
            except Exception as error:
                explained = _explain(uri, error)
                attempt += 1
                if not (self._answered and _may_pass(error)) or attempt >= ATTEMPTS:
                    raise explained from error
                time.sleep(min(8.0, 0.25 * 2**attempt))

    # --- reading

    def head(self, uri: str) -> Found | None:
        """What the server says of an object; None if there is none."""
        try:
            answer = self.call("head_object", uri, Key=split(uri)[1])
        except S3Error as error:
            if status(error) == 404 and "NoSuchBucket" not in code(error):
                return None
            raise
        return Found(answer["ContentLength"], answer["ETag"].strip('"'), answer.get("Metadata", {}).get(SHA256))

    def listing(self, uri: str, *, limit: int | None = None) -> dict[str, Found]:
        """Objects below a prefix that ends in `/`, by their name there; `limit` stops after that many."""
        prefix = split(uri)[1]
        found: dict[str, Found] = {}
        token: dict[str, str] = {}
        while True:
            page = self.call("list_objects_v2", uri, Prefix=prefix, MaxKeys=min(limit or 1000, 1000), **token)
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    found[item["Key"].removeprefix(prefix)] = Found(item["Size"], item["ETag"].strip('"'))
            if not page.get("IsTruncated") or (limit is not None and len(found) >= limit):
                return found
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, uri: str, limit: int) -> bytes | None:
        """A small object, whole; None if there is none.

        Raises:
            S3Error: also if it has more bytes than `limit`; they are not read.
        """
        found = self.head(uri)
        if found is None:
            return None
        if found.size > limit:
            raise S3Error(f"{uri}: has {found.size} bytes, more than the {limit} that are read; it is not what its name says")
        for attempt in range(ATTEMPTS):
            try:
                return b"".join(self.open(uri, 0, etag=found.etag)[2])
            except Broken:
                time.sleep(min(8.0, 0.25 * 2**attempt))
        raise S3Error(f"{uri}: {UNREACHABLE}")

    def open(self, uri: str, at: int, *, etag: str | None = None) -> Opened:
        """Open an object at an offset in bytes.

        Args:
            etag: which version of the object it must be; any if not given.

        Raises:
            Broken: if a server that answered before, or that has sent the bytes before `at`, is away.
            S3Error: for any other trouble.
        """
        key = split(uri)[1]
        wanted = ({"Range": f"bytes={at}-"} if at else {}) | ({"IfMatch": f'"{etag}"'} if etag is not None else {})
        try:
            answer = self._client.get_object(Bucket=split(uri)[0], Key=key, **wanted)
        except Exception as error:
            explained = _explain(uri, error)
            explained.__cause__ = error
            if status(explained) == 416:  # nothing after `at`: all of it is here, or what is here belongs to another object
                size = self.call("head_object", uri, Key=key)["ContentLength"]
                return (at, at, iter(())) if size == at else self.open(uri, 0, etag=etag)
            if (self._answered or at) and _may_pass(error):
                raise Broken("the S3 server is away") from error
            raise explained from error
        self._answered = True
        # A server that ignores the range starts again from 0.
        offset = at if at and str(answer.get("ContentRange", "")).startswith(f"bytes {at}-") else 0
        return offset, offset + answer["ContentLength"], _blocks(answer["Body"])

    # --- writing

    def put(self, uri: str, content: bytes) -> None:
        """Write a small object; the server compares its SHA-256."""
        digest = hashlib.sha256(content)
        self.call("put_object", uri, Key=split(uri)[1], Body=content, ChecksumSHA256=_base64(digest.digest()), Metadata={SHA256: digest.hexdigest()})

    def delete(self, uri: str) -> None:
        """Remove an object; one that is not there is no error."""
        self.call("delete_object", uri, Key=split(uri)[1])

    def check_writable(self, uri: str) -> None:
        """Write and remove a small object beside `uri`.

        Raises:
            S3Error: if that is refused.
        """
        probe = f"{uri.rstrip('/')}.anymal-probe"
        self.put(probe, b"written by anymal to see whether it may\n")
        self.delete(probe)

    def uploads(self, uri: str) -> dict[str, list[str]]:
        """Multipart uploads under way at or below `uri`: key -> upload ids, the newest last."""
        found: list[tuple[Any, str, str]] = []
        token: dict[str, str] = {}
        while True:
            page = self.call("list_multipart_uploads", uri, Prefix=split(uri)[1], **token)
            found += [(item.get("Initiated"), item["Key"], item["UploadId"]) for item in page.get("Uploads", [])]
            if not page.get("IsTruncated"):
                break
            token = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
        keys: dict[str, list[str]] = {}
        for _, key, upload in sorted(found, key=lambda item: (str(item[0]), item[1:])):
            keys.setdefault(key, []).append(upload)
        return keys

    def abort(self, uri: str, key: str, upload: str) -> None:
        """Drop a multipart upload and its parts."""
        try:
            self.call("abort_multipart_upload", uri, Key=key, UploadId=upload)
        except S3Error as error:
            if status(error) != 404:  # it was completed or dropped already
                raise

    def send(self, path: Path, uri: str, sha256: str, *, upload: str | None = None, parallel: bool = True, bar: Any = None) -> None:
        """Make a file an object whose metadata name its SHA-256; a long file in parts, each compared by its SHA-256 at the server.

        Args:
            sha256: of the file, as it is known.
            upload: a multipart upload of this very file, begun earlier: its parts are not sent again.
            parallel: several parts at a time.
            bar: moved forward by the bytes that are there.

        Raises:
            S3Error: the parts that arrived stay for a later `upload`.
        """
        key, size = split(uri)[1], path.stat().st_size
        if size <= PART:
            checksum = _base64(bytes.fromhex(sha256))
            self.call("put_object", uri, Key=key, Body=path.read_bytes(), ChecksumSHA256=checksum, Metadata={SHA256: sha256})
            if bar is not None:
                bar.update(size)
            return
        length = max(PART, -(-size // MAX_PARTS))
        begun = upload is not None
        if upload is None:
            upload = self.call("create_multipart_upload", uri, Key=key, ChecksumAlgorithm="SHA256", Metadata={SHA256: sha256})["UploadId"]
            there: dict[int, Any] = {}
        else:
            there = self._parts(uri, key, upload)

        def send_part(number: int) -> dict[str, Any]:
            with path.open("rb") as stream:
                stream.seek((number - 1) * length)
                content = stream.read(length)
            checksum = _base64(hashlib.sha256(content).digest())
            part = {"PartNumber": number, "ETag": there[number]["ETag"]} if _is(there.get(number), content, checksum) else {
                "PartNumber": number, "ETag": self.call("upload_part", uri, Key=key, UploadId=upload, PartNumber=number, Body=content,
                                                        ChecksumSHA256=checksum)["ETag"]}
            if bar is not None:
                bar.update(len(content))
            return part | {"ChecksumSHA256": checksum}

        numbers = range(1, -(-size // length) + 1)
        parts = in_parallel(send_part, numbers) if parallel else [send_part(number) for number in numbers]
        try:
            self.call("complete_multipart_upload", uri, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
        except S3Error as error:
            if not 400 <= status(error) < 500:
                raise
            # The answer to an earlier attempt may have been lost: then the upload is gone and the object there.
            found = self.head(uri)
            if found is not None and (found.size, found.sha256) == (size, sha256):
                return
            self.abort(uri, key, upload)  # the server does not find its parts right: they are of no use
            if not begun:
                raise
            self.send(path, uri, sha256, parallel=parallel)

    def _parts(self, uri: str, key: str, upload: str) -> dict[int, Any]:
        parts: dict[int, Any] = {}
        marker: dict[str, int] = {}
        while True:
            page = self.call("list_parts", uri, Key=key, UploadId=upload, **marker)
            parts |= {part["PartNumber"]: part for part in page.get("Parts", [])}
            if not page.get("IsTruncated"):
                return parts
            marker = {"PartNumberMarker": page["NextPartNumberMarker"]}


def status(error: S3Error) -> int:
    """The HTTP status behind an error; 0 if the server gave none."""
    response = getattr(error.__cause__, "response", None)
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if isinstance(response, dict) else 0


def code(error: S3Error) -> str:
    """S3's word for what went wrong; empty if the server gave none."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _may_pass(error: Exception) -> bool:
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500 or error.response.get("Error", {}).get("Code") in PASSING
    return isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError) and not isinstance(error, exceptions.SSLError)


def _explain(uri: str, error: Exception) -> S3Error:
    """One sentence for what boto3 raises; what is not of its making stays what it is."""
    from botocore import exceptions

    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        text = "no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile)"
    elif isinstance(error, exceptions.ParamValidationError):
        text = "is no address of S3; write s3://BUCKET/PREFIX"
    elif isinstance(error, exceptions.ClientError):
        word = str(error.response.get("Error", {}).get("Code", ""))
        text = f"{CODES.get(word, f'S3 answered {word}')}; correct the address, or the credentials in the environment"
    elif isinstance(error, exceptions.SSLError):
        text = "no trusted connection to the S3 server; check AWS_CA_BUNDLE and the address in AWS_ENDPOINT_URL_S3"
    elif isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
        text = UNREACHABLE
    elif isinstance(error, exceptions.BotoCoreError):
        text = f"S3 cannot be used ({' '.join(str(error).split())}); correct the AWS_… variables of the environment"
    else:
        raise error
    return S3Error(f"{uri}: {text}")


def _blocks(body: Any) -> Iterator[bytes]:
    from botocore import exceptions

    try:
        with closing(body):
            yield from body.iter_chunks(BLOCK)
    except exceptions.BotoCoreError as error:
        raise Broken("the connection to S3 broke") from error


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _is(part: Any, content: bytes, checksum: str) -> bool:
    """Whether a part at the server has this content: by its SHA-256, or by its ETag (an MD5) where the server lists no SHA-256."""
    if part is None or part.get("Size") != len(content):
        return False
    if "ChecksumSHA256" in part:
        return bool(part["ChecksumSHA256"] == checksum)
    return bool(part["ETag"].strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest())
