"""The container images, built for real: who runs in them, what is in them, and what of the building machine is not."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
from ruamel.yaml import YAML

from anymal import __version__
from anymal.errors import ConfigError
from tests.engine import Engine, Images
from tests.graph import closure
from tests.test_architecture import imports, roots

ROOT = Path(__file__).parent.parent
NAMES = ("data", "train", "eval", "serve", "mlflow")
ABSENT = {
    "data": {"pycocoevalcap", "psycopg2"}, "train": {"spacy", "cv2", "pycocoevalcap", "psycopg2"},
    "eval": {"spacy", "cv2", "psycopg2"}, "serve": {"spacy", "pycocoevalcap", "psycopg2"},
    "mlflow": {"anymal", "torch", "spacy", "cv2", "pycocoevalcap"},
}
DEVELOPERS = {"kfp", "dvc", "pytest", "mypy", "ruff", "uv", "Cython"}
"""In no image."""
SECRET = re.compile(r"(?i)password|passwd|secret|token|api_?key|credential|AKIA[0-9A-Z]{16}|PRIVATE KEY|://[^/\s\"]+:[^/\s\"]+@|_proxy")
"""Nothing in an image's configuration and history looks like this."""
LEFTOVER = re.compile(r"/(pip\.conf|\.netrc|\.git|\.pypirc|uv\.toml)$|\.whl$|/bin/(gcc|cc|make|git|uv)(-\d+)?$|^/var/lib/apt/lists/.*Packages|"
                      r"^/var/cache/apt/.*\.bin$|\.deb$|^/(root|tmp|home)/[^/]*$")
"""Files that no image has: package settings, caches, what builds."""
WALK = "import os; print('\\n'.join(os.path.join(f, n) for f, _, ns in os.walk('/') if not f.startswith(('/proc', '/sys', '/dev')) for n in ns))"
VERSIONS = "import json, importlib.metadata as m; print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
slow = pytest.mark.slow


# --- which images run
def images_file(folder: Path, *entries: dict[str, str]) -> Path:
    file = folder / "images.yaml"
    with file.open("w", encoding="utf-8") as target:
        YAML().dump({"kind": "Component", "images": list(entries)}, target)
    return file


def test_references_are_a_repository_with_its_digest_or_its_tag(tmp_path, monkeypatch):
    from components import images

    digest = "sha256:" + "0" * 64
    monkeypatch.setattr(images, "FILE", images_file(
        tmp_path, {"name": "anymal-data", "newName": "registry.example:5000/team/anymal-data", "digest": digest},
        {"name": "anymal-train", "newName": "anymal-train", "newTag": "abc"}))
    assert images.reference("anymal-data") == f"registry.example:5000/team/anymal-data@{digest}"
    assert images.reference("anymal-train") == "anymal-train:abc"
    with pytest.raises(ConfigError, match=r"images\.yaml is missing or has no single entry anymal-eval"):
        images.reference("anymal-eval")


@pytest.mark.parametrize("text", [None, "", "images: 3", "images: [{name: anymal-data}]", "images: [{newName: x, newTag: y}]", "{", "- a"])
def test_a_broken_file_of_images_is_one_sentence(tmp_path, monkeypatch, text):
    from components import images

    file = tmp_path / "images.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(images, "FILE", file)
    with pytest.raises(ConfigError, match=f"{file} is missing or has no single entry anymal-data.*make images"):
        images.reference("anymal-data")


def test_every_image_has_an_entry_in_the_manifests():
    document = YAML(typ="safe", pure=True).load((ROOT / "manifests" / "images" / "kustomization.yaml").read_text(encoding="utf-8"))
    assert {f"anymal-{name}" for name in NAMES} <= {entry["name"] for entry in document["images"]}


