"""Files behind http(s) addresses, read from any offset."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from anymal.data.sources.transfer import BLOCK, Broken, Opened, own_source
from anymal.errors import AssetError


class Refused(AssetError):
    """The server wants something that only pip knows how to give (a password, a proxy, a certificate)."""


def open_http(name: str, url: str, verify: str | None, at: int) -> Opened:
    """Open an http(s) address at an offset."""
    import requests

    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={at}-"} if at else {})
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=(20, 60), verify=verify or True)
    except (requests.exceptions.SSLError, requests.exceptions.ProxyError) as error:
        raise Refused(f"asset {name}: no trusted connection to its server; check certificates and proxy, {own_source(name)}") from error
    except requests.exceptions.RequestException as error:
        raise Broken("no connection") from error
    if response.status_code == 416:  # nothing after `at`: all of it is here, or what is here belongs to another file
        response.close()
        match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
        return (at, at, iter(())) if match and int(match[1]) == at else open_http(name, url, verify, 0)
    if response.status_code in (401, 403, 407):
        raise Refused(f"asset {name}: its server answered {response.status_code}; check your access to it, {own_source(name)}")
    if response.status_code == 429 or response.status_code >= 500:
        raise Broken(f"the server answered {response.status_code}")
    if response.status_code not in (200, 206):
        raise AssetError(f"asset {name}: its server answered {response.status_code}; correct the entry of the lock, {own_source(name)}")
    length = response.headers.get("Content-Length")
    offset = at if response.status_code == 206 else 0
    return offset, None if length is None else offset + int(length), _http_blocks(response)


def _http_blocks(response: Any) -> Iterator[bytes]:
    import requests

    try:
        with closing(response):
            yield from response.iter_content(BLOCK)
    except requests.exceptions.RequestException as error:
        raise Broken("the connection broke") from error
