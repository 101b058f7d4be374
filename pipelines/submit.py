"""Start a run on Kubeflow: `python -m pipelines.submit training --profile params.production.yaml --set align.image.layers=2`.

Everything is checked before anything is sent; docs/submit.md says how the server is named.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from anymal.cluster import cluster_of
from anymal.config import read_document
from anymal.data.lock import read_lock
from anymal.data.s3 import Storage
from anymal.errors import ConfigError, report
from anymal.overrides import differences, overridden, read_override

LOCK = "lock"
"""The URI argument that a local file may stand for."""


@dataclass(frozen=True)
class Submission:
    """A run, checked and compiled."""

    pipeline: str
    arguments: dict[str, Any]
    changes: list[tuple[str, Any, Any]]
    """Knob, value in the profile, value in this run."""
    service_account: str
    package: Path
    upload: tuple[Path, str] | None
    """The local asset lock, and where it is to be uploaded."""

    @property
    def name(self) -> str:
        """What the run is called unless somebody names it: the same for the same run."""
        digest = hashlib.sha256(self.package.read_bytes() + json.dumps(self.arguments).encode())
        return f"{self.pipeline}-{digest.hexdigest()[:8]}"


def prepare(pipeline: str, profile: Path, overrides: list[str], uris: Mapping[str, str], package: Path, *, lock: Path | None = None,
            upload_to: str | None = None) -> Submission:
    """Check a run and compile its pipeline; nothing is sent.

    Args:
        overrides: `KNOB=VALUE`.
        uris: argument of the pipeline -> URI of an artifact.
        package: file to compile to.
        lock: the asset lock, if it is a file of this machine; `upload_to` is the folder in the object store for it.

    Raises:
        ConfigError: naming all that is wrong.
    """
    from pipelines.arguments import read_arguments, uris_of
    from pipelines.compile import compile_one

    before, source = read_document(profile), str(profile)
    document = overridden(before, [read_override(setting) for setting in overrides], source)
    upload = None
    if LOCK in uris_of(pipeline) and LOCK not in uris and lock is not None:
        upload = (lock, lock_uri(lock, upload_to))
    arguments = read_arguments(pipeline, document, source, dict(uris) | ({LOCK: upload[1]} if upload is not None else {}))
    if upload is not None:
        known = read_lock(upload[0])
        if unknown := [name for name in document["ingest"]["assets"] if name not in known]:
            raise ConfigError(f"ingest.assets: {lock} has no {', '.join(unknown)}; add entries for them, or take them off the profile's list")
    compile_one(pipeline, document, source, package)
    return Submission(pipeline, arguments, differences(before, document), cluster_of(document, source).service_account, package, upload)


def lock_uri(lock: Path, upload_to: str | None) -> str:
    """Where a local asset lock belongs: its name is its SHA-256.

    Raises:
        ConfigError: if there is no such file, or no place was named for it.
    """
    if not lock.is_file():
        raise ConfigError(f"--lock {lock}: no such file; name the asset lock, or the address of one in the object store")
    if upload_to is None or not re.fullmatch(r"s3://[^/]+(/[^/]+)*/?", upload_to):
        raise ConfigError(f"--upload-to {upload_to or 'not given'}: steps on the cluster cannot read the file {lock}; name a folder for it that they "
                          "can read, as s3://BUCKET/PREFIX, or give --lock the address of one that was uploaded")
    return f"{upload_to.rstrip('/')}/{hashlib.sha256(lock.read_bytes()).hexdigest()}.yaml"


def describe(submission: Submission) -> str:
    """What would be sent: the run's arguments, and what each task asks for."""
    lines = [f"pipeline {submission.pipeline}, service account {submission.service_account}", "", "arguments:"]
    lines += [f"  {name} = {value if isinstance(value, str) else json.dumps(value)}"
              for name, value in sorted(submission.arguments.items())]
    rows = [("task", "section", "image", "cpu", "memory", "GPUs", "on the cluster"), *_tasks(submission.package)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["", "tasks:", *("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)]
    return "\n".join(lines)


def _tasks(package: Path) -> Iterator[tuple[str, ...]]:
    """Task, section, image, CPU, memory, GPUs and settings of each task with a container, in the order of their names."""
    spec, platform = _compiled(package)
    executors = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    parents = [spec["root"], *(entry for entry in spec["components"].values() if "dag" in entry)]
    tasks = [item for parent in parents for item in parent["dag"]["tasks"].items()]
    for name, task in sorted(tasks, key=lambda item: item[0]):
        label = spec["components"][task["componentRef"]["name"]].get("executorLabel")
        container = spec["deploymentSpec"]["executors"][label].get("container") if label is not None else None
        if container is None:  # importers and groups of tasks
            continue
        section = task.get("inputs", {}).get("parameters", {}).get("config", {}).get("componentInputParameter", "").rpartition("--")[2]
        resources = container.get("resources", {})
        asked = [str(found.get(key, "")) for found, key in ((resources, "resourceCpuRequest"), (resources, "resourceMemoryRequest"),
                                                            (resources.get("accelerator", {}), "resourceCount"))]
        yield name, section, container["image"].rpartition("/")[2][:48], *asked, _settings(executors.get(label, {}), task)


def _compiled(package: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pipeline and platform spec."""
    import yaml  # as kfp writes it; much faster than what reads profiles

    spec, *others = yaml.load_all(package.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return spec, others[0] if others else {}


def _settings(executor: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """What a task asks of the cluster besides resources, in a few words."""
    words = []
    job = task.get("inputs", {}).get("parameters", {}).get("job", {}).get("runtimeValue", {}).get("constant")
    if job is not None:
        job = json.loads(job) if isinstance(job, str) else job
        words.append(f"TrainJob: nodes {job['nodes']:g}, each with processes {job['processes']:g}, {job['gpu']} {job['gpus']:g}, cpu {job['cpu']}, "
                     f"memory {job['memory']}")
    secrets = sorted(entry["secretName"] for entry in executor.get("secretAsEnv", []))
    words += [f"secrets {', '.join(secrets)}"] if secrets else []
    words += [f"tolerates {toleration.get('key', 'all')}" for toleration in executor.get("tolerations", [])]
    words += [f"nodes with {key}={value}" for key, value in executor.get("nodeSelector", {}).get("labels", {}).items()]
    if retries := task.get("retryPolicy", {}).get("maxRetryCount"):
        words.append(f"retries {retries}")
    return "; ".join(words)


def check_images(package: Path) -> None:
    """Refuse a run whose pods could not start.

    Raises:
        ConfigError: naming the images that were not built.
    """
    executors = _compiled(package)[0]["deploymentSpec"]["executors"].values()
    unbuilt = sorted({image for entry in executors if (image := entry.get("container", {}).get("image", "")).endswith(":unbuilt")})
    if unbuilt:
        raise ConfigError(f"{', '.join(unbuilt)}: not built; build and push them, and write their digests into manifests/images/kustomization.yaml "
                          "(docs/images.md)")


def upload_lock(lock: Path, uri: str) -> None:
    """Put the asset lock where the steps read it; one that is there already stays.

    Raises:
        S3Error: if the object store cannot be used.
    """
    storage = Storage()
    if storage.head(uri) is None:
        storage.put(uri, lock.read_bytes())


def _pairs(option: str, settings: tuple[str, ...]) -> dict[str, str]:
    """`NAME=URI` as a dictionary."""
    pairs = {}
    for setting in settings:
        name, _, uri = setting.partition("=")
        if not re.fullmatch(r"[a-z0-9_]+", name) or "://" not in uri:
            raise ConfigError(f"{option} {setting}: is no input; write it as NAME=URI, such as features_image=s3://BUCKET/features/image")
        if name in pairs:
            raise ConfigError(f"{option} {name}: comes twice; keep one")
        pairs[name] = uri
    return pairs


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("pipeline")
@click.option("--profile", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True, help="The profile.")
@click.option("--set", "overrides", multiple=True, metavar="KNOB=VALUE", help="Another value for a knob, such as align.image.layers=2; repeatable.")
@click.option("--lock", default="assets.lock.yaml", show_default=True, metavar="FILE|URI",
              help="The asset lock: a file, which --upload-to says where to put, or the address of one that is there.")
@click.option("--upload-to", metavar="s3://…", help="Folder in the object store for the asset lock.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=URI", help="An artifact that the pipeline starts from; repeatable.")
@click.option("--experiment", default="anymal", show_default=True, help="The experiment that the run belongs to; made if it is not there.")
@click.option("--run-name", help="What the run is called.  [default: the pipeline and a hash of what is sent]")
@click.option("--pipeline-root", metavar="URI", help="Where artifacts go, if not where the server puts them.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent; send and upload nothing.")
@click.option("--wait", is_flag=True, help="Follow the run; the exit status is 0 if it succeeded.")
def command(*, pipeline: str, profile: Path, overrides: tuple[str, ...], lock: str, upload_to: str | None, inputs: tuple[str, ...], experiment: str,
            run_name: str | None, pipeline_root: str | None, dry_run: bool, wait: bool) -> None:
    """Start a run of PIPELINE on Kubeflow with the knobs of a profile."""
    from pipelines.api import Server, follow
    from pipelines.arguments import uris_of

    uris = _pairs("--input", inputs)
    if "://" in lock and LOCK in uris_of(pipeline):
        uris = {LOCK: lock} | uris
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "pipeline.yaml"
        submission = prepare(pipeline, profile, list(overrides), uris, package, lock=None if "://" in lock else Path(lock), upload_to=upload_to)
        for knob, old, new in submission.changes:
            click.echo(f"{knob}: {json.dumps(old)} -> {json.dumps(new)}")
        name = run_name or submission.name
        if dry_run:
            click.echo(describe(submission))
            if submission.upload is not None:
                click.echo(f"\nupload: {submission.upload[0]} -> {submission.upload[1]}")
            click.echo(f"\nnothing was sent; the run would be called {name}, in the experiment {experiment}")
            return
        check_images(package)
        server = Server()
        if submission.upload is not None:
            upload_lock(*submission.upload)
        run = server.start(package, submission.arguments, experiment=experiment, name=name, pipeline_root=pipeline_root,
                           service_account=submission.service_account)
    click.echo(f"run {name}: {server.link(run)}")
    if wait:
        follow(server, run, say=click.echo)
        click.echo(f"run {name}: succeeded")


def main() -> None:
    """The command; errors that the user can mend are printed as sentences."""
    report("submit", lambda: command(prog_name="python -m pipelines.submit"))


if __name__ == "__main__":
    main()
