"""Ask a model bundle about a file, or have the file described."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from anymal.errors import DataError

MODALITIES = ("image", "video", "audio", "imu")


@click.command("ask")
@click.argument("bundle", metavar="BUNDLE|models:/NAME@ALIAS")
@click.argument("question", required=False)
@click.option("--image", multiple=True, type=click.Path(path_type=Path), help="A picture; several times where the model takes several.")
@click.option("--video", multiple=True, type=click.Path(path_type=Path), help="A video clip.")
@click.option("--audio", multiple=True, type=click.Path(path_type=Path), help="A sound.")
@click.option("--imu", multiple=True, type=click.Path(path_type=Path), help="A motion recording.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Length of the answer; as registered if not given.")
def command(bundle: str, question: str | None, max_new_tokens: int | None, **media: tuple[Path, ...]) -> None:
    """Ask a model about a file: `anymal ask models:/anymal@candidate --image x.png "What is this?"`.

    Without a question the file is described. BUNDLE is a folder that the stage register wrote, or an address of the model registry.
    """
    files = {modality: media[modality] for modality in MODALITIES if media[modality]}
    for modality, paths in files.items():
        for path in paths:
            if not path.is_file():
                raise DataError(f"--{modality} {path}: no such file")
    if question is not None and not question.strip():
        raise DataError("the question is empty; leave it out to have the file described")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)

    from anymal.model.bundle import load_bundle, read_bundle
    from anymal.registry import resolve_bundle
    from anymal.serving.answer import Request, answer

    folder = resolve_bundle(bundle)
    settings = read_bundle(folder)["inference"]
    model = load_bundle(folder)
    limit = max_new_tokens or settings["max_new_tokens"]
    print(answer(model, [Request(question, files)], max_new_tokens=limit, batch_size=1)[0])
