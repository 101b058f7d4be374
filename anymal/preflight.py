"""What can be found out before a run starts: whether all it needs is there. Every check runs, so that all problems are known at once.

Nothing is downloaded and nothing is written, but for a small object beside each S3 output, which is removed again. No secret is shown.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from anymal import tracking
from anymal.cluster import SECTION, cluster_of, in_bytes
from anymal.data import remote
from anymal.data.asset_folders import cache_folder
from anymal.data.available import check_available
from anymal.data.lock import AnyEntry, read_lock, unknown_name
from anymal.data.manifest import MANIFEST, verify_manifest
from anymal.data.s3 import SCHEME, S3Error, Storage
from anymal.errors import AnymalError, ConfigError, DataError
from anymal.planning import profile as planning
from anymal.profile import profile_problems

SECONDS = 10
"""How long a server may take to answer."""
RESERVE = 2**30
"""Bytes that stay free on each disk."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    subject: str
    problem: str | None = None
    """A sentence with the remedy; None if all is well."""


@dataclass(frozen=True)
class Run:
    """What a run is going to use."""

    profile: Mapping[str, Any]
    source: str
    """What the profile is called."""
    stages: tuple[str, ...] = ()
    """Those that will run; all of the profile if empty."""
    lock: remote.Place | None = None
    inputs: tuple[remote.Place, ...] = ()
    """Folders and files that stages will read."""
    outputs: tuple[remote.Place, ...] = ()
    """Where stages will write."""
    secrets: tuple[str, ...] = ()
    """Environment variables that must be set, besides those which the other checks ask for."""
    variants: tuple[Mapping[str, Any], ...] = ()
    """Sections that run instead of the profile's as well: an ablation's."""
    sizes: dict[str, int] = field(default_factory=dict, init=False)
    """Bytes to be brought here, by what they are: noted by the checks for the one of the disks, which comes last."""

    def runs(self, stage: str) -> bool:
        """Whether a stage will run, and its section can be looked into."""
        return (not self.stages or stage in self.stages) and isinstance(self.profile.get(stage), Mapping)

    @cached_property
    def lock_entries(self) -> dict[str, AnyEntry]:
        """The lock of assets.

        Raises:
            AnymalError: if it is wrong, or cannot be fetched.
        """
        if self.lock is None:
            return {}
        return read_lock(self.lock if isinstance(self.lock, Path) else remote.fetch("--lock", self.lock, storage=self.storage))

    @cached_property
    def storage(self) -> Storage:
        """The S3 server, asked with little patience.

        Raises:
            S3Error: if the environment's settings are wrong.
        """
        return Storage(attempts=2, timeout=SECONDS)


def preflight(run: Run) -> list[Finding]:
    """Look at all that a run needs; the findings of each check of `CHECKS`, in that order."""
    return [finding for check in CHECKS.values() for finding in check(run)]


def _finding(check: str, subject: str, look: Callable[[], object]) -> Finding:
    try:
        look()
    except AnymalError as error:
        return Finding(check, subject, str(error))
    return Finding(check, subject)


def configuration(run: Run) -> Iterator[Finding]:
    """Every section against its schema."""
    problems = profile_problems(run.profile, run.source, run.stages)
    problems += [problem for variant in run.variants for problem in profile_problems(variant, run.source)]
    yield from (Finding("configuration", run.source, problem) for problem in problems)
    if not problems:
        yield Finding("configuration", f"{run.source}: {len(run.profile)} sections")


