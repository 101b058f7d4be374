"""A server with OpenAI's chat completions that answers from the prompt's last turn, in a process of its own, so that it can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests


class Scripted:
    """Starts and stops the process; `log` holds one line per answer that was sent: the last user's turn."""

    def __init__(self, log: Path, port: int) -> None:
        self.log, self._port = log, port
        self.url = f"http://127.0.0.1:{port}/v1"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, dies_after: int = 10**9) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, str(self._port), str(self.log), str(dies_after)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                requests.get(f"http://127.0.0.1:{self._port}/", timeout=1)
                return
            except requests.RequestException:
                time.sleep(0.05)
        raise RuntimeError("the scripted server did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def answered(self) -> list[str]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.is_file() else []


def main(port: int, log: Path, dies_after: int) -> None:
    sent = 0

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def do_POST(self) -> None:
            nonlocal sent
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            last = body["messages"][-1]["content"]
            status, reply = _reply(body, last)
            data = json.dumps(reply).encode()
            if sent >= dies_after:
                os._exit(1)
            sent += status == 200
            if status == 200:
                with log.open("a") as stream:
                    stream.write(json.dumps(last) + "\n")
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def _reply(body: dict, last: str) -> tuple[int, dict]:
    if body["model"] == "unknown":
        return 404, {"error": {"message": "no such model"}}
    first = last.partition("\n")[0]
    if "too long" in first:
        return 400, {"error": {"message": "the prompt is too long"}}
    thing = first.split(" sits ")[0]
    texts = {
        "green": "A picture.", "red": f"Question: What does the picture show? === Answer: {first} === Question: What is there? === Answer: A zebra.",
        "blue": f"Question: What sits on a blue background? === Answer: {thing} does, and",
    }
    color = next((name for name in texts if name in first), "green")
    choice = {"index": 0, "message": {"role": "assistant", "content": texts[color]}, "finish_reason": "length" if color == "blue" else "stop"}
    return 200, {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
