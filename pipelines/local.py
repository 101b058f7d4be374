"""Run a pipeline on this machine, each task in a container of its own: `python -m pipelines.local [PIPELINE]`.

The pipeline is compiled as for a cluster, and KFP's DockerRunner runs what was written (docs/kfp-local.md). A real MLflow server and a real
S3 server stand by on the loopback.
"""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from anymal.config import read_document
from anymal.data.asset_folders import cache_folder
from anymal.data.manifest import fingerprint, sha256_of
from anymal.errors import AnymalError, ConfigError, Interrupted, report
from anymal.overrides import differences, overridden, read_override
from pipelines.containers import Containers, Task, retries
from pipelines.servers import BUCKET, reserved, serve
from pipelines.signals import stoppable

IR = "pipeline.yaml"
LOCK = "lock"
REDUCED = Path(__file__).with_name("reduced.yaml")
CACHE = "/anymal-cache"
"""Where containers see the asset cache."""
SHARED_MEMORY = "1g"
"""Of each container: Docker's 64 MB are too little for data loaders."""
PASSED = ("OMP_NUM_THREADS", "ANYMAL_TRACKING")
"""Variables of this process that containers get as well."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("pipeline", default="training")
@click.option("--profile", type=click.Path(path_type=Path), default=Path("params.yaml"), show_default=True, metavar="FILE",
              help="Its sections are the knobs.")
@click.option("--reduced", is_flag=True, help=f"Little data and few steps: the knobs of pipelines/{REDUCED.name}.")
@click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="Another value, such as align.image.layers=2. May be repeated.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=PATH",
              help="What a pipeline that starts from earlier results takes, as a file or folder of this machine. May be repeated.")
@click.option("--lock", type=click.Path(path_type=Path, exists=True, dir_okay=False), default=Path("assets.lock.yaml"), show_default=True,
              metavar="FILE", help="The asset lock.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(".kfp-local"), show_default=True, metavar="FOLDER",
              help="Where runs and the servers' data are kept.")
@click.option("--keep", is_flag=True, help="Keep the servers up after the run, until ctrl-C.")
def command(*, pipeline: str, profile: Path, reduced: bool, settings: tuple[str, ...], inputs: tuple[str, ...], lock: Path, folder: Path,
            keep: bool) -> None:
    """Run PIPELINE (training, if not given) on this machine, each task in a container of its own."""
    before = read_document(profile)
    changes = [*(read_document(REDUCED).items() if reduced else ()), *(read_override(setting) for setting in settings)]
    document = overridden(before, changes, str(profile))
    for knob, old, new in differences(before, document):
        print(f"{knob}: {json.dumps(old)} -> {json.dumps(new)}")
    with _told_when_stopped():
        run_local(pipeline, document, source=str(profile), lock=lock, inputs=dict(_pair(given) for given in inputs), folder=folder, keep=keep)


def run_local(pipeline: str, document: Mapping[str, Any], *, source: str, lock: Path, inputs: Mapping[str, Path], folder: Path,
              keep: bool = False) -> Path:
    """Run a pipeline and say where everything is.

    Args:
        document: the profile, `source` its name.
        inputs: URI argument of the pipeline -> file or folder that stands for it.
        folder: where runs and the servers' data are kept.
        keep: whether to wait, with the servers up, until the user stops it.

    Returns:
        The run's folder: `pipeline.yaml`, `logs/TASK.log`, `outputs/…/TASK/PORT`, `run.json` (tasks, seconds, hashes of outputs).

    Raises:
        AnymalError: if a knob is wrong, engine, images or assets are missing, or a task fails; the message has its last line.
    """
    from pipelines.arguments import read_arguments, uris_of
    from pipelines.compile import compile_one

    with ExitStack() as stack:
        stack.enter_context(reserved(folder))
        uris = {name: str(path.absolute()) for name, path in inputs.items()}
        if takes_lock := LOCK in uris_of(pipeline):
            uris[LOCK] = f"s3://{BUCKET}/locks/{sha256_of(lock)}.yaml"
        arguments = read_arguments(pipeline, document, source, uris)
        mounted = [*inputs.values(), *(_own_sources(document) if takes_lock else ())]
        place = new_run(folder)
        # The task that records how a run ended is left out: KFP cannot run it here, and the terminal says it.
        compile_one(pipeline, document, source, place / IR, outcome=False)
        specification = read_specification(place / IR)
        client, user = _engine(specification)
        stack.callback(client.close)
        if takes_lock:
            _bring_assets(document, lock)
        mlflow, s3 = stack.enter_context(serve(folder))
        if takes_lock:
            s3.client.put_object(Bucket=BUCKET, Key=uris[LOCK].removeprefix(f"s3://{BUCKET}/"), Body=lock.read_bytes())
        environment = s3.environment | {"MLFLOW_TRACKING_URI": mlflow.uri, "ANYMAL_GRAPH_RUN": f"kfp-local-{place.name}", "ANYMAL_CACHE": CACHE,
                                        "HOME": "/tmp"}  # noqa: S108 - of the container, where any user may write
        environment |= {name: os.environ[name] for name in PASSED if name in os.environ}
        containers = Containers(retries(specification), place / "logs")
        try:
            run_compiled(place, arguments, containers, environment=environment, user=user, mounted=mounted)
        finally:
            _record(place, containers.tasks)
        _say_where(place, folder, mlflow.uri)
        if keep:
            print(f"MLflow: {mlflow.uri} until ctrl-C", flush=True)
            with suppress(KeyboardInterrupt):
                signal.pause()
    return place


def run_compiled(place: Path, arguments: Mapping[str, Any], containers: Containers, *, environment: Mapping[str, str], user: tuple[int, int],
                 mounted: list[Path]) -> None:
    """Let KFP run the compiled pipeline of a run's folder.

    Args:
        environment: of its containers.
        user: user and group that they run as.
        mounted: files and folders of this machine that they may read, at the same path.

    Raises:
        AnymalError: if a task fails.
    """
    import docker
    from docker.types import Mount
    from kfp import components, local

    assets = cache_folder() / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    for name in ("outputs", "workspace", "cache", "cache/assets"):
        (place / name).mkdir()
        os.chown(place / name, *user)
    (place / "logs").mkdir()
    mounts = [Mount(CACHE, str((place / "cache").absolute()), type="bind"),
              Mount(f"{CACHE}/assets", str(assets.absolute()), type="bind", read_only=True),
              *(Mount(str(path.absolute()), str(path.absolute()), type="bind", read_only=True) for path in mounted)]
    # Docker's default /root may be entered by root only, and the run's folder may lie below it, for it has the same path in the container.
    runner = local.DockerRunner(network_mode="host", environment=dict(environment), user=f"{user[0]}:{user[1]}", mounts=mounts,
                                shm_size=SHARED_MEMORY, tmpfs={"/root": "mode=755"})
    local.init(runner, pipeline_root=str((place / "outputs").absolute()), workspace_root=str((place / "workspace").absolute()))
    graph = components.load_component_from_file(str(place / IR))
    try:
        with containers.in_use(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*remote file")  # stages read s3:// by themselves
            graph(**arguments)
    except docker.errors.DockerException as error:
        raise AnymalError(f"the Docker engine cannot run a task: {' '.join(str(error).split())}") from error
    except RuntimeError:
        failed = [task for task in containers.tasks if task.status]
        if not failed:
            raise
        task = failed[-1]
        raise AnymalError(f"task {task.name} ended with status {task.status}: {task.message} (all it said: {task.log})") from None


def read_specification(path: Path) -> dict[str, Any]:
    """The pipeline specification of a compiled pipeline; what follows it in the file is for clusters."""
    from ruamel.yaml import YAML

    specification: dict[str, Any] = next(iter(YAML(typ="safe").load_all(path.read_text(encoding="utf-8"))))
    return specification


def _pair(given: str) -> tuple[str, Path]:
    name, equals, path = given.partition("=")
    if not equals or not Path(path).exists():
        raise ConfigError(f"--input {given}: names no file or folder; write it as NAME=PATH")
    return name, Path(path)


def new_run(folder: Path) -> Path:
    """A folder for one more run: they are numbered."""
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    place = runs / str(1 + max((int(path.name) for path in runs.iterdir() if path.name.isdecimal()), default=0))
    place.mkdir()
    return place


def _engine(specification: Mapping[str, Any]) -> tuple[Any, tuple[int, int]]:
    """The Docker engine, which has all images of a compiled pipeline, and the user and group that containers run as.

    That is the caller, who owns what they write; instead of root, it is the user that the images name.
    """
    import docker

    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        raise AnymalError("no Docker engine answers; start one, such as with `eval \"$(scripts/engine.sh start)\"`, or set DOCKER_HOST") from error
    users = set()
    for image in sorted({part["container"]["image"] for part in specification["deploymentSpec"]["executors"].values() if "container" in part}):
        try:
            users.add(client.images.get(image).attrs["Config"]["User"])
        except docker.errors.ImageNotFound:
            raise AnymalError(f"image {image}: the Docker engine does not have it; build it with `make images` and set ANYMAL_IMAGES to the file "
                              "that this writes, or pull it") from None
    if os.getuid() != 0:
        return client, (os.getuid(), os.getgid())
    if len(users) > 1:
        raise AnymalError(f"the images run as different users ({', '.join(sorted(users))}), who could not read each other's files; build them anew")
    name, _, group = users.pop().partition(":")
    return client, (int(name or 0), int(group or name or 0))


def _bring_assets(document: Mapping[str, Any], lock: Path) -> None:
    """Have all assets in this machine's cache, by its own settings for package indexes, which containers do not get."""
    from anymal.data.assets import provide
    from anymal.data.lock import read_lock, unknown_name

    entries, section = read_lock(lock), document["ingest"]
    for name in section["assets"]:
        if name not in entries:
            raise unknown_name(name, entries, f"ingest.assets ({lock})")
        provide(name, entries[name], section["sources"].get(name))


