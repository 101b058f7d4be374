"""A study through a real Label Studio: exported, imported, annotated in a real browser and by the API, exported and scored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from anymal.commands.human import command
from anymal.evaluation.human.form import CRITERIA, PREFERENCES, SIDES
from tests.browser import opened, watch
from tests.human.label_studio import PASSWORD, USER, LabelStudio, wait_for
from tests.human.material import COLOURS, judged, make_shards, predictions, write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
COUNT, IN_BROWSER, AGAIN = 100, 3, 10
PLANTED = 0.7


def human(*arguments: object) -> None:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def page(browser: Browser, label_studio: LabelStudio) -> Iterator[Page]:
    """A page of an annotator who has logged in."""
    with opened(browser, width=1440, height=1000) as opened_page:
        opened_page.set_default_timeout(60_000)
        opened_page.goto(f"{label_studio.uri}/user/login/")
        opened_page.fill("input[name=email]", USER)
        opened_page.fill("input[name=password]", PASSWORD)
        opened_page.press("input[name=password]", "Enter")
        opened_page.wait_for_url(lambda address: "login" not in address)
        yield opened_page


def export(tmp_path: Path, out: Path, modalities: Sequence[str], available: int, *options: object) -> Path:
    """Write a study of two systems, one of which says things that are no HTML and no variables; its key."""
    systems = {"tuned": lambda index: f"It is {COLOURS[index % 3]}.", "aligned": lambda index: f"A <b>thing</b>, number {index} & $question."}
    arguments: list[object] = []
    for modality in modalities:
        arguments += ["--shards", f"{modality}={make_shards(tmp_path / 'shards' / modality, modality, available)}"]
        for system, answer in systems.items():
            arguments += ["--system", f"{system}={predictions(tmp_path / system / modality, modality, answer, available)}"]
    human("export", *arguments, "--seed", 5, "--out", out, "--key", tmp_path / "key.json", *options)
    return tmp_path / "key.json"


def fill_in(page: Page, preferred: str, points: Mapping[str, tuple[int, int]]) -> None:
    """Choose on the form as a person would: by the words beside the buttons, which stand there once for each criterion and side."""
    for name, criterion in CRITERIA.items():
        for side, given in enumerate(points[name]):
            label = f"{given}: {criterion.points[given]}"
            alike = [other for other, entry in CRITERIA.items() if entry.points.get(given) == criterion.points[given]]
            page.get_by_role("radio", name=re.compile(rf"^{label}\b")).nth(side * len(alike) + alike.index(name)).check()
    page.get_by_role("radio", name=re.compile(f"^{PREFERENCES[preferred]}")).check()


def test_a_planted_preference_comes_back_from_the_server(label_studio: LabelStudio, page: Page, tmp_path: Path):
    key = export(tmp_path, tmp_path / "study", ["image"], COUNT, "--count", COUNT)
    project = label_studio.create(tmp_path / "study" / "image", "Answers about pictures")
    lefts = {number: entry["left"] for number, entry in json.loads(key.read_text())["samples"].items()}
    tasks = label_studio.export(project)
    assert len(tasks) == COUNT
    wins = np.random.default_rng(8).permutation(COUNT) < PLANTED * COUNT
    preferred = ["left" if win == (lefts[task["data"]["sample"]] == "tuned") else "right" for win, task in zip(wins, tasks, strict=True)]

    page.goto(f"{label_studio.uri}/projects/{project}/data")
    page.get_by_role("button", name="Label All Tasks").click()
    submit = page.get_by_role("button", name="Submit current annotation")
    submit.click()
    page.get_by_text("Choose one for: left, recognition").wait_for()
    page.get_by_role("button", name="OK").click()
    for task, side in zip(tasks[:IN_BROWSER], preferred, strict=False):
        for name in SIDES:
            page.get_by_text(task["data"][name], exact=True).wait_for()
        fill_in(page, side, {name: (2, 0) if side == "left" else (0, 2) for name in CRITERIA})
        submit.click()
        wait_for(lambda task=task: label_studio.call("GET", f"/api/tasks/{task['id']}/")["annotations"])
    first = label_studio.user()
    for task, side in zip(tasks[IN_BROWSER:], preferred[IN_BROWSER:], strict=True):
        label_studio.annotate(task["id"], judged({}, first, side)["annotations"][0])

    # A second annotator judges the first tasks: always as the first one did, but for the last of them, which is skipped.
    second = label_studio.user("ben@example.org")
    for task, side in zip(tasks[:AGAIN], preferred, strict=False):
        label_studio.annotate(task["id"], judged({}, second, side, was_cancelled=task is tasks[AGAIN - 1])["annotations"][0])

    human("score", "--key", key, "--export", write(tmp_path / "export.json", label_studio.export(project)), "--out", tmp_path / "scored")
    found = json.loads((tmp_path / "scored" / "human.json").read_text())["comparisons"]["tuned_vs_aligned"]
    assert (found["judged"], found["annotators"], found["judgements"]) == (COUNT, 2, COUNT + AGAIN - 1)
    assert [(entry["sample"], entry["reason"]) for entry in found["left_out"]["list"]] == [(tasks[AGAIN - 1]["data"]["sample"], "skipped")]
    win = found["preference"]["win"]
    assert win["value"] == pytest.approx(PLANTED)
    assert 0.55 < win["low"] < PLANTED < win["high"] < 0.85
    assert found["criteria"]["tuned"]["response"]["value"] == pytest.approx(PLANTED)
    assert found["agreement"]["preference"] == {"alpha": 1.0, "same": 1.0, "units": AGAIN - 1}


@pytest.mark.parametrize(("media", "modalities"), [("embed", ("image", "video", "imu")), ("files", ("audio", "video"))])
def test_every_medium_is_shown(label_studio: LabelStudio, page: Page, tmp_path: Path, media: str, modalities: Sequence[str]):
    """A picture has its width, a sound and a clip their length: they were fetched and decoded."""
    study = label_studio.served / media
    export(tmp_path, study, modalities, 2, "--count", 2 * len(modalities), "--media", media)
    wrong = watch(page)
    for modality in modalities:
        project = label_studio.create(study / modality, f"{modality}, {media}")
        if media == "files":
            label_studio.serve(project, study / "media")
        page.goto(f"{label_studio.uri}/projects/{project}/data?labeling=1")
        page.get_by_text("Which answer is better").wait_for()
        wait_for(lambda modality=modality: page.evaluate(SHOWN[modality]))
        assert page.get_by_text("There was an issue loading").count() == 0
    assert [line for line in wrong if "loading error" in line] == []


SHOWN = {
    "image": "[...document.images].some(picture => picture.src.startsWith('blob:') && picture.naturalWidth === 96)",
    "imu": "[...document.images].some(picture => picture.src.startsWith('blob:') && picture.naturalWidth >= 300)",
    "audio": "[...document.querySelectorAll('audio')].some(sound => sound.duration === 0.5)",
    "video": "[...document.querySelectorAll('video')].some(clip => clip.duration === 1)",
}
"""Modality -> whether the page has such a medium as `material.content` makes, ready to be shown."""