def secrets(run: Run) -> Iterator[Finding]:
    """Environment variables that a run needs, and those that make no sense alone."""
    for name in run.secrets:
        yield Finding("secrets", name, None if os.environ.get(name) else f"{name}: is not set; set this environment variable")
    for first, second in (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")):
        given = [name for name in (first, second) if os.environ.get(name)]
        if len(given) == 1:
            (lacking,) = {first, second} - set(given)
            yield Finding("secrets", lacking, f"{lacking}: is not set, but {given[0]} is; set both or neither")


def mlflow(run: Run) -> Iterator[Finding]:
    """The MLflow store, where runs are recorded."""
    if not tracking.enabled():
        yield Finding("mlflow", "off (ANYMAL_TRACKING)")
    else:
        yield _finding("mlflow", tracking.shown_uri(tracking.tracking_uri()), tracking.check_store)


def servers(run: Run) -> Iterator[Finding]:
    """Servers that sections name as `server: {url, model}`: an LLM that answers there, and knows the model."""
    for name, section in run.profile.items():
        if not run.runs(name):
            continue
        parts = [section, *(part for part in section.values() if isinstance(part, Mapping))]
        for server in (part.get("server") for part in parts):
            if isinstance(server, Mapping) and isinstance(server.get("url"), str):
                yield _finding("servers", f"{name}: {server['url']}", lambda name=name, server=server: _ask_server(name, server))  # type: ignore[misc]


def _ask_server(stage: str, server: Mapping[str, Any]) -> None:
    import requests

    setting = f"{stage}: server.url = {server['url']}"
    key = os.environ.get("OPENAI_API_KEY")
    try:
        answer = requests.get(f"{server['url'].rstrip('/')}/models", timeout=SECONDS, headers={"Authorization": f"Bearer {key}"} if key else {})
    except requests.RequestException as error:
        raise ConfigError(f"{setting}: cannot be reached; start the server or correct the address") from error
    if answer.status_code in {401, 403}:
        raise ConfigError(f"{setting}: refuses the key (HTTP {answer.status_code}); set OPENAI_API_KEY")
    try:
        known = [str(model["id"]) for model in answer.json()["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{setting}: answers HTTP {answer.status_code}, not as a server of chat completions does; give its address "
                          "up to and with /v1") from error
    if server.get("model") not in known:
        raise ConfigError(f"{stage}: server.model = {server.get('model')}: the server has {', '.join(known[:10]) or 'none'}; correct the model")


def assets(run: Run) -> Iterator[Finding]:
    """Assets that `ingest` will bring in: named in the lock, and in the cache or at their places."""
    if not run.runs("ingest"):
        return
    if run.lock is None:
        yield Finding("assets", "lock", "--lock: not given, but ingest runs; give the asset lock")
        return
    try:
        entries = run.lock_entries
    except AnymalError as error:
        yield from (Finding("assets", str(run.lock), line) for line in str(error).split("\n"))
        return
    section = run.profile["ingest"]
    names = [str(name) for name in section.get("assets") or []]
    sources = section.get("sources") if isinstance(section.get("sources"), Mapping) else {}
    for folder in ("locks", "downloads"):
        try:
            (cache_folder() / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            yield Finding("assets", str(cache_folder()), f"the cache folder {cache_folder()} cannot be written ({error.strerror}); "
                                                         "set ANYMAL_CACHE to a folder that can be")
            return

    def look(name: str) -> Finding:
        if name not in entries:
            return Finding("assets", name, str(unknown_name(name, entries, f"ingest.assets ({run.lock})")))
        return _finding("assets", name, lambda: run.sizes.update({f"asset {name}": check_available(name, entries[name], sources.get(name))}))

    with ThreadPoolExecutor(4) as pool:
        yield from pool.map(look, names)


def gpus(run: Run) -> Iterator[Finding]:
    """Memory of the GPUs that the profile's section `kubeflow` gives to training stages, against what `anymal plan` predicts."""
    if SECTION not in run.profile or profile_problems(run.profile, run.source):
        return  # `configuration` has said so
    cluster = cluster_of(run.profile, run.source)
    for name in planning.stage_names(run.profile):
        resources = cluster.of(name.replace(".", "_"))
        if not run.runs(name.partition(".")[0]) or not resources.gpus or resources.gpu_memory is None:
            continue
        if missing := sorted({"align", "encode"} - run.profile.keys()):
            yield Finding("gpus", f"{name}: not planned; that takes the sections {' and '.join(missing)}")
        else:
            machine = planning.Machine(resources.nodes * resources.processes, in_bytes(resources.gpu_memory), planning.RESERVE)
            subject = f"{name}: {machine.gpus} GPUs of {resources.gpu_memory}"
            yield _finding("gpus", subject, lambda name=name, machine=machine: _plan(run, name, machine))  # type: ignore[misc]


def _plan(run: Run, stage: str, machine: planning.Machine) -> None:
    plan = planning.plan_stage(run.profile, stage, machine=machine, prompt_tokens=planning.PROMPT_TOKENS, answer_tokens=planning.ANSWER_TOKENS,
                               assets=None, features=None)
    if plan.fits:
        return
    remedy = "make the projector narrower or shallower, quantise the LLM, or ask for larger GPUs"
    if plan.largest_micro_batch is not None:
        remedy = f"lower it to {plan.largest_micro_batch}, or ask for larger GPUs"
    raise ConfigError(f"{stage}.micro_batch_size = {plan.micro_batch_size}: needs {plan.total / planning.GIB:.1f} GiB of a GPU's "
                      f"{machine.bytes_per_gpu / planning.GIB:.0f} GiB, of which {machine.reserve / planning.GIB:.0f} stay free; {remedy}")


def inputs(run: Run) -> Iterator[Finding]:
    """Folders and files that stages will read: there, whole, and with the hashes of their manifests."""
    for place in run.inputs:
        if isinstance(place, str) and not place.startswith(SCHEME):
            yield Finding("inputs", f"{place}: not looked at; only paths and {SCHEME} are")
        else:
            yield _finding("inputs", str(place), lambda place=place: _look_at(run, place))  # type: ignore[misc]


def _look_at(run: Run, place: remote.Place) -> None:
    if isinstance(place, Path):
        if not place.exists():
            raise DataError(f"{place}: no such file or folder; run the stage that makes it, or correct the path")
        if place.is_dir():
            verify_manifest(place)
        return
    option = "--input"
    uri = remote.address(option, place)
    try:
        found = remote.look(option, uri, run.storage)
        if isinstance(found, remote.Whole):
            wrong = remote.differences(found, run.storage)
            if wrong:
                raise DataError(f"{option} {uri}: does not match its {MANIFEST}: {'; '.join(wrong)}; run the stage that makes it again")
    except S3Error as error:
        raise DataError(f"{option} {error}") from error
    run.sizes[uri] = sum(size for _, size in found.files.values()) if isinstance(found, remote.Whole) else found.size


def outputs(run: Run) -> Iterator[Finding]:
    """Places that stages will write to: they may be written, and hold nothing that is not a stage's."""
    for place in run.outputs:
        yield _finding("outputs", str(place), lambda place=place: _try_writing(run, place))  # type: ignore[misc]


def _try_writing(run: Run, place: remote.Place) -> None:
    if isinstance(place, str):
        try:
            remote.check_target("--output", place, run.storage)
        except S3Error as error:
            raise DataError(f"--output {error}") from error
        return
    if place.is_dir() and any(place.iterdir()) and not (place / MANIFEST).is_file():
        raise ConfigError(f"--output {place}: is a folder that no stage wrote (it has no {MANIFEST}); move it away or name another path")
    parent = _existing(place.parent)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--output {place}: {parent} is not a folder that can be written; change its permissions or name another path")


def disk(run: Run) -> Iterator[Finding]:
    """Room for what will be brought here: in the cache, and once more for the assets' copies in the working folder."""
    copies = sum(size for what, size in run.sizes.items() if not what.startswith(SCHEME))
    needs: dict[int, tuple[Path, int]] = {}
    for folder, size in ((cache_folder(), sum(run.sizes.values())), (Path.cwd(), copies)):
        device = _existing(folder).stat().st_dev
        first, before = needs.get(device, (folder, 0))
        needs[device] = (first, before + size)
    for folder, size in needs.values():
        free = shutil.disk_usage(_existing(folder)).free
        subject = f"{folder}: {size / 1e9:.1f} GB to be brought, {free / 1e9:.1f} GB free"
        problem = f"{subject}; free some space, or set ANYMAL_CACHE to a folder on a larger disk" if size + RESERVE > free else None
        yield Finding("disk", subject, problem)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


CHECKS: dict[str, Callable[[Run], Iterator[Finding]]] = {
    "configuration": configuration, "secrets": secrets, "mlflow": mlflow, "servers": servers, "assets": assets, "gpus": gpus, "inputs": inputs,
    "outputs": outputs, "disk": disk,
}
"""In the order of the report. A further check is a function here: it yields a `Finding` for each thing that it looks at."""
