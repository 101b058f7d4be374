"""Build the container images: `make images`, or `python scripts/images.py [--torch cuda] [--push REGISTRY/FOLDER]`.

Wheels of what constraints.txt pins are made ready here, with this machine's pip settings; images/Dockerfile installs them without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML

from anymal import __version__
from anymal.errors import AnymalError, report

ROOT = Path(__file__).resolve().parent.parent
KUSTOMIZATION = ROOT / "manifests" / "images" / "kustomization.yaml"
LOCAL = ROOT / "dist" / "images.yaml"
CONTEXT = ROOT / "dist" / "images"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
IMAGES = ("data", "train", "eval", "serve", "mlflow")
LAYERS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "core": (None, ()), "mlflow": ("core", ("mlflow",)), "torch": ("core", ("train", "synthesize")),
    "data": ("torch", ("train", "synthesize", "data")), "eval": ("torch", ("train", "synthesize", "eval")),
    "serve": ("torch", ("train", "synthesize", "serve")),
}
"""Layer of packages -> the layer below it (as in images/Dockerfile), and the extras of pyproject.toml that both hold together."""
WINDOWED, HEADLESS = "opencv-python", "opencv-python-headless"
"""OpenCV with windows brings Qt and needs the graphics libraries of a desktop. Containers have no screen; the module `cv2` is the same."""
READERS = ("data", "serve")
"""Layers in which it is: the guard reads text in pictures."""


class ImageError(AnymalError):
    """An image cannot be built or pushed."""


def run(*words: str | Path, what: str, log: Path | None = None, **environment: str) -> str:
    """What a command prints; its errors are in `log` too, if one is given.

    Raises:
        ImageError: the command failed, with its last lines.
    """
    done = subprocess.run(words, cwd=ROOT, check=False, capture_output=True, text=True, errors="replace", env=os.environ | environment)
    if log is not None:
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode != 0:
        last = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise ImageError(f"{what} failed: {last}" + (f"; all it said is in {log}" if log else ""))
    return done.stdout


def docker(*words: str | Path, what: str, log: Path | None = None) -> str:
    """What a docker command prints."""
    # Attestations would carry arguments and addresses of this build into the registry.
    return run("docker", *words, what=what, log=log, DOCKER_BUILDKIT="1", BUILDX_NO_DEFAULT_ATTESTATIONS="1").strip()


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say what is done and, if it succeeds, how long it took."""
    started = time.monotonic()
    click.echo(f"{what} …", nl=False)
    try:
        yield
    except ImageError:
        click.echo()
        raise
    click.echo(f" {time.monotonic() - started:.0f} s")


def start_engine() -> None:
    """Use the engine that answers, or start a private one; this process then has what points docker at it."""
    for line in run(ROOT / "scripts" / "engine.sh", "start", what="starting a Docker engine").splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        os.environ[name] = value.replace("$PATH", os.environ["PATH"])


def source() -> tuple[str, str]:
    """The commit at hand, with `-dirty` if what goes into images differs from it, and its time in seconds since 1970."""
    commit, when = run("git", "log", "-1", "--format=%H %ct", what="reading the commit (images are built in a git checkout)").split()
    changed = run("git", "status", "--porcelain", "--", "anymal", "images", "pyproject.toml", "constraints.txt", what="comparing with the commit")
    return commit + ("-dirty" if changed else ""), when


def torch_options(torch: str) -> list[str]:
    """Where uv takes PyTorch from. For CPUs: a folder that pip is set up to look into, if it has a wheel, else PyTorch's own index."""
    if torch == "cuda":
        return []
    words = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    configured = subprocess.run(words, check=False, capture_output=True, text=True).stdout
    for folder in f"{os.environ.get('UV_FIND_LINKS', '')} {os.environ.get('PIP_FIND_LINKS', '')} {configured}".split():
        if any(Path(folder).glob("torch-*.whl")):
            return ["--find-links", folder]
    return ["--torch-backend", "cpu"]