# --- what is in them
def run_in(image: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as a cluster would: any user, no network, a root file system that cannot be written."""
    settings = {"user": "4321:0", "network": "none", **options}
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    command = ["docker", "run", "--rm", "--read-only", "--tmpfs", "/tmp", *flags, image, *words]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def said(image: str, *words: str, **options: Any) -> str:
    done = run_in(image, *words, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@slow
def test_engine_is_started_once(docker_engine: Engine):
    done = subprocess.run([ROOT / "scripts" / "engine.sh", "start"], check=True, capture_output=True, text=True)
    assert all(os.environ["DOCKER_HOST"] in line for line in done.stdout.splitlines() if "DOCKER_HOST" in line)
    status = subprocess.run([ROOT / "scripts" / "engine.sh", "status"], check=True, capture_output=True, text=True).stdout
    assert "answers" in status


@slow
def test_images_run_as_no_one_in_particular_and_say_what_they_are(docker_engine: Engine, images: Images):
    assert set(images.names) == set(NAMES)
    client = docker_engine.client
    for name, reference in images.names.items():
        config = client.images.get(reference).attrs["Config"]
        assert config["User"] == "1000:1000", name
        assert not config.get("Entrypoint"), name
        assert not config.get("ExposedPorts") and not config.get("Volumes"), name
        labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
        assert labels.keys() == {"title", "description", "version", "revision", "licenses", "base.name"}, name
        assert labels["title"] == f"anymal-{name}"
        assert labels["version"] == __version__
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["revision"])
    client.close()


@slow
def test_nothing_in_configuration_or_history_looks_like_a_secret(docker_engine: Engine, images: Images):
    client = docker_engine.client
    for reference in images.names.values():
        image = client.images.get(reference)
        text = json.dumps([image.attrs["Config"], image.history()])
        assert len(text) > 500
        assert not SECRET.search(text), SECRET.search(text)
    client.close()


def settings_of_this_machine() -> set[str]:
    """What tells where this machine gets its packages: hosts, folders and accounts in pip's, uv's and the proxies' settings, and its name."""
    configured = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    values = [line.partition("=")[2].strip("'\"") for line in configured.splitlines()]
    values += [value for name, value in os.environ.items() if re.search(r"(?i)^(pip|uv)_|_proxy$|index_url", name)]
    found = {str(ROOT), socket.gethostname()}
    for word in (word for value in values for word in value.split()):
        parts = urlsplit(word)
        if parts.hostname is not None:
            found |= {parts.hostname, parts.netloc}
        found.add(parts.path if parts.scheme == "file" or word.startswith("/") else "")
    bare = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull, "COLUMNS": "400"}
    public = subprocess.run([sys.executable, "-m", "pip", "download", "--help"], check=True, capture_output=True, text=True, env=bare).stdout
    # Debian's own place for certificates is in every image; what is in it is compared below. pip's help names the public index. Short words occur
    # by chance.
    return {text for text in found if len(text) >= 8 and not text.startswith("/etc/ssl/") and text not in public}


@slow
def test_no_file_tells_where_the_building_machine_gets_its_packages(images: Images):
    """In all layers (one that several images share comes once), configurations and histories, as bytes."""
    needles, size, end = [text.encode() for text in sorted(settings_of_this_machine())], 0, b""
    with subprocess.Popen(["docker", "save", *images.names.values()], stdout=subprocess.PIPE) as saved:
        assert saved.stdout is not None
        while chunk := saved.stdout.read(1 << 24):
            piece = end + chunk
            assert not [needle for needle in needles if needle in piece]
            size, end = size + len(chunk), piece[-256:]
    assert saved.returncode == 0
    assert size > 1_000_000_000


@slow
@pytest.mark.parametrize("name", NAMES)
def test_an_image_holds_its_packages_as_pinned_and_nothing_that_builds(images: Images, name: str):
    image = images.names[name]
    files = said(image, "python", "-c", WALK).splitlines()
    assert len(files) > 5000
    assert not [file for file in files if LEFTOVER.search(file)]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    pins |= {"anymal": __version__, "opencv-python-headless": pins["opencv-python"]}
    versions = json.loads(said(image, "python", "-c", VERSIONS))
    installed = {re.sub(r"[-_.]+", "-", package).lower(): version.partition("+")[0] for package, version in versions.items()}
    assert len(installed) > 50
    assert {package: version for package, version in installed.items() if pins.get(package) != version} == {}
    unwanted = ABSENT[name] | DEVELOPERS
    found = said(image, "python", "-c", f"import importlib.util as u; print([n for n in {sorted(unwanted)!r} if u.find_spec(n)])")
    assert found.strip() == "[]"


@slow
@pytest.mark.parametrize("name", NAMES)
def test_certificates_are_debians_alone(images: Images, name: str):
    """A building machine may have authorities of its own."""
    local = said(images.names[name], "sh", "-c", "ls /usr/local/share/ca-certificates; grep -c BEGIN /etc/ssl/certs/ca-certificates.crt; "
                                                 "cat /usr/share/ca-certificates/mozilla/*.crt | grep -c BEGIN")
    bundle, authorities = local.split()  # a local authority's file would be a third word
    assert int(bundle) == int(authorities) > 100


def assigned() -> dict[str, set[str]]:
    """Image -> the stages and commands that components, or a cluster's server, run in it."""
    found: dict[str, set[str]] = {"serve": {"serve"}}
    for path in sorted((ROOT / "components").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for image, command in re.findall(r"image=images\.(\w+),\s*command=\[\"anymal\", \"([\w-]+)\"", text):
            found.setdefault(image.lower(), set()).add(command.replace("-", "_"))
    return found


@slow
@pytest.mark.parametrize("name", ["data", "train", "eval", "serve"])
def test_an_image_imports_what_its_stages_and_commands_import(images: Images, name: str):
    """At any depth, inside functions too."""
    commands = assigned()[name]
    assert commands
    starts = [next(f"anymal/{kind}/{command}.py" for kind in ("stages", "commands") if (ROOT / "anymal" / kind / f"{command}.py").exists())
              for command in sorted(commands)]
    files = sorted(file for file in closure([*starts, "anymal/data/s3.py"]) if file.endswith(".py"))
    modules = sorted(set.union(*(roots(imports(ROOT / file)) for file in files)))
    mine = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files]
    assert len(mine) > 5
    code = (f"import importlib\nmissing = []\nfor name in {[*modules, *mine]!r}:\n    try:\n        importlib.import_module(name)\n"
            "    except ImportError as error:\n        missing.append(f'{name}: {error}')\nprint(missing)")
    assert said(images.names[name], "python", "-c", code).strip() == "[]"


