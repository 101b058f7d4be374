"""The model registry: bundles, and guards, become versions of an MLflow registered model, aliases say which one counts.

The only code that moves an alias. Whether one may be moved is decided by pure functions of figures (anymal/gates.py), and which of two
decisions at once holds by the ledger (anymal/ledger.py).
"""

from __future__ import annotations

import base64
import importlib.metadata
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anymal import __version__, tracking
from anymal.data.asset_folders import cache_folder
from anymal.errors import BundleError, ConfigError, TrackingError
from anymal.ledger import REFUSED, Entry, champions, holding
from anymal.model.bundle import CARD, bundle_sha256, read_bundle

SCHEME = "models:/"
SHA_TAG = "bundle_sha256"
CHAMPION = "champion"
"""Alias of the version that counts."""
EVIDENCE = "evidence"
"""Folder of a version's artifacts: what was measured of it."""
LEDGER = "-decisions"
"""What the registered model of decisions has behind the model's name."""
PREFIX = "promotion."
"""Tags of a version: what the last decision about it was."""
DECISION = "decision"
"""Folder of a decision's run: the document as JSON and as Markdown."""
OVERTAKEN = "Another decision was made first; run anymal promote again to be judged against what is champion now."
TRIES = 10
"""How often the alias is moved until it stays."""
MAX_METRICS = 1000
"""In one request, for MLflow."""
MAX_DESCRIPTION = 5000
"""Characters; MLflow's PostgreSQL and MySQL schemas hold no more."""
REQUIREMENTS = ("mlflow", "torch", "transformers", "safetensors", "pillow", "numpy", "pydantic", "filelock", "efficientnet-lite-pytorch",
                "av", "matplotlib", "peft", "ruamel.yaml", "confusable-homoglyphs", "onnxruntime", "rapidocr-onnxruntime", "wordfreq")
"""What a bundle and the guard before it import; their installed versions are written down, so that MLflow need not run the model to find them out."""


@dataclass(frozen=True)
class Rows:
    """What a model in the registry takes: rows of texts, each column of which may be left out."""

    columns: tuple[str, ...]
    example: Mapping[str, str]
    """A row."""


@dataclass(frozen=True)
class Chat:
    """What a model in the registry takes: requests of OpenAI's chat completions, whole or streamed.

    MLflow gets no schema of them: it leaves out of a request what its schema lacks, and what cannot be honoured must be refused by the model.
    """

    example: Mapping[str, Any]
    """A request."""


@dataclass(frozen=True)
class Kind:
    """What the versions of a registered model are: folders with a manifest and a card (README.md), which MLflow loads with one of our modules."""

    description: str
    """Of the registered model."""
    loader: str
    """Module with MLflow's `_load_pyfunc`."""
    read: Callable[[Path], Mapping[str, Any]]
    """The document of such a folder, after its files were checked; BundleError if it is damaged or none."""
    takes: Callable[[Mapping[str, Any]], Rows | Chat]
    """The document -> what it is asked."""


@dataclass(frozen=True)
class Registration:
    """A registered model version."""

    name: str
    version: int
    alias: str
    bundle_sha256: str
    created: bool
    """False if a version with this very bundle was there already."""

    @property
    def uri(self) -> str:
        """Where `anymal ask` and MLflow find it."""
        return f"{SCHEME}{self.name}@{self.alias}"


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """What names it, wherever aliases point."""
        return f"{SCHEME}{self.name}/{self.number}"


@dataclass(frozen=True)
class Standing:
    """Who is champion, and how that came about."""

    champion: Version | None
    entries: tuple[Entry, ...]
    unfinished: Entry | None
    """The last decision that holds, if it is not settled: it was interrupted, or is at work now."""
    by_hand: bool
    """Whether the champion is another than the last decision made it."""

    @property
    def last(self) -> str:
        """The run of the last decision that holds: what the next one builds on."""
        held = holding(self.entries)
        return held[-1].run if held else ""