def pins() -> dict[str, str]:
    """Package -> version, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))


def resolve(layer: str, below: set[str], torch: str) -> dict[str, str]:
    """Lock what a layer holds beyond those below it, in `pylock.LAYER.toml` of the context; package -> version."""
    lock, extra, excluded = CONTEXT / f"pylock.{layer}.toml", CONTEXT / "extra.txt", CONTEXT / "excluded.txt"
    extra.write_text(f"{HEADLESS}=={pins()[WINDOWED]}\n" if layer in READERS else "", encoding="utf-8")
    excluded.write_text(f"{WINDOWED}\n", encoding="utf-8")
    extras = [word for name in LAYERS[layer][1] for word in ("--extra", name)]
    run(Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "pyproject.toml", extra, *extras, "--constraint", "constraints.txt",
        "--excludes", excluded, "--python-version", PYTHON, "--format", "pylock.toml", "--output-file", lock, "--no-header", *torch_options(torch),
        *(word for name in sorted(below) for word in ("--no-emit-package", name)), what=f"choosing the packages of layer {layer}")
    packages = {package["name"]: package["version"] for package in tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]}
    if torch == "cuda" and "+cpu" in packages.get("torch", ""):
        raise ImageError(f"--torch cuda: uv chose torch {packages['torch']}, for CPUs; unset UV_FIND_LINKS, or remove that wheel from its folder")
    return packages


def make_wheels(torch: str) -> None:
    """Fill a folder of the context for each layer: its wheels, and `requirements.txt` with their versions. One that is up to date stays."""
    held: dict[str, set[str]] = {}
    for layer, (parent, _) in LAYERS.items():
        below = held[parent] if parent else set()
        packages = resolve(layer, below, torch)
        held[layer] = below | packages.keys()
        folder, lock, kept = CONTEXT / layer, CONTEXT / f"pylock.{layer}.toml", CONTEXT / f".{layer}.lock"
        if kept.exists() and kept.read_bytes() == lock.read_bytes():
            continue
        with timed(f"{layer}: {len(packages)} wheels"):
            shutil.rmtree(folder, ignore_errors=True)
            run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--requirement", lock, "--wheel-dir", folder,
                what=f"fetching the wheels of layer {layer}")
            (folder / "requirements.txt").write_text("".join(f"{name}=={version}\n" for name, version in sorted(packages.items())), encoding="utf-8")
            shutil.copyfile(lock, kept)


def make_code(commit_time: str) -> None:
    """The project's own wheel, made of a copy that holds nothing but its sources."""
    source, folder = CONTEXT / "source", CONTEXT / "code"
    for path in (source, folder):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(ROOT / "anymal", source / "anymal", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    run(Path(sys.executable).with_name("uv"), "build", "--quiet", "--wheel", "--out-dir", folder, source, what="building the project's wheel",
        SOURCE_DATE_EPOCH=commit_time)
    (folder / "requirements.txt").write_text(f"anymal=={__version__}\n", encoding="utf-8")
    shutil.rmtree(source)


def make_tools() -> None:
    """What the build itself runs."""
    folder = CONTEXT / "tools"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "images" / "install.sh", folder / "install.sh")
    shutil.copy2(Path(sys.executable).with_name("uv").resolve(), folder / "uv")


def find_base(base: str | None) -> str:
    """A base image that the engine has: the named one, the public one, or, where no registry is reached, one made here of Debian's packages."""
    wanted = base or f"python:{PYTHON}-slim-bookworm"
    try:
        docker("image", "inspect", wanted, what=f"looking for {wanted}")
        return wanted
    except ImageError:
        pass
    try:
        with timed(f"pulling {wanted}"):
            docker("pull", "--quiet", wanted, what=f"pulling {wanted}")
        return wanted
    except ImageError as error:
        if base is not None:
            raise
        click.echo(str(error))
    if PYTHON != "3.11":
        raise ImageError(f"base image: Debian 12 has Python 3.11 and this is {PYTHON}; run this with Python 3.11, or name an image with --base")
    recipe = (ROOT / "images" / "base.sh").read_bytes()
    own = f"anymal-base:{hashlib.sha256(recipe).hexdigest()[:12]}"
    try:
        docker("image", "inspect", own, what=f"looking for {own}")
    except ImageError:
        with timed(f"making {own} of Debian's packages instead"):
            run(ROOT / "images" / "base.sh", CONTEXT / "base.tar", what="making a base image", log=CONTEXT / "base.log")
            docker("import", CONTEXT / "base.tar", own, what=f"importing {own}")
            (CONTEXT / "base.tar").unlink()
    return own


