"""The local graph under real DVC, in a git repository of its own: what a change re-runs, and what the diffs show.

The stages' outputs are stand-ins (DVC looks at their hashes only); that the real ones pass through is shown by `make demo`.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from anymal.config import read_document
from tests.graph import ROOT, runs

PYTHON = Path(sys.executable)
S3_SECONDS = 60


def run(folder: Path, *words: str, **environment: str) -> str:
    """A command of this environment, run in `folder`; fails with its output."""
    author = {f"GIT_{role}_{part}": "test@example" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    settings = author | {"PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}", "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(words, cwd=folder, env=os.environ | settings | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def write_output(path: Path, text: str) -> None:
    """A file for an output with a suffix, otherwise a folder with a file in it."""
    target = path if path.suffix else path / "content.txt"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with these sources in which all runs are recorded as done."""
    folder = tmp_path_factory.mktemp("repository")
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml", "assets.lock.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "anymal", folder / "anymal")
    for stage in runs().values():
        for path in stage.written:
            write_output(folder / path, '{"loss": 1.0}')
    for picture in read_document(ROOT / "dvc.yaml")["plots"]:
        (folder / picture).write_bytes(b"\x89PNG\r\n\x1a\n")
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "commit", "--force")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "done")
    return folder


@pytest.fixture
def repository(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "repository", symlinks=True))


def changed(folder: Path) -> dict[str, str]:
    """Run -> what DVC says has changed about it."""
    parts = re.split(r"^([\w@]+):\n", run(folder, "dvc", "status"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_git_holds_results_and_the_lock_but_no_data(finished):
    tracked = set(run(finished, "git", "ls-files").split())
    assert {"dvc.lock", "dvc.yaml", ".dvc/config", "results/align/audio.json", "results/evaluate.json",
            "results/curate/image.json"} <= tracked
    assert not {name for name in tracked if name.startswith(("data/", "models/", "reports/", ".dvc/cache"))}
    assert run(finished, "dvc", "config", "core.analytics").strip() == "false"


def test_second_run_runs_nothing(repository):
    output = run(repository, "dvc", "repro")
    assert output.count("didn't change, skipping") == len(runs())
    assert "Data and pipelines are up to date." in output
    assert run(repository, "git", "status", "--porcelain") == ""


def test_an_align_knob_of_a_modality_touches_that_branch_only(repository):
    profile = repository / "params.yaml"
    yaml = YAML()
    params = yaml.load(profile)
    params["align"]["audio"]["steps"] += 1
    yaml.dump(params, profile)
    assert set(changed(repository)) == {"align@audio"}
    assert "align.audio.steps" in run(repository, "dvc", "params", "diff")
    # What align would write anew decides about the runs after it.
    write_output(repository / runs()["align@audio"].outputs["checkpoint"], "other weights")
    after = changed(repository)
    assert set(after) == {"align@audio", "finetune"}
    assert "models/checkpoints/audio" in after["finetune"]
    write_output(repository / runs()["evaluate@audio"].outputs["predictions"], "other answers")
    assert set(changed(repository)) == {"align@audio", "finetune", "evaluate@audio", "score"}


@pytest.mark.parametrize(("file", "touched"), [
    ("anymal/curation/parser.py", {"curate_image"}),
    ("anymal/curation/ego4d.py", {"curate_imu", "benchmark"}),
    ("anymal/training/instructions.py", {"finetune"}),
    ("anymal/evaluation/report.html", {"score"}),
    ("anymal/training/contrastive.py", {"pretrain_encoder@audio", "pretrain_encoder@imu"}),
    ("anymal/model/encoders/video.py", {"encode@video", "evaluate@video", "benchmark"}),
    ("anymal/model/encoders/imu.py", {"pretrain_encoder@imu", "encode@imu", "evaluate@imu", "evaluate_mixed", "benchmark"}),
])  # fmt: skip
def test_code_touches_the_runs_that_use_it_only(repository, file, touched):
    with (repository / file).open("a") as stream:
        stream.write("# changed\n")
    assert set(changed(repository)) == touched


def test_caches_and_partial_work_touch_nothing(repository):
    for name in ("anymal/training/__pycache__/x.pyc", "data/features/.image.partial/x", "models/checkpoints/.image.state"):
        (repository / name).parent.mkdir(exist_ok=True, parents=True)
        (repository / name).write_text("x")
    assert changed(repository) == {}


def test_metrics_and_plots_are_shown(repository):
    (repository / "results/align/audio.json").write_text('{"loss": 0.5}')
    assert re.search(r"results/align/audio.json +loss +1.0 +0.5 +-0.5", run(repository, "dvc", "metrics", "diff"))
    run(repository, "dvc", "plots", "diff", "--out", "shown", "HEAD")
    pictures = {path.name for path in (repository / "shown" / "static").iterdir()}
    assert {"workspace_reports_align_audio_loss.png", "workspace_reports_align_imu_grounding.png"} <= pictures


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    numbers = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return numbers


@pytest.mark.slow
def test_push_and_pull_through_an_s3_server(repository, tmp_path):
    """As README shows it, against a real S3 server: what one machine pushed, a fresh clone pulls."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = free_ports(8)
    (tmp_path / "store").mkdir()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    options = {"dir": tmp_path / "store", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.port": master, "master.port.grpc": master_grpc,
               "volume.port": volume, "volume.port.grpc": volume_grpc, "filer.port": filer, "filer.port.grpc": filer_grpc, "s3.port": s3,
               "s3.port.grpc": s3_grpc, "master.telemetry": "false"}  # fmt: skip
    words = [str(PYTHON.parent / "weed"), "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    with (tmp_path / "weed.log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | keys, cwd=tmp_path) as server:
        try:
            client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{s3}", aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
                                  aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"], region_name=keys["AWS_DEFAULT_REGION"])
            deadline = time.monotonic() + S3_SECONDS
            while True:
                try:
                    client.create_bucket(Bucket="anymal")
                    break
                except (BotoCoreError, ClientError):
                    assert time.monotonic() < deadline, (tmp_path / "weed.log").read_text()[-2000:]
                    time.sleep(0.5)
            run(repository, "dvc", "remote", "add", "--default", "storage", "s3://anymal/dvc")
            run(repository, "dvc", "remote", "modify", "storage", "endpointurl", f"http://127.0.0.1:{s3}")
            run(repository, "git", "commit", "--all", "--quiet", "--message", "remote")
            run(repository, "dvc", "push", **keys)
            run(tmp_path, "git", "clone", "--quiet", str(repository), "clone")
            run(tmp_path / "clone", "dvc", "pull", **keys)
        finally:
            server.terminate()
    pulled = tmp_path / "clone"
    assert (pulled / "models/bundle/content.txt").read_text() == '{"loss": 1.0}'
    assert (pulled / "reports/evaluate.html").read_text() == '{"loss": 1.0}'
    assert not (pulled / "data/assets").exists()