def register_bundle(bundle: Path, *, name: str, alias: str, metrics: Mapping[str, float], tags: Mapping[str, str],
                    evidence: Mapping[str, Path], kind: Kind | None = None, card: str | None = None) -> Registration:
    """Make a bundle a version of the registered model `name` and point `alias` at it.

    A bundle that is registered already (by the SHA-256 of its manifest) keeps its version. The model is logged to the active
    stage's run if there is one.

    Args:
        metrics: figures of the evaluation, by dotted name; attached to the model and the active stage's run, if there is one.
        tags: what it was made from (data versions), shown with the version.
        evidence: file name -> what was measured of it, kept in the folder `evidence` of the version.
        kind: what the folder is; a model bundle if not given.
        card: the version's description; the folder's own README.md if not given.

    Raises:
        BundleError: if the bundle is damaged.
        TrackingError: if MLflow refuses or cannot be reached.
    """
    kind = kind or MODEL
    kind.read(bundle)
    digest = bundle_sha256(bundle)
    tracking.check_store()
    run = tracking.run_id()
    with _mlflow() as mlflow, tracking.store_lock():
        client, experiment = tracking.connect()
        version = _find_version(client, name, digest)
        if created := version is None:
            mlflow.set_experiment(experiment_id=experiment)
            version = _create_version(mlflow, client, bundle, kind, name=name, digest=digest, run=run, metrics=metrics, tags=tags,
                                      evidence=evidence, card=card)
        client.set_registered_model_alias(name, alias, str(version))
    return Registration(name, version, alias, digest, created)


def resolve_bundle(reference: str, kind: Kind | None = None) -> Path:
    """The folder of a bundle: a local path as it is, `models:/NAME@ALIAS` or `models:/NAME/VERSION` downloaded from MLflow once.

    Args:
        kind: what the folder is; a model bundle if not given.

    Raises:
        BundleError: if there is no such folder, model, alias or version.
        TrackingError: if MLflow cannot be reached.
    """
    if not reference.startswith(SCHEME):
        return Path(reference)
    found = find_version(reference)
    digest = found.tags.get(SHA_TAG)
    if digest is None:
        raise BundleError(f"{reference}: version {found.number} was not registered by anymal (it has no tag {SHA_TAG}); run the stage register")
    folder = cache_folder() / "bundles" / digest
    if not folder.is_dir():
        with _mlflow() as mlflow:
            _download(mlflow, found.uri, folder)
    (kind or MODEL).read(folder)
    if bundle_sha256(folder) != digest:
        raise BundleError(f"{reference}: version {found.number} is registered with bundle {digest[:12]}…, but {folder} holds another; "
                          "remove that folder")
    return folder


def find_version(reference: str) -> Version:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        BundleError: if there is no such model, alias or version.
        TrackingError: if MLflow cannot be reached.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", reference)
    if match is None:
        raise BundleError(f"{reference}: is no address of a registered model; write models:/anymal@candidate or models:/anymal/1")
    tracking.check_store()
    with _mlflow():
        with tracking.store_lock():
            client, _ = tracking.connect()
        return _version(_lookup(client, reference, *match.groups()))


