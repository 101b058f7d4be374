"""Fetching media from addresses: what may not be reached is not, and what may is read within limits."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from anymal.errors import DataError
from anymal.serving import remote_media
from anymal.serving.remote_media import fetch, is_public

CONTENT = b"picture" * 1000


class Site(BaseHTTPRequestHandler):
    """Content at /ok, a redirect at /away, a trickle at /slow."""

    def do_GET(self) -> None:
        self.server.hosts.append(self.headers["host"])  # type: ignore[attr-defined]
        if self.path == "/away":
            self.send_response(302)
            self.send_header("location", "/ok")
            self.end_headers()
            return
        self.send_response(200 if self.path.startswith(("/ok", "/slow")) else 404)
        self.end_headers()
        for place in range(0, len(CONTENT), 70):
            self.wfile.write(CONTENT[place : place + 70])
            if self.path == "/slow":
                self.server.tick.wait(0.05)  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def site() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.hosts, server.tick, server.daemon_threads = [], threading.Event(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.tick.set()
    server.shutdown()
    server.server_close()


def anyone(_: Any) -> bool:
    return True


@pytest.mark.parametrize("text", [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::",
    "fe80::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::"])
def test_addresses_that_are_not_the_internets(text):
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["8.8.8.8", "2606:4700::1111"])
def test_addresses_that_are(text):
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f000001", "127.1"])
def test_this_machine_is_not_reached_however_it_is_called(site, host):
    with pytest.raises(DataError, match=r"part 1: its address (is not one of the public internet|has a host that cannot be found)"):
        fetch(f"http://{host}:{site.server_port}/ok", "part 1", most=10**6)
    assert site.hosts == []


def test_one_private_address_among_public_ones_is_enough(site, monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(DataError, match="not one of the public internet"):
        fetch(f"http://media.example:{site.server_port}/ok", "x", most=10**6)


def test_the_address_that_was_checked_is_the_one_reached(site, monkeypatch):
    """The name means another address at every further look."""
    looks: list[str] = []
    real = socket.getaddrinfo

    def lookup(host: str, port: int, *rest: Any, **options: Any) -> Any:
        if host == "127.0.0.1":
            return real(host, port, *rest, **options)
        looks.append(host)
        return real("127.0.0.1" if len(looks) == 1 else "192.0.2.1", port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    assert fetch(f"http://media.example:{site.server_port}/ok?x=1", "x", most=10**6, allowed=anyone) == CONTENT
    assert looks == ["media.example"] and site.hosts == [f"media.example:{site.server_port}"]


@pytest.mark.parametrize(("path", "said"), [("/away", "answered 302, not 200"), ("/gone", "answered 404"), ("/slow", "took more than")])
def test_what_is_not_followed_or_waited_for(site, monkeypatch, path, said):
    monkeypatch.setattr(remote_media, "SECONDS", 0.3)
    monkeypatch.setattr(remote_media, "CHUNK", 70)
    with pytest.raises(DataError, match=said):
        fetch(f"http://127.0.0.1:{site.server_port}{path}", "x", most=10**6, allowed=anyone)


def test_more_than_allowed_is_not_read(site):
    with pytest.raises(DataError, match="more than 6999 bytes"):
        fetch(f"http://127.0.0.1:{site.server_port}/ok", "x", most=6999, allowed=anyone)
    assert fetch(f"http://127.0.0.1:{site.server_port}/ok", "x", most=7000, allowed=anyone) == CONTENT


@pytest.mark.parametrize("url", [
    "ftp://a.example/x", "file:///etc/passwd", "http:///x", "//a.example/x", "http://u:p@a.example/", "http://a.example:99999/", "x"])
def test_what_is_no_address(url):
    with pytest.raises(DataError, match="neither a data URI nor an http"):
        fetch(url, "x", most=1)