def build(name: str, base: str, revision: str, commit_time: str) -> str:
    """Build one image; its tag is the beginning of its own hash, so that a name never means two things."""
    log, identity = CONTEXT / f"{name}.log", CONTEXT / f"{name}.id"
    docker("build", "--file", ROOT / "images" / "Dockerfile", "--target", name, "--network", "none", "--progress", "plain",
           "--build-arg", f"BASE={base}", "--build-arg", f"REVISION={revision}", "--build-arg", f"SOURCE_DATE_EPOCH={commit_time}",
           "--label", f"org.opencontainers.image.version={__version__}", "--label", f"org.opencontainers.image.revision={revision}",
           "--label", f"org.opencontainers.image.base.name={base}", "--iidfile", identity, CONTEXT, what=f"building anymal-{name}", log=log)
    found = identity.read_text(encoding="utf-8").strip()
    tag = found.removeprefix("sha256:")[:12]
    docker("tag", found, f"anymal-{name}:{tag}", what=f"naming anymal-{name}")
    return tag


def push(name: str, tag: str, prefix: str, revision: str) -> str:
    """Send an image to a registry; its digest there."""
    repository = f"{prefix}/anymal-{name}"
    remote = f"{repository}:{__version__}-{revision[:12]}"
    docker("tag", f"anymal-{name}:{tag}", remote, what=f"naming {remote}")
    docker("push", "--quiet", remote, what=f"pushing {remote}")
    digests = json.loads(docker("image", "inspect", "--format", "{{json .RepoDigests}}", remote, what=f"reading the digest of {remote}"))
    (digest,) = {entry.partition("@")[2] for entry in digests if entry.startswith(f"{repository}@")}
    return digest


def write_local(tags: dict[str, str]) -> None:
    """Say in dist/images.yaml which images this machine's engine has."""
    entries = [{"name": f"anymal-{name}", "newName": f"anymal-{name}", "newTag": tag} for name, tag in tags.items()]
    document = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component", "images": entries}
    temporary = LOCAL.with_name(f".{LOCAL.name}.partial")
    with temporary.open("w", encoding="utf-8") as target:
        YAML().dump(document, target)
    temporary.replace(LOCAL)


def write_pushed(prefix: str, digests: dict[str, str]) -> None:
    """Say in the manifests which images run on a cluster; comments and other entries stay."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 150
    yaml.indent(mapping=2, sequence=4, offset=2)
    document: Any = yaml.load(KUSTOMIZATION.read_text(encoding="utf-8"))
    for entry in document["images"]:
        name = entry["name"].removeprefix("anymal-")
        if name in digests:
            entry["newName"], entry["digest"] = f"{prefix}/anymal-{name}", digests[name]
            entry.pop("newTag", None)
    temporary = KUSTOMIZATION.with_name(f".{KUSTOMIZATION.name}.partial")
    with temporary.open("w", encoding="utf-8") as target:
        yaml.dump(document, target)
    temporary.replace(KUSTOMIZATION)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--torch", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Which PyTorch goes into all but mlflow.")
@click.option("--base", metavar="IMAGE", help=f"What they are built on: Debian 12 with Python {PYTHON}.  [default: python:{PYTHON}-slim-bookworm; "
              "where that cannot be pulled, one made of Debian's packages]")
@click.option("--only", type=click.Choice(IMAGES), multiple=True, help="Build this one; may be repeated. dist/images.yaml stays as it is.")
@click.option("--push", "prefix", metavar="REGISTRY/FOLDER", help="Push them there and write their digests into manifests/images/kustomization.yaml.")
def command(*, torch: str, base: str | None, only: tuple[str, ...], prefix: str | None) -> None:
    """Build the container images of the stages, of the server and of MLflow."""
    prefix = prefix.rstrip("/") if prefix else None
    CONTEXT.mkdir(parents=True, exist_ok=True)
    start_engine()
    revision, commit_time = source()
    found = find_base(base)
    make_tools()
    make_wheels(torch)
    make_code(commit_time)
    tags = {}
    for name in only or IMAGES:
        with timed(f"building anymal-{name} on {found}"):
            tags[name] = build(name, found, revision, commit_time)
    if not only:
        write_local(tags)
    for name, tag in tags.items():
        size = int(docker("image", "inspect", "--format", "{{.Size}}", f"anymal-{name}:{tag}", what=f"measuring anymal-{name}"))
        click.echo(f"anymal-{name}:{tag}  {size / 1e6:.0f} MB with the layers that it shares")
    if prefix is not None:
        digests = {}
        for name, tag in tags.items():
            with timed(f"pushing anymal-{name} to {prefix}"):
                digests[name] = push(name, tag, prefix, revision)
        write_pushed(prefix, digests)
        click.echo(f"{KUSTOMIZATION.relative_to(ROOT)} has the digests; commit it")
    elif not only:
        click.echo(f"export ANYMAL_IMAGES={LOCAL}")


if __name__ == "__main__":
    report("images", command)
