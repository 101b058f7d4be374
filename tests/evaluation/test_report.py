"""The report: what it shows, in which order, that it needs nothing else, and how it looks in a browser."""

import base64
import io
import json
import re
import shutil
import wave
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from anymal.data.manifest import verify_manifest
from anymal.evaluation import examples, report
from anymal.evaluation.examples import Media, benchmark_examples, choose_examples, clipped, confusion
from anymal.evaluation.labels import in_order, metrics_of
from anymal.evaluation.paper import paper_tables, read_paper
from anymal.evaluation.plots import plot_task
from anymal.evaluation.report import build_report
from anymal.media.audio import preview
from tests.browser import look, opened, watch

PAPER = """
| COCO caption | CIDEr | 99.5 | – | 95.9 | – | IDEFICS-80B 91.8 |
| MM-IT-Cap | CIDEr | 15.5 | – | 15.7 | – | LLaVA 14.3 |
| Hateful Memes | AUC | 66.0 | 68.2 | 69.1 | 67.4 | IDEFICS-80B 60.6 |
| VQAv2 | VQA acc. | 59.6 | 62.0 | 64.2 | 67.8† | BLIP-2 65.0† |
| TextVQA | VQA acc. | 24.7 | 35.4 | 32.9 | 32.5 | InstructBLIP 50.7 (OCR) |
| ScienceQA (image) | acc. | 52.7 | 67.2 | 70.8 | 67.6 | InstructBLIP 70.6 |
| VizWiz | VQA acc. | 24.4 | 32.2 | 33.8 | 41.3 | IDEFICS-80B 36.0 |
| OKVQA | VQA acc. | 33.1 | 41.2 | 42.6 | 46.1 | Flamingo-80B 50.6 |
| AudioCaps | CIDEr / SPICE / SPIDEr | 70.4/21.0/45.7 | 72.1/22.0/47.0 | 77.8/23.0/50.4 | 67.9/17.2/42.0 |
| STAR, How2QA, NextQA | acc. | – | 44.4/59.6/47.9 | 48.2/68.1/57.6 | 42.2/69.8/62.4 |
| Ego4D IMU captions (held out) | CIDEr / ROUGE-L | 52.5/23.2 | – | – | – |
"""
"""The figures as the paper prints them, several in a cell."""


def figure(value, n=40):
    return {"value": value, "low": round(value - 0.1, 6), "high": round(value + 0.1, 6), "n": n}


