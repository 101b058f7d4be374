"""The chat page in a real browser: uploads of every modality, streamed answers, refusals and faults shown as such, a phone, the keyboard alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from anymal.serving.api import PAGE
from tests import tiny
from tests.browser import look
from tests.model.test_bundle import make
from tests.serving.running_server import FILES, MODEL, running

MODALITIES = ("image", "audio", "imu", "video")
NAMES = {"image": "blue.png", "audio": "tone.wav", "video": "clip.mp4", "imu": "swing.npy"}
NOUNS = {"image": "picture", "audio": "sound", "video": "clip", "imu": "motion"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / MODEL
    make(tiny_model, str(folder), MODALITIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_model)
        with running(folder) as found:
            yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    for modality, name in NAMES.items():
        (folder / name).write_bytes(FILES[modality]())
    (folder / "red.png").write_bytes(tiny.picture("red"))
    (folder / "notes.txt").write_text("nothing")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def page(browser, server):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" and "status of 4" not in message.text else None)
    opened.on("request", lambda request: problems.append(request.url) if not request.url.startswith((server.url, "data:", "blob:")) else None)
    opened.goto(server.url)
    opened.get_by_text(re.compile(r"^bundle answers\.")).wait_for()
    yield opened
    context.close()
    assert problems == []


def upload(page: Any, files: dict[str, Path], *names: str) -> None:
    page.set_input_files("#pick", [str(files[name]) for name in names])
    expect(page.locator("#files li figure img")).to_have_count(len(names), timeout=20_000)


def answered(page: Any, count: int) -> Any:
    """The last answer, complete, of so many."""
    expect(page.locator("#talk li.assistant .below")).to_have_count(count, timeout=60_000)
    return page.locator("#talk li.assistant").nth(count - 1)


def test_every_modality_is_uploaded_shown_and_answered(page, files):
    for number, (modality, name) in enumerate(NAMES.items(), 1):
        upload(page, files, name)
        assert NOUNS[modality] in page.locator("#files figcaption").inner_text()
        if modality == "audio":
            expect(page.locator("#files audio")).to_have_js_property("duration", 0.5)
        page.fill("#text", "what is it ?")
        page.click("#send")
        answer = answered(page, number)
        assert answer.locator(".said").inner_text() and "bundle" in answer.locator(".below").inner_text()
    assert page.locator("#talk li.user img").count() == 4
    page.reload()
    page.get_by_text(re.compile(r"^bundle answers\.")).wait_for()
    assert page.locator("#talk li").count() == 0 and page.locator("#start").is_visible()


def test_files_are_ordered_and_named_in_the_text(page, files, server):
    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.url.endswith("completions") else None)
    upload(page, files, "blue.png", "tone.wav", "swing.npy")
    page.get_by_role("button", name="Move to the left: [sound 1]").click()
    page.get_by_role("button", name="Remove [motion 1]").click()
    page.fill("#text", "is the sound of ")
    page.get_by_role("button", name="Name in the text [picture 1]").click()
    page.locator("#text").press("End")
    page.keyboard.type(" ?")
    page.keyboard.press("Enter")
    answered(page, 1)
    parts = sent[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["input_audio", "text", "image_url", "text"]
    assert [part["text"] for part in parts if part["type"] == "text"] == ["is the sound of", "?"]
    page.fill("#text", "and now ?")
    page.keyboard.press("Enter")
    answered(page, 2)
    assert [message["role"] for message in sent[1]["messages"]] == ["user", "assistant", "user"]


def test_a_refusal_is_shown_as_one_and_is_not_part_of_what_follows(page, files):
    page.fill("#text", "a kaboomery please")
    page.keyboard.press("Enter")
    answer = answered(page, 1)
    assert "refused" in answer.get_attribute("class") and "can't help" in answer.inner_text()
    assert "refused" in page.locator("#announcer").inner_text()
    upload(page, files, "red.png")
    page.click("#send")
    assert "refused" in answered(page, 2).get_attribute("class")
    with page.expect_request("**/completions") as sent:
        page.fill("#text", "what is red ?")
        page.keyboard.press("Enter")
    assert len(sent.value.post_data_json["messages"]) == 1
    assert "refused" not in answered(page, 3).get_attribute("class")


def test_what_cannot_be_read_is_said_and_taken_out(page, files, server):
    page.set_input_files("#pick", str(files["notes.txt"]))
    assert "notes.txt: is no picture" in page.locator("#problem").inner_text()
    page.set_input_files("#pick", {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.get_by_text("cannot be read as a picture").wait_for()
    assert page.locator("#files li").count() == 0
    page.click("#send")
    assert "Write a question or add a file" in page.locator("#problem").inner_text()


def test_an_example_is_one_click_away_and_the_curl_command_asks_the_same(page, server, tmp_path):
    page.locator("#examples button").first.click()
    expect(page.locator("#files li figure img")).to_have_count(1, timeout=20_000)
    page.click("#send")
    said = answered(page, 1).locator(".said").inner_text()
    page.get_by_role("button", name="Copy as cURL").click()
    page.get_by_text("Copied").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    for file in (PAGE / "examples").iterdir():
        shutil.copy(file, tmp_path / file.name)
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == said


def test_the_keyboard_alone_suffices(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("what is red ?")
    page.keyboard.press("Enter")
    answered(page, 1)
    assert page.evaluate("document.activeElement.id") == "text"
    unnamed = page.evaluate("""[...document.querySelectorAll('button, input, textarea, img, audio')].filter(one => one.offsetParent && !(
        one.getAttribute('aria-label') || one.innerText || one.alt || one.ariaHidden || one.tagName === 'AUDIO')).map(one => one.outerHTML)""")
    assert unnamed == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(browser, server, files, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.url)
    page.get_by_text(re.compile(r"^bundle answers\.")).wait_for()
    upload(page, files, "blue.png", "tone.wav", "swing.npy")
    page.fill("#text", "what is all of this , and why is there so very much of it ?")
    page.click("#send")
    answered(page, 1)
    page.fill("#text", "a kaboomery please")
    page.keyboard.press("Enter")
    assert answered(page, 2).is_visible() and page.evaluate(SEEN)
    assert look(page) == {}
    context.close()



SEEN = """() => {
  const last = document.querySelector('#talk li:last-child').getBoundingClientRect();
  return last.bottom <= document.querySelector('form').getBoundingClientRect().top + 1;
}"""
"""Whether the last answer stands above the form, not behind it."""
