"""Ask a model bundle about files, or have them described."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anymal.errors import DataError
from anymal.model.modalities import modalities

if TYPE_CHECKING:
    import numpy as np

    from anymal.model.anymal import AnyMAL

HELP = {"image": "A picture.", "video": "A video clip.", "audio": "A sound.", "imu": "A motion recording (.npy or CSV)."}


class Ask(click.Command):
    """Has one option per modality there is; the callback gets `media`, the (modality, path) pairs in the order of the command line."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._options: dict[str, click.Option] = {}

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options of the modalities are made when they are asked for, for a modality can be registered at any time."""
        options = [self._options.setdefault(modality, _option(modality)) for modality in modalities()]
        arguments = [parameter for parameter in super().get_params(ctx) if isinstance(parameter, click.Argument)]
        return [*arguments, *options, *(parameter for parameter in super().get_params(ctx) if parameter not in arguments)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as usual, then bring the media of all options into the order in which they were given."""
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        rest = super().parse_args(ctx, args)
        paths = {modality: iter(ctx.params.pop(modality) or ()) for modality in modalities()}
        ctx.params["media"] = [(str(option.name), next(paths[str(option.name)])) for option in order if option.name in paths]
        return rest


def _option(modality: str) -> click.Option:
    return click.Option([f"--{modality.replace('_', '-')}", modality], multiple=True, type=click.Path(path_type=Path), metavar="FILE",
                        help=f"{HELP.get(modality, f'A file of {modality}.')} May be repeated.")


@click.command("ask", cls=Ask)
@click.argument("bundle", metavar="BUNDLE|models:/NAME@ALIAS")
@click.argument("question", required=False)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Length of the answer; as registered if not given.")
@click.option("--show", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Write there what each encoder was fed, as pictures 1-image.png, 2-audio.png, …")
def command(bundle: str, question: str | None, max_new_tokens: int | None, show: Path | None, media: list[tuple[str, Path]]) -> None:
    """Ask a model about files: `anymal ask models:/anymal@candidate --image x.png --audio y.wav "What do these have in common?"`.

    Files can be of any modalities, in any number; the model reads them in the order given. A question may place them itself:
    "Is <audio> what <image> sounds like?". Without a question the files are described; without files the question alone is answered.
    BUNDLE is a folder that the stage register wrote, or an address of the model registry.
    """
    for modality, path in media:
        if not path.is_file():
            raise DataError(f"--{modality.replace('_', '-')} {path}: no such file; correct the path")
    if question is not None and not question.strip():
        raise DataError("the question is empty; leave it out to have the files described")
    pictures = _free_names(show, [modality for modality, _ in media])
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)

    from anymal.model.bundle import read_bundle
    from anymal.model.loading import load_bundle
    from anymal.registry import resolve_bundle
    from anymal.serving.answer import Request, answer

    folder = resolve_bundle(bundle)
    settings = read_bundle(folder)["inference"]
    model = load_bundle(folder)
    limit = max_new_tokens or settings["max_new_tokens"]
    fed: list[tuple[str, np.ndarray]] = []
    text = answer(model, [Request(question, media)], max_new_tokens=limit, batch_size=1, watch=lambda *medium: fed.append(medium))[0]
    if show is not None:
        _write_pictures(model, fed, show, pictures)
    print(text)


def _free_names(show: Path | None, given: Sequence[str]) -> list[str]:
    """The names of the pictures that `--show` writes; none may be taken."""
    if show is None:
        return []
    if show.exists() and not show.is_dir():
        raise DataError(f"--show {show}: is no folder; give a new or an empty one")
    if not given:
        raise DataError(f"--show {show}: there is nothing to show without a file; add --image or another, or leave --show out")
    names = [f"{number}-{modality}.png" for number, modality in enumerate(given, 1)]
    for name in names:
        if (show / name).exists():
            raise DataError(f"--show {show}: {name} is there already and is not overwritten; give a new or an empty folder")
    return names


def _write_pictures(model: AnyMAL, fed: Sequence[tuple[str, Any]], show: Path, names: Sequence[str]) -> None:
    """All pictures are drawn before the first is written, so that none is left alone."""
    drawn = [model.encoder(modality).picture(medium) for modality, medium in fed]
    try:
        show.mkdir(parents=True, exist_ok=True)
        for name, data in zip(names, drawn, strict=True):
            with (show / name).open("xb") as stream:
                stream.write(data)
    except OSError as error:
        raise DataError(f"--show {show}: cannot be written ({error.strerror}); give a folder that can be") from error