@contextmanager
def evidence_of(version: Version) -> Iterator[Path]:
    """A folder with the evidence that goes with a version, for as long as the context is open; empty if there is none.

    Raises:
        TrackingError: if MLflow cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="anymal-evidence-") as folder:
        with _mlflow() as mlflow:
            names = [item.path for item in mlflow.artifacts.list_artifacts(version.uri)]
            if EVIDENCE in names:
                mlflow.artifacts.download_artifacts(f"{version.uri}/{EVIDENCE}", dst_path=folder)
        found = Path(folder) / EVIDENCE
        found.mkdir(exist_ok=True)
        yield found


def standing_of(name: str) -> Standing:
    """Who is champion of a registered model now, and all decisions about that.

    Raises:
        TrackingError: if MLflow cannot be reached.
    """
    tracking.check_store()
    with _mlflow():
        with tracking.store_lock():
            client, _ = tracking.connect()
        return _standing(client, name)


def finish(name: str) -> Standing:
    """Let the alias follow the last decision that holds, if that was interrupted before; the standing after it.

    Raises:
        TrackingError: if MLflow cannot be reached.
    """
    tracking.check_store()
    with _mlflow():
        with tracking.store_lock():
            client, _ = tracking.connect()
        begun = _standing(client, name).unfinished
        if begun is not None:
            _follow(client, name)
            _settle(client, name, begun, begun.reasons)
        return _standing(client, name)


def record(version: Version, *, decision: str, standing: Standing, reasons: Sequence[str], document: str, report: str) -> Entry:
    """Write a decision down, and let the alias `champion` follow it if it holds.

    First the document, then the entry of the ledger, which decides, then the alias: whatever interrupts it, `finish` can go on from there.

    Args:
        decision: `promoted`, `refused` or `rolled back`.
        standing: what it was decided upon.
        reasons: sentences, shown with the version.
        document: the decision as JSON.
        report: the same as Markdown.

    Returns:
        The entry. Its decision is `refused`, and nothing was moved, if another decision was made first, on the same standing.

    Raises:
        TrackingError: if MLflow refuses or cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    ledger = f"{version.name}{LEDGER}"
    with _mlflow():
        with tracking.store_lock():
            client, experiment = tracking.connect()
            graph = tracking.graph_run()
            parent = {} if graph is None else {"mlflow.parentRunId": tracking.parent_run(client, experiment, graph, int(time.time() * 1000))}
        run = client.create_run(experiment, run_name="promote", tags={"stage": "promote", "anymal.version": __version__, **parent}).info.run_id
        try:
            _write(client, run, document, report)
            _create_model(client, ledger, f"Decisions about who is champion of {version.name}, in their order. Not a model.")
            origin = None if standing.champion is None else standing.champion.number
            entry = Entry(0, decision, origin, version.number, run, standing.last, settled=False, reasons="\n".join(reasons))
            made = client.create_model_version(
                ledger, f"runs:/{run}/{DECISION}", run_id=run, description=_shortened(entry.reasons, "…"),
                tags={"decision": decision, "origin": "" if origin is None else str(origin), "target": str(version.number), "basis": entry.basis})
            entry = replace(entry, number=int(made.version))
            held = decision == REFUSED or run in {other.run for other in holding(list(_entries(client, version.name)))}
            if not held:
                client.set_model_version_tag(ledger, str(entry.number), "decision", REFUSED)
                entry = replace(entry, decision=REFUSED)
            elif decision != REFUSED:
                _follow(client, version.name)
            _settle(client, version.name, entry, entry.reasons if held else OVERTAKEN)
        except BaseException:
            with suppress(MlflowException):
                client.set_terminated(run, "FAILED")
            raise
        return entry


def write_document(run: str, document: str, report: str) -> None:
    """Replace the document of a decision, as JSON and as Markdown."""
    with _mlflow():
        with tracking.store_lock():
            client, _ = tracking.connect()
        _write(client, run, document, report)


def _write(client: Any, run: str, document: str, report: str) -> None:
    client.log_text(run, document, f"{DECISION}/decision.json")
    client.log_text(run, report, f"{DECISION}/decision.md")


def previous_champion(standing: Standing) -> int | None:
    """The version that was champion before the present one, as the ledger has it; None if it knows of none."""
    present = None if standing.champion is None else standing.champion.number
    line = champions(standing.entries)
    while line and line[-1] == present:
        line.pop()
    return line[-1] if line else None


def _standing(client: Any, name: str) -> Standing:
    entries = tuple(_entries(client, name))
    held, champion = holding(entries), _champion(client, name)
    unfinished = held[-1] if held and not held[-1].settled else None
    by_hand = champion is not None and unfinished is None and (not held or held[-1].target != champion.number)
    return Standing(champion, entries, unfinished, by_hand)


def _champion(client: Any, name: str) -> Version | None:
    from mlflow.exceptions import MlflowException

    try:
        return _version(client.get_model_version_by_alias(name, CHAMPION))
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        return None


def _version(found: Any) -> Version:
    return Version(found.name, int(found.version), dict(found.tags))


