"""`anymal ask` as a process: the answer alone on stdout, and each mistake as one sentence without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from anymal.commands.ask import command
from anymal.errors import AnymalError
from tests.model.test_bundle import make


def ask(*words: str) -> str:
    result = CliRunner().invoke(command, words)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_prints_the_answer_alone(workspace):
    make(workspace)
    run = subprocess.run([sys.executable, "-m", "anymal", "ask", "bundle", "--image", "red.png", "what colour ?", "--max-new-tokens", "3"],
                         capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    assert run.stdout == ask("bundle", "--image", "red.png", "what colour ?", "--max-new-tokens", "3")
    assert run.stdout.endswith("\n") and run.stdout.count("\n") == 1


def test_without_a_question_it_describes(workspace):
    make(workspace)
    assert ask("bundle", "--image", "red.png") != ask("bundle", "--image", "red.png", "is there two cat ?")


@pytest.mark.parametrize(("words", "sentence"), [
    (["bundle", "--image", "none.png"], r"--image none\.png: no such file"),
    (["nothing", "--image", "red.png"], "nothing: no such bundle folder"),
    (["bundle", "--image", "notes.png"], r"notes\.png.*cannot be read as a picture"),
    (["bundle", "--image", "empty.png"], r"empty\.png"),
    (["bundle", "what ?"], "takes 1 image, but no file was given"),
    (["bundle", "--image", "red.png", "--image", "red.png", "what ?"], "takes 1 image, but 2 image was given"),
    (["bundle", "--audio", "red.png", "what ?"], "takes 1 image, but 1 audio was given"),
    (["bundle", "--image", "red.png", "what is <image> ?"], "the question holds <image>"),
    (["bundle", "--image", "red.png", "  "], "the question is empty"),
    (["models:/anymal", "--image", "red.png"], "models:/anymal@candidate"),
])  # fmt: skip
def test_mistakes_are_named(workspace, words, sentence):
    make(workspace)
    (workspace / "notes.png").write_text("not a picture")
    (workspace / "empty.png").touch()
    with pytest.raises(AnymalError, match=sentence) as caught:
        ask(*words)
    assert "\n" not in str(caught.value)


def test_a_changed_bundle_is_refused_on_the_command_line(workspace):
    folder = make(workspace)
    card = folder / "README.md"
    card.write_text(card.read_text() + "x")
    run = subprocess.run([sys.executable, "-m", "anymal", "ask", "bundle", "--image", "red.png"], capture_output=True,
                         text=True, timeout=300, check=False)
    assert run.returncode == 2 and run.stdout == ""
    assert "changed README.md" in run.stderr and "Traceback" not in run.stderr and run.stderr.count("\n") == 1
