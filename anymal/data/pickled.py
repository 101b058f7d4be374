"""Reads one pickled data set and writes plain arrays; run as a process of its own (`python -m anymal.data.pickled SOURCE TARGET`) at ingestion.

The data set is SPAR, shoulder exercises recorded by a smartwatch (Burns et al. 2018, Physiological Measurement 39, 075007), as the package seglearn
carries it (10 of its 20 subjects) and as its own repository does: a dictionary pickled into a .npy file. What its fields mean:
- `X`: series of shape (samples, 6), `X_labels`: ax ay az wx wy wz; 50 Hz, accelerometer in g, gyroscope in rad/s (README of the SPAR data set;
  the rate also in the docstring of `seglearn.datasets.load_watch`);
- `y`, `y_labels`: the exercise. README of SPAR: PEN pendulum, ABD abduction, FEL forward elevation, IR internal rotation with resistance band,
  ER external rotation with resistance band, TRAP lower trapezius row with resistance band, ROW bent over row with 3 lb dumbbell;
- `side`: 1 right, 0 left arm (docstring of `load_watch`); `subject`: number of the person.
"""

from __future__ import annotations

import io
import json
import pickle
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

RATE = 50
CHANNELS = ["ax", "ay", "az", "wx", "wy", "wz"]
SIDES = {0: "left", 1: "right"}
SERIES = "series.json"
MAX_MEMORY = 4 * 2**30
ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
"""Where numpy says that arrays are made, before and since its version 2."""


class PickledError(Exception):
    """The file is not what it should be; the message is a part of a sentence."""


class ArrayUnpickler(pickle.Unpickler):
    """Makes arrays, numbers, strings, lists and dictionaries, and refuses every other name before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name."""
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module in ARRAY_MODULES and name == "_reconstruct":
            return _empty_array
        if module in ARRAY_MODULES and name == "scalar":
            return _number
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise PickledError(f"names {module}.{name}, which no array needs")

    def persistent_load(self, pid: Any) -> Any:
        """Nothing outside the file is read."""
        raise PickledError("refers to something outside the file")


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """An array whose content its state brings. numpy always asks for shape (0,): any other would allocate what a file asks for."""
    if kind is not np.ndarray or shape != (0,):
        raise PickledError(f"makes an array of shape {shape}, as numpy never does")
    return np.ndarray((0,), "b")


def _number(dtype: np.dtype, data: bytes) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or len(data) != dtype.itemsize:
        raise PickledError("holds a scalar that is no number")
    return np.frombuffer(data, dtype=dtype)[0]


def _latin1(text: str, encoding: str) -> bytes:
    """How pickles of old protocols hold bytes."""
    if encoding != "latin1":
        raise PickledError(f"encodes text as {encoding}")
    return text.encode("latin-1")


def read_pickled(stream: io.BufferedIOBase) -> Any:
    """The object pickled in a .npy file.

    Raises:
        PickledError: if it is no such file, damaged, or names anything but what arrays need.
    """
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = header(stream)
        if not dtype.hasobject:
            raise PickledError("holds a plain array: it needs no conversion")
        loaded = ArrayUnpickler(stream).load()
    except PickledError:
        raise
    # A damaged pickle can raise anything; whatever it is, the file is refused.
    except Exception as error:
        raise PickledError(f"is damaged ({type(error).__name__}: {' '.join(str(error).split())[:100]})") from error
    if isinstance(loaded, np.ndarray) and loaded.shape == ():
        loaded = loaded.item()
    return loaded


def write_series(data: Any, target: Path) -> int:
    """Write each series of the data set as `NNN.npy`, (samples, 6) float32, and `series.json`: `rate` in Hz, `channels`, and per series its
    `file`, `subject`, `side` and `exercise`.

    Returns:
        How many series there are.

    Raises:
        PickledError: if the data set has other fields, or a series another form.
    """
    if not isinstance(data, dict):
        raise PickledError(f"holds a {type(data).__name__} where a dictionary should be")
    missing = [field for field in ("X", "X_labels", "y", "y_labels", "subject", "side") if field not in data]
    if missing:
        raise PickledError(f"has no field {', '.join(missing)}")
    if list(data["X_labels"]) != CHANNELS:
        raise PickledError(f"has the channels {list(data['X_labels'])}, not {CHANNELS}")
    lengths = {len(data[field]) for field in ("X", "y", "subject", "side")}
    if len(lengths) != 1:
        raise PickledError("has fields of different lengths")
    entries = []
    for index, (series, exercise, subject, side) in enumerate(zip(data["X"], data["y"], data["subject"], data["side"], strict=True)):
        if not isinstance(series, np.ndarray) or series.ndim != 2 or series.shape[1] != len(CHANNELS) or series.dtype.kind != "f":
            raise PickledError(f"has a series (number {index}) that is no array of floats with {len(CHANNELS)} columns")
        if int(side) not in SIDES or not 0 <= int(exercise) < len(data["y_labels"]):
            raise PickledError(f"has a series (number {index}) of side {side} and exercise {exercise}, which are not known")
        file = f"{index:03d}.npy"
        np.save(target / file, np.ascontiguousarray(series, dtype=np.float32), allow_pickle=False)
        entries.append({"file": file, "subject": int(subject), "side": SIDES[int(side)], "exercise": str(data["y_labels"][int(exercise)])})
    document = {"rate": RATE, "channels": CHANNELS, "series": entries}
    (target / SERIES).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return len(entries)


def main(source: str, target: str) -> int:
    """Convert one file; what is wrong with it goes to stderr as a part of a sentence."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    try:
        with Path(source).open("rb") as stream:
            data = read_pickled(stream)
        write_series(data, Path(target))
    except PickledError as error:
        print(error, file=sys.stderr)
        return 1
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        print(f"has fields of another kind ({' '.join(str(error).split())[:100]})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
