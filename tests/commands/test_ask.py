"""`anymal ask`, in this process and as one of its own: the answer alone on stdout, and each mistake as one sentence without a traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from anymal.commands.ask import command
from anymal.errors import AnymalError
from tests.model.test_bundle import make

ALL = ("image", "audio", "video", "imu")


def ask(*words: str) -> str:
    result = CliRunner().invoke(command, words)
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.mark.slow
def test_prints_the_answer_alone(workspace):
    make(workspace, modalities=("image", "audio"))
    words = ["bundle", "--audio", "tone.wav", "--image", "red.png", "what colour ?", "--max-new-tokens", "3"]
    run = subprocess.run([sys.executable, "-m", "anymal", "ask", *words], capture_output=True, text=True, timeout=300, check=False,
                         env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    assert run.stdout == ask(*words)
    assert run.stdout.endswith("\n") and run.stdout.count("\n") == 1


def test_without_a_question_it_describes(workspace):
    make(workspace)
    assert ask("bundle", "--image", "red.png") != ask("bundle", "--image", "red.png", "is there two cat ?")


@pytest.fixture
def asked(monkeypatch):
    """The prompts that reach the model, as the user's message and the modalities of the media."""
    from anymal.model.anymal import AnyMAL

    seen: list[tuple[str, list[str]]] = []
    generate = AnyMAL.generate

    def note(self, prompts, **settings):
        seen.extend((prompt.messages[-1]["content"], [medium.modality for medium in prompt.media]) for prompt in prompts)
        return generate(self, prompts, **settings)

    monkeypatch.setattr(AnyMAL, "generate", note)
    return seen


def test_files_are_read_in_the_order_given_over_all_modalities(workspace, asked):
    make(workspace, modalities=ALL)
    ask("bundle", "--audio", "tone.wav", "--image", "red.png", "what is red ?", "--video", "clip.mp4", "--image", "red.png", "--imu", "swing.npy")
    order = ["audio", "image", "video", "image", "imu"]
    assert asked == [("the sound is <audio> .\nthe picture is <image> .\n<video>\nthe picture is <image> .\n<imu>\nwhat is red ?", order)]
    assert ask("bundle", "--audio", "tone.wav", "--image", "red.png", "yes ?") != ask("bundle", "--image", "red.png", "--audio", "tone.wav", "yes ?")


def test_a_question_can_place_the_files(workspace, asked):
    make(workspace, modalities=ALL)
    ask("bundle", "is <audio> the sound of <image> ?", "--audio", "tone.wav", "--image", "red.png")
    assert asked == [("is <audio> the sound of <image> ?", ["audio", "image"])]


def test_several_files_are_described_in_one_question_and_text_alone_is_asked_as_it_is(workspace, asked):
    make(workspace, modalities=ALL)
    ask("bundle", "--imu", "swing.npy", "--image", "red.png", "--image", "red.png", "--audio", "tone.wav")
    ask("bundle", "what is red ?")
    first = "<imu>\nthe picture is <image> .\nthe picture is <image> .\nthe sound is <audio> .\nDescribe the motion, the pictures and the sound."
    assert asked == [(first, ["imu", "image", "image", "audio"]), ("what is red ?", [])]


def test_show_writes_what_the_encoders_were_fed_and_overwrites_nothing(workspace):
    make(workspace, modalities=ALL)
    words = ["bundle", "--imu", "swing.npy", "--image", "red.png", "--audio", "tone.wav", "--video", "clip.mp4", "yes ?", "--show"]
    ask(*words, "shown/here")
    names = ["1-imu.png", "2-image.png", "3-audio.png", "4-video.png"]
    folder = Path("shown/here")
    assert sorted(file.name for file in folder.iterdir()) == names
    before = {name: (folder / name).read_bytes() for name in names}
    picture = Image.open(io.BytesIO(before["2-image.png"])).convert("RGB")
    assert picture.size == (224, 224) and picture.getpixel((112, 112)) == pytest.approx((255, 0, 0), abs=2)
    assert all(data.startswith(b"\x89PNG") for data in before.values()) and len(set(before.values())) == 4
    with pytest.raises(AnymalError, match=r"--show shown/here: 2-image\.png is there already"):
        (folder / "1-imu.png").unlink()
        ask(*words, "shown/here")
    assert not (folder / "1-imu.png").exists()
    ask(*words, "shown/again")
    assert {name: (Path("shown/again") / name).read_bytes() for name in names} == before


