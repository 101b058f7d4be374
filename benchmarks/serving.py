"""What `anymal serve` does under load, in memory, and beside transformers' `generate`, in one run with the real server and real clients.

    python -m benchmarks.serving models/tuned-bundle --guard models/guard --data data/shards --output serving.json
    python -m benchmarks.serving models:/anymal@champion --guard models:/anymal-guard@champion --seconds 5 --samples 2 --memory-requests 100

Run it where `anymal serve` runs: assets are looked for in `data/assets`. Requests are texts, and the test samples of each modality that the bundle
reads and `--data` has shards of, alone and two together. Answers are greedy, of at most `--max-new-tokens` tokens. Parts (`--parts`), in this order:

- `memory`: the resident set of a fresh server after 50 requests and at the end of `--memory-requests`, asked by four clients.
- `load`: so many clients (`--clients`) for `--seconds` each. Every answer is compared with that of the same loading code without a server: one
  request at a time through `generate`, the guard in the way. Rounding in batches may turn a tie: where answers part, the offline run's two likeliest
  tokens are compared, and a gap of logits of at most `--tie` is called a near tie. All else is wrong.
- `generate`: one client that reads a stream, the guard on, and `generate` of the same model with the same inputs and no guard, by turns. Both clocks
  start with the request's bytes and run through decoding of files, encoders and projectors. Time to first token is when the model chooses its first
  token (noted in the server's log; its clock starts when the request arrives). The reader sees nothing then, as a sentence is released after its
  check, so the time to the first released sentence is given beside it, and how long the guard checks such a request alone (here, by turns with the
  others). Tokens a second are those after the first token, up to the last token of `generate`, and up to the end of the server's answer, the check
  of its last sentence included.
- `batching`: answers a second of four clients, and the same of a server that answers one at a time (`--rows 1`).

A table goes to stdout, everything to `--output`. The exit status is 1 if something wanted was not reached.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from anymal.errors import DataError
from benchmarks.serving_beside import beside_generate
from benchmarks.serving_clients import Tally, load
from benchmarks.serving_offline import Expected, Offline
from benchmarks.serving_process import ServerProcess, served
from benchmarks.serving_requests import Asked, requests_of

PARTS = ("memory", "load", "generate", "batching")
STEP = 50
"""Requests between two readings of the memory; those before the first one warm up."""
BATCHING, BESIDE_GENERATE = 1.5, 0.9
"""Wanted ratios."""
COMPANY = 4
"""Clients of the parts memory and batching."""
TIES = {torch.float32: 1e-3}
"""Greatest gap of logits that is a near tie, where it is not 0.25: two steps of bfloat16 between 16 and 32."""


@dataclass
class Trial:
    """What is asked of servers, the answers that they have to give, and what came of all runs."""

    asked: Sequence[Asked]
    expected: Mapping[str, Expected]
    tokens: int
    tie: float
    tallies: list[Tally] = field(default_factory=list)

    def load(self, server: ServerProcess, clients: int = COMPANY, *, seconds: float | None = None, count: int | None = None) -> Tally:
        """One run."""
        tally = load(server, self.asked, self.expected, clients=clients, tokens=self.tokens, tie=self.tie, seconds=seconds, count=count)
        self.tallies.append(tally)
        for entry in tally.different:
            if not entry["near_tie"]:
                print(f"wrong: {entry['request']}: got {entry['got']}, wanted {entry['wanted']}, gap {entry['gap']}, reasons {entry['reasons']}")
        return tally


def main() -> None:
    arguments = read_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    offline = Offline(arguments.bundle, arguments.guard, dtype=arguments.dtype, text_in_pictures=arguments.text_in_pictures,
                      tokens=arguments.max_new_tokens)
    llm = offline.model.llm
    tie = arguments.tie if arguments.tie is not None else TIES.get(llm.dtype, 0.25)
    asked, expected = answerable(offline, requests_of(arguments.data, list(offline.model.metadata), arguments.samples))
    trial = Trial(asked, expected, arguments.max_new_tokens, tie)
    spoken = [one for one in asked if expected[one.name].said.finish != "content_filter"]
    if not spoken:
        raise SystemExit(f"{len(asked)} requests and not one answer offline: the guard refuses all, or --data has no such media")
    print(f"{len(asked)} requests of {len({one.kind for one in asked})} kinds, {len(asked) - len(spoken)} of them refused offline; "
          f"LLM in {llm.dtype} on {llm.device}, {torch.get_num_threads()} threads", flush=True)
    found: dict[str, Any] = {
        "requests": [{"name": one.name, "kind": one.kind, "offline": expected[one.name].said.finish, "tokens": len(expected[one.name].gaps)}
                     for one in asked],
        "setup": {"dtype": str(llm.dtype), "device": str(llm.device), "threads": torch.get_num_threads(), "torch": torch.__version__, "tie": tie,
                  "max_new_tokens": arguments.max_new_tokens, "text_in_pictures": arguments.text_in_pictures, "seconds": arguments.seconds}}
    options = ["--max-new-tokens", str(max(1024, arguments.max_new_tokens)), *(["--dtype", arguments.dtype] if arguments.dtype else []),
               *([] if arguments.text_in_pictures else ["--no-text-in-pictures"])]
    wanted: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as place:
        with served(arguments.bundle, arguments.guard, Path(place), options) as server:
            if "memory" in arguments.parts:
                found["memory"] = memory(server, trial, requests=arguments.memory_requests)
            else:
                trial.load(server, count=len(asked))
            if "load" in arguments.parts:
                found["load"] = [show(trial.load(server, clients, seconds=arguments.seconds)) for clients in arguments.clients]
            if "generate" in arguments.parts:
                found["generate"] = beside_generate(server, offline, spoken, rounds=arguments.rounds, tokens=arguments.max_new_tokens)
                for name in ("first_token", "tokens_per_second"):
                    ratio = found["generate"]["all"]["ratios"][name]
                    if ratio is None:
                        raise SystemExit("all answers have one token: nothing to compare; ask for more with --max-new-tokens")
                    wanted[f"{name} beside generate >= {BESIDE_GENERATE}"] = ratio >= BESIDE_GENERATE
            if "batching" in arguments.parts:
                together = show(trial.load(server, seconds=arguments.seconds), "together")
        if "batching" in arguments.parts:
            with served(arguments.bundle, arguments.guard, Path(place), [*options, "--rows", "1"]) as server:
                trial.load(server, count=len(asked))
                single = show(trial.load(server, seconds=arguments.seconds), "one at a time")
            ratio = together["requests_per_second"] / single["requests_per_second"]
            found["batching"] = {"together": together, "one_at_a_time": single, "ratio": ratio}
            wanted[f"batching >= {BATCHING}"] = ratio >= BATCHING
            print(f"batching: {ratio:.2f}x the answers a second of one at a time", flush=True)
    every = [tally.document() for tally in trial.tallies]
    found["answers"] = {name: sum(entry[name] for entry in every) for name in ("answers", "right", "near_ties", "wrong")}
    wanted["no wrong answer"] = not found["answers"]["wrong"]
    wanted["no error"] = not any(entry["errors"] for entry in every)
    found["wanted"] = wanted
    print(f"of {found['answers']['answers']} answers in all runs {found['answers']['right']} as offline, {found['answers']['near_ties']} near ties, "
          f"{found['answers']['wrong']} wrong")
    for name, reached in wanted.items():
        print(f"{'reached' if reached else 'NOT REACHED':12} {name}")
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.exit(not all(wanted.values()))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a folder, or an address of the registry")
    parser.add_argument("--guard", required=True, help="a folder, or an address of the registry")
    parser.add_argument("--data", type=Path, default=Path("data/shards"), help="folders of shards, one a modality")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run under load")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--samples", type=int, default=4, help="requests of each kind")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with generate")
    parser.add_argument("--memory-requests", type=int, default=500)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--tie", type=float, help="greatest gap of logits that is a near tie; 0.25, and 0.001 in float32, if not given")
    parser.add_argument("--threads", type=int, help="of torch, here and in the server")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"], help="of the LLM; as registered if not given")
    parser.add_argument("--text-in-pictures", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON")
    arguments = parser.parse_args()
    if arguments.memory_requests <= STEP:
        parser.error(f"--memory-requests {arguments.memory_requests}: memory is first read after {STEP}; give more")
    return arguments


def answerable(offline: Offline, requests: Sequence[Asked]) -> tuple[list[Asked], dict[str, Expected]]:
    """The requests that the model can be asked, with their offline answers; the others are named."""
    asked, expected = [], {}
    for request in requests:
        try:
            expected[request.name] = offline.expected(request)
        except DataError as error:
            print(f"left out: {request.name} ({request.kind}): {error}")
            continue
        asked.append(request)
    return asked, expected


def memory(server: ServerProcess, trial: Trial, *, requests: int) -> dict[str, Any]:
    """The server's resident set while requests come."""
    readings = []
    for done in range(0, requests, STEP):
        trial.load(server, count=min(STEP, requests - done))
        readings.append({"requests": min(done + STEP, requests), "resident_mib": server.resident_mib()})
    first, last = readings[0]["resident_mib"], readings[-1]["resident_mib"]
    print(f"memory: {first:.0f} MiB after {STEP} requests, {last:.0f} MiB after {requests}: {last - first:+.1f} MiB", flush=True)
    return {"readings": readings, "growth_mib": last - first}


def show(tally: Tally, note: str = "") -> dict[str, Any]:
    """Print a run under load."""
    found = tally.document()
    times = "no answer" if found["p50"] is None else f"p50 {found['p50']:6.2f} s  p95 {found['p95']:6.2f} s"
    print(f"{tally.clients:3} clients {note:14} {found['requests_per_second']:7.2f} answers/s  {found['tokens_per_second']:7.1f} tokens/s  {times}  "
          f"{tally.right} right, {found['near_ties']} near ties, {found['wrong']} wrong  refusals {dict(tally.refusals) or 0}  "
          f"errors {dict(tally.errors) or 0}", flush=True)
    return found


if __name__ == "__main__":
    main()
