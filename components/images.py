"""The container images that the components run in, one per group of dependencies (the extras of pyproject.toml)."""

import os

from anymal import __version__

PREFIX = os.environ.get("ANYMAL_IMAGE_PREFIX", "")
"""Registry and folder to put before the names when compiling, with its closing slash; empty for images of the local engine."""

DATA = f"{PREFIX}anymal-data:{__version__}"
TRAIN = f"{PREFIX}anymal-train:{__version__}"
EVAL = f"{PREFIX}anymal-eval:{__version__}"
