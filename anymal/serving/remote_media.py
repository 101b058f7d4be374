"""Media at addresses, fetched for a caller without reaching what only this machine or its network may reach."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from contextlib import closing
from urllib.parse import urlsplit

from anymal.errors import DataError

PORTS = {"http": 80, "https": 443}
SECONDS = 10.0
"""For the whole of it."""
CHUNK = 2**16

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's: not of this machine, of a private network, of a link, of a cloud's metadata service."""
    inner = address.ipv4_mapped or address.sixtofour if isinstance(address, ipaddress.IPv6Address) else None
    return address.is_global and not address.is_multicast and (inner is None or is_public(inner))


def fetch(url: str, name: str, *, most: int, allowed: Callable[[Address], bool] = is_public) -> bytes:
    """The content at an address.

    The host is looked up once, each of its addresses must be public, and the connection goes to the address that was checked: a name that means
    another address a moment later changes nothing. Redirects are not followed.

    Args:
        name: what to call it in an error.
        most: bytes that are read.

    Raises:
        DataError: if the address may not be reached, does not answer in time, or gives more than that; the message does not say what lies there.
    """
    import urllib3

    parts = urlsplit(url)
    try:
        port = parts.port or PORTS.get(parts.scheme)
    except ValueError:
        port = None
    if parts.scheme not in PORTS or not parts.hostname or port is None or parts.username or parts.password:
        raise DataError(f"{name}: is neither a data URI nor an http(s) address without a password; send the file's content as a data URI")
    until = time.monotonic() + SECONDS
    address = _lookup(parts.hostname, port, name, allowed)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    limit = urllib3.Timeout(connect=3, read=3)
    pool = urllib3.HTTPConnectionPool(str(address), port, timeout=limit, retries=False)
    if parts.scheme == "https":
        pool = urllib3.HTTPSConnectionPool(str(address), port, timeout=limit, retries=False, server_hostname=parts.hostname,
                                           assert_hostname=parts.hostname)
    headers = {"host": parts.netloc, "accept-encoding": "identity", "user-agent": "anymal"}
    try:
        with closing(pool), pool.request("GET", path, headers=headers, redirect=False, preload_content=False) as response:
            if response.status != 200:
                raise DataError(f"{name}: its address answered {response.status}, not 200; redirects are not followed")
            data = bytearray()
            while chunk := response.read(CHUNK, decode_content=False):
                data += chunk
                if len(data) > most:
                    raise DataError(f"{name}: its address gives more than {most} bytes; send a smaller file")
                if time.monotonic() > until:
                    raise DataError(f"{name}: its address took more than {SECONDS:.0f} s; send the file's content as a data URI")
            return bytes(data)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise DataError(f"{name}: its address cannot be read ({type(error).__name__}); send the file's content as a data URI") from error


def _lookup(host: str, port: int, name: str, allowed: Callable[[Address], bool]) -> Address:
    try:
        found = [ipaddress.ip_address(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError, ValueError) as error:
        raise DataError(f"{name}: its address has a host that cannot be found") from error
    if not found or not all(allowed(address) for address in found):
        raise DataError(f"{name}: its address is not one of the public internet; send the file's content as a data URI")
    return found[0]