@pytest.mark.parametrize(("words", "sentence"), [
    (["bundle", "--image", "none.png"], r"--image none\.png: no such file"),
    (["bundle", "--image", "red.png", "--imu", "."], r"--imu \.: no such file"),
    (["nothing", "--image", "red.png"], "nothing: no such bundle folder"),
    (["bundle", "--image", "notes.png"], r"notes\.png.*cannot be read as a picture"),
    (["bundle", "--image", "empty.png"], r"empty\.png"),
    (["bundle", "--audio", "notes.png", "what ?"], r"notes\.png: cannot be read as a sound"),
    (["bundle", "--audio", "empty.png", "what ?"], r"empty\.png: holds no byte"),
    (["bundle"], "neither a question nor a file"),
    (["bundle", "--imu", "swing.npy", "what ?"], "no projector for 'imu'; it reads audio, image"),
    (["bundle", "--image", "red.png", "what is <image> in <image> ?"], "question takes <image>, <image>, but the files given are <image>; give one"),
    (["bundle", "--image", "red.png", "--image", "red.png", "what is <image> ?"], "takes <image>, but the files given are <image>, <image>; "),
    (["bundle", "--image", "red.png", "--audio", "tone.wav", "is <audio> in <image> ?"], "takes <audio>, <image>, but the files given are <image>,"),
    (["bundle", "what is <image> ?"], "takes <image>, but the files given are none"),
    (["bundle", "--image", "red.png", "what is <imu> ?"], "takes <imu>, but the files given are <image>"),
    (["bundle", "--image", "red.png", "  "], "the question is empty"),
    (["bundle", "--image", "red.png", "red " * 2100], "more than the 2048 that the model can read"),
    (["bundle", "what ?", "--show", "new"], "--show new: there is nothing to show"),
    (["bundle", "--image", "red.png", "--show", "red.png"], r"--show red\.png: is no folder"),
    (["models:/anymal", "--image", "red.png"], "models:/anymal@candidate"),
])  # fmt: skip
def test_mistakes_are_named(workspace, words, sentence):
    make(workspace, modalities=("image", "audio"))
    (workspace / "notes.png").write_text("not a picture")
    (workspace / "empty.png").touch()
    with pytest.raises(AnymalError, match=sentence) as caught:
        ask(*words)
    assert "\n" not in str(caught.value)
    assert not (workspace / "new").exists()


def test_a_folder_that_cannot_be_written_is_named(workspace):
    make(workspace)
    with pytest.raises(AnymalError, match=r"--show red\.png/in: cannot be written"):
        ask("bundle", "--image", "red.png", "--show", "red.png/in")


def test_a_modality_has_its_option_as_soon_as_it_is_registered(monkeypatch):
    from anymal.model import modalities

    monkeypatch.setattr(modalities, "_ENCODERS", dict(modalities._ENCODERS))
    assert "--smell-map" not in CliRunner().invoke(command, ["--help"]).stdout
    modalities.register_encoder("nose", "smell_map", dict)
    said = CliRunner().invoke(command, ["--help"]).stdout
    assert "--smell-map FILE" in said and "A file of smell_map." in said
    places = [said.index(f"--{modality} FILE") for modality in ("image", "video", "audio", "imu", "smell-map")]
    assert places == sorted(places)


@pytest.mark.slow
def test_a_changed_bundle_is_refused_on_the_command_line(workspace):
    folder = make(workspace)
    card = folder / "README.md"
    card.write_text(card.read_text() + "x")
    run = subprocess.run([sys.executable, "-m", "anymal", "ask", "bundle", "--image", "red.png"], capture_output=True,
                         text=True, timeout=300, check=False)
    assert run.returncode == 2 and run.stdout == ""
    assert "changed README.md" in run.stderr and "Traceback" not in run.stderr and run.stderr.count("\n") == 1