@slow
@pytest.mark.parametrize("name", ["data", "train", "eval", "serve"])
def test_the_command_line_works_for_any_user_and_writes_to_tmp_only(images: Images, name: str):
    done = run_in(images.names[name], "anymal", "--help")
    assert done.returncode == 0, done.stderr
    assert "curate-image" in done.stdout
    assert not done.stderr


@slow
def test_training_starts_with_torchrun(images: Images):
    # One write each, for lines of two processes mix otherwise.
    code = ("import os, torch.distributed as d; d.init_process_group('gloo'); "
            "os.write(1, f'{d.get_rank()} {d.get_world_size()} {os.getuid()}{chr(10)}'.encode())")
    done = run_in(images.names["train"], "sh", "-c", f'echo "{code}" >/tmp/ranks.py && torchrun --standalone --nproc-per-node 2 /tmp/ranks.py',
                  user="1000:1000", network="host")  # processes find each other by the host's name
    assert sorted(done.stdout.split("\n"))[1:] == ["0 2 1000", "1 2 1000"], done.stderr


@slow
def test_captions_are_scored_with_the_images_own_java(images: Images):
    code = ("from anymal.evaluation.captions import *\nwith open_meteor() as meteor:\n"
            "    s = CaptionScorer([tokenize(['A dog runs.']), tokenize(['Two cats sleep.'])], meteor)\n"
            "    print(sorted(s.measures(tokenize(['a dog runs', 'two cats sleep']))))")
    assert said(images.names["eval"], "python", "-c", code).strip() == "['bleu_4', 'cider_d', 'meteor', 'rouge_l']"


@slow
def test_mlflow_serves(images: Images):
    """As manifests/base/mlflow.yaml starts it, with SQLite for the database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (f"import time, urllib.request as u\nfor _ in range(240):\n    try:\n        print(u.urlopen('http://127.0.0.1:{port}/health').read().decode())\n"
            "        break\n    except OSError:\n        time.sleep(0.5)")
    script = (f"mlflow server --host 127.0.0.1 --port {port} --workers 1 --backend-store-uri sqlite:////tmp/mlflow.db "
              f"--artifacts-destination s3://bucket/mlflow >&2 & python -c \"$CODE\"; python -c 'import psycopg2, boto3'")
    assert said(images.names["mlflow"], "sh", "-c", script, user="1000:1000", env=f"CODE={code}").strip() == "OK"


# --- a registry
REGISTRY = """version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A real registry on the loopback, of Debian's package."""
    subprocess.run([ROOT / "scripts" / "unpack.sh", tmp_path / "root", "docker-registry"], check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "config.yml").write_text(REGISTRY.format(folder=tmp_path / "data", port=port), encoding="utf-8")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([tmp_path / "root/usr/bin/docker-registry", "serve", tmp_path / "config.yml"], stdout=log, stderr=log)
    deadline = time.monotonic() + 30
    while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    yield f"127.0.0.1:{port}"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def script() -> ModuleType:
    """scripts/images.py as a module."""
    specification = importlib.util.spec_from_file_location("images_script", ROOT / "scripts" / "images.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@slow
def test_pushed_images_are_written_down_by_digest(docker_engine: Engine, registry: str, script: ModuleType, tmp_path: Path, monkeypatch):
    """With an image of one small file: what is pushed is what the digest written down brings back."""
    (tmp_path / "here").write_text("content")
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "image.tar", "here"], check=True)
    subprocess.run(["docker", "import", tmp_path / "image.tar", "anymal-data:tiny"], check=True, capture_output=True)
    before = script.KUSTOMIZATION.read_text(encoding="utf-8")
    monkeypatch.setattr(script, "KUSTOMIZATION", tmp_path / "kustomization.yaml")
    script.KUSTOMIZATION.write_text(before, encoding="utf-8")
    prefix = f"{registry}/team"
    digest = script.push("data", "tiny", prefix, "0" * 40)
    script.write_pushed(prefix, {"data": digest})
    after = script.KUSTOMIZATION.read_text(encoding="utf-8")
    from components import images

    monkeypatch.setattr(images, "FILE", script.KUSTOMIZATION)
    reference = images.reference("anymal-data")
    assert reference == f"{prefix}/anymal-data@{digest}"
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert len(changed) == 2, changed  # the repository and its digest; comments and other entries stay
    client = docker_engine.client
    made = client.images.get("anymal-data:tiny").id
    client.images.remove(made, force=True)
    assert client.images.pull(reference.partition("@")[0], tag=digest).id == made
    client.images.remove(made, force=True)
    client.close()
