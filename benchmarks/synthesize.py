"""Answers a minute of synthesize: in this process one by one and in batches, and by a server on the loopback, in one run.

The server is `transformers serve` with the same LLM; it starts before the clock does.

    python benchmarks/synthesize.py [--samples 32]      # after `dvc repro curate_image`
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from anymal.config import read_document
from anymal.model.llm import load_llm
from anymal.synthesis.backends import Backend, InProcess, Request, Server
from anymal.synthesis.checks import Limits
from anymal.synthesis.generation import Kind, choose


def per_minute(backend: Backend, requests: list[Request]) -> float:
    """Answers a minute; the first request warms up and is not counted."""
    list(backend.complete(requests[:1]))
    started = time.perf_counter()
    count = sum(len(group) for group in backend.complete(requests[1:]))
    return 60 * count / (time.perf_counter() - started)


def start_server(port: int, dtype: str) -> subprocess.Popen[bytes]:
    """`transformers serve`, once it answers."""
    command = [Path(sys.executable).with_name("transformers"), "serve", "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return process
        except urllib.error.HTTPError:
            return process
        except OSError:
            time.sleep(0.5)
    raise SystemExit("transformers serve ended at once; install transformers with its extra 'serving'")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--assets", type=Path, default=Path("data/assets"))
    parser.add_argument("--shards", type=Path, default=Path("data/shards/image"))
    arguments = parser.parse_args()
    knobs = read_document(Path("params.yaml"))["synthesize"]["image"]
    own = knobs["in_process"]
    kind = Kind("conversation", {"train": arguments.samples + 1, "val": 0}, 1, Limits((1, 99), (1, 99), 1.0))
    chosen = choose(arguments.shards, [kind], modality="image", manner=knobs["manner"], captions=knobs["captions"],
                    min_words=knobs["min_description_words"], seed=knobs["seed"])
    requests = [asked.request for asked in chosen.asked]
    sampling = {name: knobs[name] for name in ("max_new_tokens", "temperature", "top_p", "seed")}
    llm = load_llm(arguments.assets / own["llm"], dtype=own["dtype"], quantization=own["quantization"], attention=own["attention"])
    rates = {f"in process, {size} at a time": per_minute(InProcess(*llm, batch_size=size, **sampling), requests) for size in (1, own["batch_size"])}
    del llm
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start_server(port, own["dtype"])
    try:
        for concurrency in (1, 8):
            server = Server(f"http://127.0.0.1:{port}/v1", str((arguments.assets / own["llm"]).resolve()), concurrency=concurrency, timeout=600.0,
                            retries=2, **sampling)
            rates[f"server, {concurrency} at a time"] = per_minute(server, requests)
    finally:
        process.kill()
        process.wait()
    for name, rate in rates.items():
        print(f"{name:28} {rate:8.1f} answers/min  {rate / next(iter(rates.values())):6.2f}x")


if __name__ == "__main__":
    main()