def _entries(client: Any, name: str) -> Iterator[Entry]:
    """All decisions about a model."""
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}{LEDGER}'", page_token=token)
        for found in page:
            tags = found.tags
            if {"decision", "origin", "target", "basis"} <= tags.keys():  # anyone may add a version, which is no decision then
                yield Entry(int(found.version), tags["decision"], int(tags["origin"]) if tags["origin"] else None, int(tags["target"]),
                            found.run_id, tags["basis"], tags.get("settled") == "true", found.description or "")
        token = page.token
        if not token:
            return


def _follow(client: Any, name: str) -> None:
    """Move the alias to where the last decision that holds wants it, and see that it is there.

    A decision may be made while this one is at work, and its alias be overwritten here: so the ledger is read again after each move.
    """
    for _ in range(TRIES):
        last = holding(list(_entries(client, name)))[-1]
        client.set_registered_model_alias(name, CHAMPION, str(last.target))
        champion = _champion(client, name)
        if champion is not None and champion.number == last.target and holding(list(_entries(client, name)))[-1].run == last.run:
            return
    raise TrackingError(f"{SCHEME}{name}@{CHAMPION}: the alias does not stay where the last decision moved it; see who else moves it, and run "
                        "anymal promote again")


def _settle(client: Any, name: str, entry: Entry, reasons: str) -> None:
    """Say at the version what was decided about it, end the decision's run, and say in the ledger that all of this was done."""
    for key, value in {"decision": entry.decision, "run": entry.run, "reasons": _shortened(reasons, "…")}.items():
        client.set_model_version_tag(name, str(entry.target), f"{PREFIX}{key}", value)
    client.set_tag(entry.run, f"{PREFIX}decision", entry.decision)
    client.set_terminated(entry.run, "FINISHED")
    client.set_model_version_tag(f"{name}{LEDGER}", str(entry.number), "settled", "true")


def _lookup(client: Any, reference: str, name: str, alias: str | None, version: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias) if alias is not None else client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
    known = [model.name for model in client.search_registered_models(f"name = '{name}'")] if "'" not in name else []
    aliases = sorted(client.get_registered_model(name).aliases) if known else []
    hint = f"'{name}' has the aliases {', '.join(aliases) or 'none'}" if known else f"no model '{name}' is registered"
    where = tracking.shown_uri(tracking.tracking_uri())
    raise BundleError(f"{reference}: {hint} at MLFLOW_TRACKING_URI = {where}; run the stage register, or correct the name or MLFLOW_TRACKING_URI")


def _download(mlflow: Any, uri: str, folder: Path) -> None:
    """Fetch a version's bundle into the cache; a partial download is not taken for a whole one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as staging:
        got = Path(mlflow.artifacts.download_artifacts(f"{uri}/data/bundle", dst_path=staging))
        if not folder.is_dir():
            got.rename(folder)


def _find_version(client: Any, name: str, digest: str) -> int | None:
    if "'" in name:
        raise ConfigError(f"register.name = {name}: a quote cannot be part of a model's name")
    versions = client.search_model_versions(f"name = '{name}' and tag.{SHA_TAG} = '{digest}'")
    return max((int(version.version) for version in versions), default=None)


def _create_version(mlflow: Any, client: Any, bundle: Path, kind: Kind, *, name: str, digest: str, run: str | None, metrics: Mapping[str, float],
                    tags: Mapping[str, str], evidence: Mapping[str, Path], card: str | None) -> int:
    from mlflow.models import Model

    document = kind.read(bundle)
    git = tracking.git_version()
    labels = {SHA_TAG: digest, "anymal.version": __version__, **({"git.revision": git["revision"], "git.dirty": git["dirty"]} if git else {}), **tags}
    takes = kind.takes(document)
    signature, example = _signature(takes)
    with tempfile.TemporaryDirectory(prefix="anymal-register-") as folder:
        # The stage's output still has its temporary name; in the model it is called `bundle`.
        link = Path(folder) / "bundle"
        link.symlink_to(bundle.absolute(), target_is_directory=True)
        logged = Model.log(None, _Saver, name=name, run_id=run, tags=labels, metadata=labels, signature=signature, input_example=example,
                           loader_module=kind.loader, data_path=str(link), code_paths=[str(Path(__file__).parent)],
                           pip_requirements=_requirements(), streamable=isinstance(takes, Chat), validate_serving_input=False)
        files = Path(folder) / EVIDENCE
        files.mkdir()
        for file, source in evidence.items():
            shutil.copyfile(source, files / file)
        # Before there is a version: one that is there has its evidence.
        client.log_model_artifacts(logged.model_id, str(files), EVIDENCE)
    if metrics and run is not None:
        numbers = [(tracking.clean_key(key), value) for key, value in metrics.items()]
        for start in range(0, len(numbers), MAX_METRICS):
            mlflow.log_metrics(dict(numbers[start : start + MAX_METRICS]), run_id=run, model_id=logged.model_id)
    _create_model(client, name, kind.description)
    whole = (bundle / CARD).read_text(encoding="utf-8") if card is None else card
    described = _shortened(whole, f"… The whole card is {CARD} of the bundle." if card is None else "…")
    version = client.create_model_version(name, logged.model_uri, run_id=run, tags=labels, description=described, model_id=logged.model_id)
    return int(version.version)


def _create_model(client: Any, name: str, description: str) -> None:
    """A registered model, unless it is there already."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _shortened(text: str, rest: str) -> str:
    """A text as a description, whole lines of it if it is too long."""
    if len(text) <= MAX_DESCRIPTION:
        return text
    kept = text[: MAX_DESCRIPTION - len(rest) - 1]
    return f"{kept[: kept.rfind(chr(10))] if chr(10) in kept else kept}\n{rest}"


