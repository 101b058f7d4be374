"""SPICE (Anderson et al. 2016) by its authors' jar, where the user supplies what it needs: the figure compares scene graphs parsed from captions.

pycocoevalcap carries `spice-1.0.jar` but not the two jars of Stanford CoreNLP 3.6.0 that it needs, and no package registry carries them.
Besides, the jar writes its scores by Java's JavaScript engine, which Java has lacked since version 15. So the user gives a folder: a copy of
pycocoevalcap's `spice` with the CoreNLP jars in `lib/`, and either an older Java as `jre/bin/java` or the jars of Nashorn in `lib/`.
The jar's cache is not used: only it needs a native library and reflection that newer Java refuses.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anymal.errors import AnymalError, DataError

JAR = "spice-1.0.jar"
MAIN = "edu.anu.spice.SpiceScorer"
MEMORY = "-Xmx8G"
OLD_JAVA = "jre/bin/java"
ENGINE = "lib/nashorn-core-*.jar"
ABSENT = "needs the jars of Stanford CoreNLP 3.6.0, which no package registry carries; name a folder that has them with the setting spice"


class Spice:
    """Runs SPICE's jar once for many captions."""

    def __init__(self, folder: Path) -> None:
        """Take the folder that holds the jar; `open_spice` checks it."""
        self._folder = folder

    def command(self, asked: Path, answered: Path) -> list[str]:
        """The command line that reads the file `asked` and writes `answered`."""
        from anymal.evaluation.captions import java_path

        old = self._folder / OLD_JAVA
        classes = f"{self._folder / JAR}{os.pathsep}{self._folder / 'lib'}/*"
        return [str(old if old.is_file() else java_path()), MEMORY, "-cp", classes, MAIN, str(asked), "-out", str(answered), "-silent"]

    def scores(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """SPICE's F-score of each candidate against its references (tokenised), shape (samples,).

        Raises:
            AnymalError: if Java fails or leaves out a sample.
        """
        with tempfile.TemporaryDirectory() as folder:
            asked, answered = Path(folder) / "captions.json", Path(folder) / "scores.json"
            samples = zip(candidates, references, strict=True)
            document = [{"image_id": place, "test": said, "refs": list(truth)} for place, (said, truth) in enumerate(samples)]
            asked.write_text(json.dumps(document), encoding="utf-8")
            done = subprocess.run(self.command(asked, answered), capture_output=True, check=False, cwd=folder)
            if done.returncode != 0 or not answered.is_file():
                lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip() and not line.startswith("\t")]
                reason = lines[-1][:300] if lines else "it said nothing"
                raise AnymalError(f"spice {self._folder}: its Java process ended with status {done.returncode} ({reason}); check the jars, and that "
                                  "8 GB of memory are free")
            return parse_scores(answered.read_text(encoding="utf-8"), len(candidates))


def open_spice(folder: Path | None) -> Spice | None:
    """SPICE from the user's folder of jars; None where the setting is absent, and then SPICE and SPIDEr are (for the reason `ABSENT`).

    Raises:
        DataError: if the folder lacks the jar, a jar that it names as its own class path, or a Java that can run it.
    """
    if folder is None:
        return None
    jar = folder / JAR
    if not jar.is_file():
        raise DataError(f"spice {folder}: holds no {JAR}; give a copy of pycocoevalcap's folder spice with the CoreNLP jars in its lib/")
    missing = [name for name in _class_path(jar) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"spice {folder}: lacks {', '.join(missing)}; put the jars of Stanford CoreNLP 3.6.0 into its lib/, or leave the setting out")
    if not (folder / OLD_JAVA).is_file() and not list(folder.glob(ENGINE)):
        raise DataError(f"spice {folder}: lacks a JavaScript engine, which SPICE writes its scores by; put a Java of version 8 to 14 at {OLD_JAVA}, "
                        f"or Nashorn's jars into lib/ ({ENGINE})")
    return Spice(folder.resolve())


def _class_path(jar: Path) -> list[str]:
    """The jars that a jar's manifest names; lines of a manifest go on after a line break and one space."""
    try:
        with zipfile.ZipFile(jar) as archive:
            manifest = archive.read("META-INF/MANIFEST.MF").decode("utf-8")
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"spice {jar}: is no jar ({error}); copy it again from pycocoevalcap") from error
    lines = manifest.replace("\r\n", "\n").replace("\n ", "").split("\n")
    return next((line.removeprefix("Class-Path:").split() for line in lines if line.startswith("Class-Path:")), [])


def parse_scores(text: str, samples: int) -> np.ndarray:
    """What SPICE wrote, as F-scores in the order in which the captions were given, shape (samples,).

    Raises:
        AnymalError: if it is not SPICE's output, or not of these samples.
    """
    try:
        found = {int(entry["image_id"]): float(entry["scores"]["All"]["f"]) for entry in json.loads(text)}
    except (ValueError, KeyError, TypeError) as error:
        raise AnymalError(f"spice: its output cannot be read ({type(error).__name__}: {error}); check the jars") from error
    wrong = [place for place in range(samples) if not math.isfinite(found.get(place, math.nan))]
    if wrong or len(found) != samples:
        raise AnymalError(f"spice: gave {len(found)} scores for {samples} captions, none for number {wrong[0] if wrong else samples}; check the jars")
    return np.array([found[place] for place in range(samples)])
