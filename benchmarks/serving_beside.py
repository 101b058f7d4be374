"""One client that reads streams, and transformers' `generate` of the same model and inputs, by turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.serving_clients import stream
from benchmarks.serving_offline import Offline
from benchmarks.serving_process import ServerProcess
from benchmarks.serving_requests import Asked


def beside_generate(server: ServerProcess, offline: Offline, asked: Sequence[Asked], *, rounds: int, tokens: int) -> dict[str, Any]:
    """Times of both, printed for each kind of request and for all: `benchmarks/serving.py` says what they mean."""
    rows: list[dict[str, Any]] = []
    for request in asked:
        offline.timed(request)  # the first pass of a shape is slower
        for _ in range(rounds):
            plain, check, ours = offline.timed(request), offline.check_seconds(request), stream(server, request, tokens=tokens)
            if ours.noted["first_token"] is None:
                raise SystemExit(f"{request.name}: the server refused what it answered offline: {ours.noted}")
            rows.append({
                "request": request.name, "kind": request.kind, "check": check,
                "generate": {"first_token": plain.first, "whole": plain.whole, "tokens": plain.tokens, "decoding": plain.whole - plain.first},
                "server": {"first_token": ours.noted["first_token"], "first_sentence": ours.sentence, "whole": ours.whole,
                           "tokens": ours.noted["tokens"], "decoding": ours.noted["seconds"] - ours.noted["first_token"]}})
    print("                      first token, s: generate  serve (check alone)   first sentence    whole, s: generate  serve    "
          "tokens/s: generate  serve   ratios: first token, tokens/s")
    kinds = {kind: _summary([row for row in rows if row["kind"] == kind]) for kind in dict.fromkeys(row["kind"] for row in rows)}
    every = _summary(rows)
    for name, found in {**kinds, "all": every}.items():
        one, other, ratios = found["generate"], found["server"], found["ratios"]
        print(f"{name:30} {one['first_token']:16.3f} {other['first_token']:6.3f} ({found['check']:11.3f}) {_figure(other['first_sentence'], 3):>16} "
              f"{one['whole']:21.3f} {other['whole']:6.3f} {_figure(one['tokens_per_second'], 1):>21} {_figure(other['tokens_per_second'], 1):>6} "
              f"{ratios['first_token']:22.2f} {_figure(ratios['tokens_per_second'], 2):>9}", flush=True)
    return {"all": every, "kinds": kinds, "rows": rows}


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of the times, and tokens after the first one a second; none where all answers are of one token."""
    longer = [row for row in rows if min(row[who]["tokens"] for who in ("generate", "server")) > 1]
    found: dict[str, Any] = {"streams": len(rows), "check": _mean([row["check"] for row in rows])}
    for who in ("generate", "server"):
        seconds = sum(row[who]["decoding"] for row in longer)
        found[who] = {name: _mean([row[who][name] for row in rows]) for name in ("first_token", "whole")}
        found[who]["tokens_per_second"] = sum(row[who]["tokens"] - 1 for row in longer) / seconds if longer else None
    spoken = [row["server"]["first_sentence"] for row in rows if row["server"]["first_sentence"] is not None]
    found["server"]["first_sentence"] = _mean(spoken) if spoken else None
    rates = [found[who]["tokens_per_second"] for who in ("server", "generate")]
    found["ratios"] = {name: found["generate"][name] / found["server"][name] for name in ("first_token", "whole")} | {
        "tokens_per_second": rates[0] / rates[1] if longer else None}
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