def _own_sources(document: Mapping[str, Any]) -> list[Path]:
    """Files and folders of this machine that assets are taken from."""
    sources = document["ingest"]["sources"]
    for name, source in sources.items():
        if source.startswith("s3://"):
            raise ConfigError(f"ingest.sources.{name} = {source}: containers of a local run know the local S3 server only; bring the files here and "
                              "name their folder")
    return [Path(source) for source in sources.values() if not source.startswith(("https://", "http://"))]


def _record(place: Path, tasks: list[Task]) -> None:
    """Write `run.json`, and print it: seconds of each task, and hashes of its outputs."""
    records: list[dict[str, Any]] = [{"task": task.name, "status": task.status, "attempts": task.attempts, "seconds": round(task.seconds, 1),
                "outputs": outputs_of(place, task.name)} for task in tasks]
    (place / "run.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    width = max((len(task.name) for task in tasks), default=4)
    print(f"\n{'task':{width}}  seconds  outputs (SHA-256)")
    for record in records:
        hashes = ", ".join(f"{port} {sha256[:12]}" for port, sha256 in record["outputs"].items())
        failed = f"ended with status {record['status']}" if record["status"] else ""
        print(f"{record['task']:{width}}  {record['seconds']:7.1f}  {hashes or failed}")
    print(f"{'all':{width}}  {sum(task.seconds for task in tasks):7.1f}  {place / 'run.json'}")


def _say_where(place: Path, folder: Path, tracking_uri: str) -> None:
    """Print what was registered, and how to see it."""
    for path in sorted(place.glob("outputs/**/register*/registration")):
        model = json.loads(path.read_text(encoding="utf-8"))
        print(f"\nModel   {model['uri']}, version {model['version']}\nLink    {tracking_uri}/#/models/{model['name']}/versions/{model['version']}")
    print(f"Server  python -m pipelines.servers {folder} (unless --keep is given, it ends with the run)")


def outputs_of(place: Path, task: str) -> dict[str, str]:
    """Port -> SHA-256 of what a task of a run left there (`anymal.data.manifest.fingerprint`)."""
    found = {}
    for report_file in sorted((place / "outputs").glob(f"**/{task}/executor_output.json")):
        artifacts = json.loads(report_file.read_text(encoding="utf-8")).get("artifacts", {})
        found |= {port: fingerprint(Path(entry["artifacts"][0]["uri"])) for port, entry in artifacts.items()}
    return dict(sorted(found.items()))


@contextmanager
def _told_when_stopped() -> Iterator[None]:
    """SIGTERM and ctrl-C stop the running container, then the servers, and end the run with a sentence."""
    try:
        with stoppable():
            yield
    except KeyboardInterrupt:
        raise Interrupted("stopped; the next run begins anew") from None



def main() -> None:
    """The command; errors the user can mend are printed as sentences."""
    report("local", lambda: command(prog_name="python -m pipelines.local", standalone_mode=True))


if __name__ == "__main__":
    main()