def measured(*, real, **changes):
    """A benchmark's figures."""
    gap = {"accuracy": figure(0.3)}
    rates = {"eos": 1.0, "max_length": 0.0, "empty": 0.0, "prefix": 0.25, "prefix_words": "it is <b>"}
    return {"accuracy": figure(0.613), "main": "accuracy", "controls": {c: {"accuracy": figure(0.3)} for c in ("shuffled", "blank", "similar")},
            "gap_shuffled": gap, "gap_blank": gap, "gap_similar": gap, "rates": {"right": rates}, "unusable": {"counts": {"no picture": 3}},
            "data": {"asset": "some-set", "license": "CC-BY-4.0", "real": real, "samples": 40, "available": 80, "source": "its site"},
            "prompt_protocol": "paper", "variant": "val", "vqa_variant": "vqa_eval", "prompt": "p", "title": "VQAv2",
            "by_kind": {kind: {"accuracy": figure(0.5)} for kind in ("number", "other")},
            "protocol": "q", "normaliser": "r", "unparsable": 2, **changes}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(scored, tmp_path_factory):
    """Scores with benchmarks beside the project's own tasks, and folders in which a motion has a sound and a benchmark's sample a picture."""
    scores, folders = scored
    root = tmp_path_factory.mktemp("inputs")
    imu = shutil.copytree(folders["imu"], root / "imu")
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes((8000 * np.sin(np.arange(16000) * 0.2)).astype("<i2").tobytes())
    for picture in (imu / "previews" / "imu").glob("*.png"):
        sound.seek(0)
        picture.with_suffix(".mp3").write_bytes(preview(sound, "tone"))
    bench = root / "bench"
    (bench / "previews" / "image").mkdir(parents=True)
    Image.new("RGB", (300, 200), "teal").save(bench / "previews" / "image" / "k.png")
    lines = [{"benchmark": "vqav2", "id": str(i), "modality": "image", "key": "k", "question": "what <i>?", "references": ["a", "a", "b"],
              "prediction": {"right": "a" * 900, "shuffled": "", "blank": "c", "similar": "d"}, "finish": {"right": "length"}} for i in range(4)]
    (bench / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [{"branch": "benchmarks.vqav2", "id": str(i), "group": str(i), "scores": {"accuracy": float(i % 2)}} for i in range(6)]
    results = {**scores.results, "benchmarks": {"vqav2": measured(real=False, paper="vqav2"), "okvqa_lmms": measured(real=True, paper="okvqa"),
                                                "star": {"skipped": "asset <star> is not there", "paper": "star"}}}  # fmt: skip
    return replace(scores, results=results, samples=[*scores.samples, *rows]), {**folders, "imu": imu}, bench


def build(inputs, folder, **changes):
    scores, folders, bench = inputs
    folder.mkdir()
    return build_report(scores, folders, **{"per_group": 3, "seed": 0, "figures": folder, "benchmarks": [bench], **changes})


def only(scores, folders, modality, folder, **changes):
    """The page of one modality, made of a copy of its results that `changes` (task -> figures to put there) are made to."""
    body = json.loads(json.dumps(scores.results[modality]))
    for task, figures in changes.items():
        body[task] |= figures
    folder.mkdir()
    return build_report(replace(scores, results={modality: body}), {modality: folders[modality]}, per_group=1, seed=0, figures=folder)


@pytest.fixture(scope="module")
def page(inputs, tmp_path_factory):
    return build(inputs, tmp_path_factory.mktemp("report") / "figures")


def media_of(html, kind):
    return [base64.b64decode(data) for data in re.findall(rf"data:{kind};base64,([A-Za-z0-9+/=]+)", html)]


def words_of(html):
    """The text of a page, without its markup."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_the_page_is_self_contained_and_says_what_was_measured(page):
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "@import" not in page and "<script" not in page and "url(" not in page
    assert len(page) < 3_000_000
    assert re.findall(r'<section id="(\w+)">', page) == ["use", "paper", "image", "imu", "mixed", "benchmarks", "layouts"]
    assert page.count("Uses its input.") + page.count("Use of its input not shown.") == 7
    assert "&lt;b&gt;as said&lt;/b&gt;" in page and "<b>as said</b>" not in page
    for words in ("Class accuracy", "What the captions named", "By label", "By kind", "Accuracy, imu part", "Shuffled image",
                  "cut at the length limit", "… (300 more characters)", "CC-BY-4.0; 40 of 80 samples",
                  "2 answers could not be read", "no picture (3)"):  # fmt: skip
        assert words in page, words
    found = media_of(page, "image/png")
    assert len(found) > 5 + 12
    for data in found:
        Image.open(io.BytesIO(data)).load()
    assert len(media_of(page, "audio/mpeg")) == page.count("<audio") > 2


def test_the_page_and_its_figures_are_the_same_bytes_again(page, inputs, tmp_path):
    assert build(inputs, tmp_path / "first") == page
    assert build(inputs, tmp_path / "second", seed=1) != page
    verify_manifest(tmp_path / "first")
    names = sorted(path.name for path in (tmp_path / "first").glob("*.png"))
    assert names == ["benchmarks.okvqa_lmms.png", "benchmarks.vqav2.png", "image.caption.png", "image.vqa.png", "imu.caption.png", "imu.qa.png",
                     "mixed.qa.png"]  # fmt: skip
    assert all((tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes() for name in names)
    assert (tmp_path / "first" / "image.vqa.png").read_bytes() in media_of(page, "image/png")


def test_pictures_and_sounds_stop_at_their_budget_and_the_page_says_so(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_MEDIA_BYTES", 4000)
    html = build(inputs, tmp_path / "figures")
    assert "pictures and sounds are left out" in html
    plots = {path.read_bytes() for path in (tmp_path / "figures").glob("*.png")}
    pictures = [data for data in media_of(html, "image/png") if data not in plots]
    assert 0 < sum(map(len, pictures + media_of(html, "audio/mpeg"))) <= 4000


def test_the_paper_is_quoted_exactly():
    rows = {}
    for table in read_paper()["tables"]:
        for row in table["rows"]:
            assert len(row["cells"]) == len(table["columns"])
            title = "STAR, How2QA, NextQA" if row["benchmark"] in {"star", "how2qa", "nextqa"} else row["title"]
            rows.setdefault(title, []).append((row["metric"], [cell or "–" for cell in row["cells"]]))
    found = []
    for title, lines in rows.items():
        metrics = " / ".join(dict.fromkeys(metric for metric, _ in lines))
        cells = ["–" if set(column) == {"–"} else "/".join(column) for column in zip(*(cells for _, cells in lines), strict=True)]
        found.append(f"| {title} | {metrics} | {' | '.join(cells)} |")
    assert "\n".join(found) == PAPER.strip()


def test_every_row_of_the_paper_says_what_was_measured_or_why_not(page):
    benchmarks = {"vqav2": measured(real=False), "okvqa_lmms": measured(real=True, paper="okvqa"), "okvqa": measured(real=True),
                  "star": {"skipped": "asset star is not there"},
                  "audiocaps": measured(real=True, cider_d=figure(0.7), absent={"spice": "no jars were given"})}  # fmt: skip
    rows = {(row.title, row.metric): row for table in paper_tables(benchmarks) for row in table.rows}
    assert [(entry.name, entry.points, entry.made) for entry in rows["OKVQA", "VQA acc."].measured] == [
        (name, "61.3 [51.3, 71.3]", "n = 40; split: val; prompt: paper; answers normalised as: vqa_eval") for name in ("okvqa", "okvqa_lmms")]
    assert rows["AudioCaps", "CIDEr"].measured[0].points == "70.0 [60.0, 80.0]"
    assert {key: rows[key].missing for key in [("VQAv2", "VQA acc."), ("STAR", "acc."), ("AudioCaps", "SPICE"), ("AudioCaps", "SPIDEr"),
                                               ("TextVQA", "VQA acc.")]} == {
        ("VQAv2", "VQA acc."): "not measured: what was run is sample data in its file layout, shown below",
        ("STAR", "acc."): "not measured: asset star is not there",
        ("AudioCaps", "SPICE"): "not measured: no jars were given",
        ("AudioCaps", "SPIDEr"): "not measured: the benchmark was run without this figure",
        ("TextVQA", "VQA acc."): "not measured: not among this run's benchmarks",
    }  # fmt: skip
    assert all(bool(row.measured) != bool(row.missing) for row in rows.values())
    assert "asset &lt;star&gt; is not there" in page


def test_sample_data_is_never_shown_as_the_benchmark(page):
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
    assert "61.3 [51.3, 71.3]" in sections["paper"] and sections["paper"].count("61.3") == 1, "okvqa's row alone has a measurement"
    assert "No inputs were drawn for examples." in sections["benchmarks"]
    assert "okvqa_lmms" in sections["benchmarks"] and "vqav2" not in sections["benchmarks"]
    assert "NOT the benchmarks" in words_of(sections["layouts"]) and "okvqa" not in sections["layouts"]


def test_examples_are_of_drawn_samples_and_failures_come_first(scored):
    scores, folders = scored
    records = json.loads(json.dumps(scores.records["imu"]))
    for number, record in enumerate(records["caption"]):
        record["scores"]["right"]["class_accuracy"] = float(number % 2)
    for number, record in enumerate(records["qa"]):
        record["scores"]["right"]["accuracy"] = float(number % 2)
    chosen = [group for task in ("caption", "qa")
              for group in choose_examples(records[task], task, folders["imu"], modality="imu", per_group=3, seed=(0, 4))]  # fmt: skip
    assert [heading for heading, _ in chosen] == [
        "Captions that name another class, several or none", "Captions that name the right class", "Questions: label"]
    drawn = {path.stem for path in (folders["imu"] / "previews" / "imu").glob("*.png")}
    assert all(record["key"] in drawn for _, shown in chosen for record in shown) and len(drawn) == 12
    assert [r["scores"]["right"]["class_accuracy"] for r in chosen[0][1]] == [0.0] * 3
    assert len({record["label"] for record in chosen[0][1]}) == 3
    assert [r["scores"]["right"]["accuracy"] for r in chosen[2][1]] == [0.0, 0.0, 1.0]
    assert choose_examples(records["qa"], "qa", folders["imu"], modality="imu", per_group=0, seed=(0, 4)) == []


def test_captions_without_labels_are_ranked(scored):
    scores, folders = scored
    records = [dict(r, scores={"right": {"cider_d": float(i % 5), "nll": 1.0}}) for i, r in enumerate(scores.records["image"]["caption"])]
    groups = choose_examples(records, "caption", folders["image"], modality="image", per_group=4, seed=(0, 4))
    assert [heading for heading, _ in groups] == ["Captions: lowest CIDEr-D", "Captions: random", "Captions: highest CIDEr-D"]
    low, _, high = ([record["scores"]["right"]["cider_d"] for record in shown] for _, shown in groups)
    assert low == sorted(low) and high == sorted(high, reverse=True) and low[0] < high[0]


def test_examples_of_benchmarks_are_the_lowest_and_the_highest(inputs):
    _, _, bench = inputs
    drawn = [(bench, {"id": str(i), "modality": "image", "key": "k", "question": None, "references": ["x"], "prediction": {"right": str(i)}})
             for i in range(5)]  # fmt: skip
    groups = benchmark_examples(drawn, {str(i): {"cider_d": float(i)} for i in range(4)}, "cider_d", Media(10**6), per_group=2)
    said = {group.heading: [line.texts for card in group.cards for line in card.lines if line.term == "Answer"] for group in groups}
    assert said == {"Those that score lowest": [["0"], ["1"]], "Those that score highest": [["3"], ["2"]]}
    assert all(card.media[0].picture.startswith("data:image/png") for group in groups for card in group.cards)
    same = benchmark_examples(drawn, {str(i): {"accuracy": 1.0} for i in range(5)}, "accuracy", Media(10**6), per_group=2)
    assert [group.heading for group in same] == ["Those that score lowest"], "nothing is shown twice"
    assert benchmark_examples(drawn, {}, "accuracy", Media(0), per_group=2) == []


def test_what_the_model_and_the_data_say_cannot_inject_markup(scored, tmp_path):
    scores, folders = scored
    records = json.loads(json.dumps(scores.records))
    for record in records["image"]["caption"] + records["image"]["vqa"]:
        record["references"] = ["<script>alert(1)</script>"]
        record["prediction"] = dict.fromkeys(record["prediction"], '<img src=x onerror="alert(1)">')
    html = only(replace(scores, records=records), folders, "image", tmp_path / "figures")
    assert "<script" not in html and "<img src=x" not in html and "&lt;img src=x" in html and "onerror=&#34;" in html


def test_a_control_without_a_figure_is_a_dash(scored, tmp_path):
    scores, folders = scored
    controls = scores.results["imu"]["qa"]["controls"]
    html = only(scores, folders, "imu", tmp_path / "figures", qa={"controls": {**controls, "similar": {}}, "gap_similar": {"accuracy": figure(0.1)}})
    assert re.search(r"<td>–</td>", html)
    bare = {"accuracy": figure(0.5), "controls": {}, "by_kind": {"a kind without controls": {"accuracy": figure(0.4)}}}
    assert plot_task(bare, "no control")[:4] == b"\x89PNG"


def test_the_page_stays_small_however_many_kinds_there_are(scored, tmp_path):
    scores, folders = scored
    branch = next(iter(scores.results["image"]["vqa"]["by_kind"].values()))
    html = only(scores, folders, "image", tmp_path / "figures", vqa={"by_kind": {f"kind {number:04d}": branch for number in range(3000)}})
    assert "2960 more rows are in results/evaluate.json" in html and len(html) < 1_000_000


def test_confusions_count_every_labelled_sample(scored, tmp_path, monkeypatch):
    scores, folders = scored
    records = json.loads(json.dumps(scores.records["imu"]["caption"]))
    records[0]["named"]["right"] = []
    records[1]["named"]["right"] = ["bicep curl", "row"]
    columns, rows = confusion([*records, {**records[0], "label": None}])
    assert columns == ["bicep curl", "row", "side raise", "several", "none"]
    assert rows["bicep curl"] == {"bicep curl": 3, "none": 1} and rows["row"]["several"] == 1
    assert sum(sum(row.values()) for row in rows.values()) == 12
    monkeypatch.setattr(report, "MOST_LABELS", 2)
    assert "What the captions named" not in only(scores, folders, "imu", tmp_path / "figures")


def test_long_texts_are_cut_and_counted():
    assert clipped(["a"] * 7) == ["a"] * examples.MOST_TEXTS + ["… and 2 more"]
    assert clipped(["b" * 601]) == ["b" * 600 + "… (1 more characters)"]


def test_conditions_and_figures_come_in_one_order():
    found = in_order(dict.fromkeys(("blank", "shuffled_imu", "right", "similar", "shuffled")))
    assert found == ["right", "shuffled", "similar", "blank", "shuffled_imu"]
    branch = {**{name: figure(1) for name in ("zeta", "accuracy", "nll", "accuracy_imu")}, "prompt": "x"}
    assert list(metrics_of(branch)) == ["nll", "accuracy", "accuracy_imu", "zeta"]


HEAR = """async () => Promise.all([...document.querySelectorAll('audio')].map(async sound => {
  const data = await (await fetch(sound.src)).arrayBuffer();
  const heard = await new OfflineAudioContext(1, 24000, 24000).decodeAudioData(data);
  return [sound.error === null, sound.duration, Math.max(...heard.getChannelData(0)), sound.getAttribute('aria-label')];
}))"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(page, browser, tmp_path, width, scheme):
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    with opened(browser, width=width, color_scheme=scheme) as tab:
        wrong = watch(tab)
        tab.goto(file.as_uri())
        for summary in tab.locator("summary").all():
            summary.click()
        tab.wait_for_function("[...document.querySelectorAll('audio')].every(sound => sound.readyState > 0)")
        assert wrong == [] and look(tab) == {}
        assert tab.locator("img").count() > 15 and tab.locator("table").count() > 15
        wide = tab.locator(".scroll").evaluate_all("boxes => boxes.filter(box => box.scrollWidth > box.clientWidth).length")
        assert wide > 0 if width == 390 else wide == 0
        heard = tab.evaluate(HEAR)
        assert len(heard) > 2 and all(good and 1.9 < seconds < 2.2 and 0.1 < loudest < 0.4 and name for good, seconds, loudest, name in heard)
        tab.screenshot(path=str(tmp_path / f"{width}-{scheme}.png"), full_page=True)
        assert Image.open(tmp_path / f"{width}-{scheme}.png").width == width


@pytest.mark.slow
def test_the_page_is_whole_without_scripts(page, browser, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    with opened(browser, width=1280, java_script_enabled=False) as tab:
        tab.goto(file.as_uri())
        assert tab.locator("table").first.is_visible() and tab.locator("section").count() == 7
