"""Every error a user can cause or meet has `AnymalError` as its root and is shown as one sentence, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_ERROR = 2
EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL: progress was saved; the same command goes on from there."""


class AnymalError(Exception):
    """The message names the setting or file, its value, and the remedy."""


class ConfigError(AnymalError):
    """A knob is unknown, missing, or out of range."""


class DataError(AnymalError):
    """An input file is missing, malformed, or not what its manifest says."""


class AssetError(AnymalError):
    """An asset could not be fetched, or is not the one that the lock names."""


class BundleError(AnymalError):
    """A model bundle is incomplete, has extra files, or was changed after it was written."""


class TrackingError(AnymalError):
    """The MLflow server or store cannot be used."""


class Interrupted(AnymalError):
    """The stage was asked to stop (SIGTERM or SIGINT), saved its progress, and can be run again to go on."""


class NumericalError(AnymalError):
    """Training or generation produced a value that is not finite."""


def report(program: str, action: Callable[[], object]) -> None:
    """Run a program's action; errors the user can mend are printed as sentences, without a traceback, and become its exit status."""
    try:
        action()
    except Interrupted as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except AnymalError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
