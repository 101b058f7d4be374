"""Serve a model to clients of OpenAI's API and to people, behind the guard."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import click

from anymal.errors import ConfigError, DataError
from anymal.serving.defaults import MAX_NEW_TOKENS, ROWS, SECONDS, WAITING


@click.command("serve")
@click.argument("model", metavar="BUNDLE|models:/NAME@ALIAS")
@click.option("--guard", required=True, metavar="FOLDER|models:/NAME@ALIAS", help="The classifiers that check what goes in and out.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@click.option("--rows", default=ROWS, show_default=True, type=click.IntRange(min=1), help="Answers decoded together.")
@click.option("--waiting", default=WAITING, show_default=True, type=click.IntRange(min=0),
              help="Requests that may wait beside them; one more gets 429.")
@click.option("--seconds", default=SECONDS, show_default=True, type=click.FloatRange(min=1), help="For an answer, waiting and checks included.")
@click.option("--max-new-tokens", default=MAX_NEW_TOKENS, show_default=True, type=click.IntRange(min=1), help="The most that a caller may ask for.")
@click.option("--body-mib", default=64, show_default=True, type=click.IntRange(min=1), help="Greatest size of a request.")
@click.option("--remote-media/--no-remote-media", default=False, show_default=True, help="Fetch media from public http(s) addresses.")
@click.option("--keys", type=click.Path(path_type=Path), metavar="FILE", help="API keys, one a line; callers need one of them.")
@click.option("--follow-seconds", default=15.0, show_default=True, type=click.FloatRange(min=0.1),
              help="How often the registry is asked for a new version.")
@click.option("--dtype", type=click.Choice(["auto", "bfloat16", "float16", "float32"]), help="Of the LLM; as registered if not given.")
@click.option("--quantization", type=click.Choice(["none", "nf4", "int8"]), help="Of the LLM; as registered if not given.")
@click.option("--text-in-pictures/--no-text-in-pictures", default=True, show_default=True, help="Read text in pictures and check it.")
def command(
    *, model: str, guard: str, host: str, port: int, rows: int, waiting: int, seconds: float, max_new_tokens: int, body_mib: int,
    remote_media: bool, keys: Path | None, follow_seconds: float, dtype: str | None, quantization: str | None, text_in_pictures: bool
) -> None:
    """Answer over HTTP: `anymal serve models:/anymal@champion --guard models:/anymal-guard@champion`, then http://127.0.0.1:8000.

    The address is followed: when another version becomes champion, new requests go to it and those under way end on the old one. Every request,
    picture and answer is checked by the guard; without one nothing is served.
    """
    signal.signal(signal.SIGTERM, _stop)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    known = () if keys is None else _read_keys(keys)

    from anymal.serving.api import Limits, create_app
    from anymal.serving.checks import load_checks
    from anymal.serving.desk import Desk
    from anymal.serving.host import Host, load_with
    from anymal.serving.threads import set_aside
    from anymal.serving.web import serve

    threads = set_aside()
    checks = load_checks(guard, text_in_pictures=text_in_pictures)
    following = Host(model, rows=rows, waiting=waiting, follow_seconds=follow_seconds, load=load_with(dtype, quantization), threads=threads)
    desk = Desk(following, checks, seconds=seconds, limit=max_new_tokens)
    limits = Limits(body_bytes=body_mib * 2**20, requests=rows + waiting, remote_media=remote_media)
    following.start()
    try:
        serve(create_app(desk, limits=limits, keys=known), host=host, port=port, connections=4 * (rows + waiting) + 16, grace=seconds)
    finally:
        following.close(timeout=10)


def _stop(*_: object) -> None:
    """End now: while the guard is loaded there is nothing to finish. The server has a handler of its own, and calls this one when it is done.

    Without a handler, the first process of a container does not end at all.
    """
    raise SystemExit(0)


def _read_keys(path: Path) -> tuple[str, ...]:
    try:
        found = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--keys {path}: cannot be read ({error}); give a text file with one key a line") from error
    if not found or min(map(len, found)) < 16:
        raise ConfigError(f"--keys {path}: holds {'a key of fewer than 16 characters' if found else 'no key'}; make one with `openssl rand -hex 24`")
    return found