class _Saver:
    """The pyfunc flavor for `Model.log`, which loads the whole model to try the example unless told not to; pyfunc does not know that word."""

    @staticmethod
    def save_model(*, validate_serving_input: bool, **arguments: Any) -> None:
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(**arguments)


def _signature(takes: Rows | Chat) -> tuple[Any, Any]:
    """MLflow's signature, and the example as a table or as a request."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.llm import CHAT_MODEL_OUTPUT_SCHEMA

    if isinstance(takes, Chat):
        return ModelSignature(outputs=CHAT_MODEL_OUTPUT_SCHEMA), dict(takes.example)
    inputs = Schema([ColSpec(DataType.string, column, required=False) for column in takes.columns])
    return ModelSignature(inputs, Schema([ColSpec(DataType.string)])), pd.DataFrame([dict(takes.example)])


def _bundle_chat(document: Mapping[str, Any]) -> Chat:
    """Conversations; the example asks about a small picture, if the bundle reads pictures."""
    from PIL import Image

    parts: list[dict[str, Any]] = []
    if "image" in document["encoders"]:
        stream = io.BytesIO()
        Image.new("RGB", (16, 16), "red").save(stream, "PNG")
        parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"}}]
    question = {"type": "text", "text": "What color is this?" if parts else "What is a drum?"}
    return Chat({"messages": [{"role": "user", "content": [*parts, question]}], "max_tokens": 20})


MODEL = Kind("AnyMAL: any mix of modalities in, text out. Each version is a complete bundle.", "anymal.serving.pyfunc", read_bundle, _bundle_chat)


def _requirements() -> list[str]:
    found = []
    for name in REQUIREMENTS:
        try:
            # "+cpu" names a build of this machine, which another one need not have.
            found.append(f"{name}=={importlib.metadata.version(name).partition('+')[0]}")
        except importlib.metadata.PackageNotFoundError:  # the guard's are not where models are registered
            found.append(name)
    return found


@contextmanager
def _mlflow() -> Iterator[Any]:
    """MLflow, set up as the recorder's; its errors become one sentence."""
    os.environ.update(tracking.environment())
    import mlflow
    import mlflow.artifacts
    import mlflow.pyfunc
    import requests
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking.tracking_uri())
    try:
        yield mlflow
    except (MlflowException, requests.RequestException, ConnectionError) as error:
        first = (str(error).strip() or type(error).__name__).split("\n")[0][:500]
        where = tracking.shown_uri(tracking.tracking_uri())
        raise TrackingError(f"MLFLOW_TRACKING_URI = {where}: the model registry failed: {first}; {tracking.REMEDY}") from error
