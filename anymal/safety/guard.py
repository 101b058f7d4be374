"""The guard (paper section 4): prompts and pictures before the model, sentences before the reader. It fails closed and repeats nothing it has seen.

How texts are read is `anymal.safety.views`, what a picture hides `anymal.safety.metadata` and `anymal.safety.ocr`, what comes out
`anymal.safety.verdicts`.
"""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from PIL import Image

from anymal.errors import DataError
from anymal.media.image import open_image
from anymal.safety.metadata import metadata_text
from anymal.safety.normalize import readings
from anymal.safety.shown import Shown
from anymal.safety.verdicts import ALLOWED, NOT_CHECKED, Code, GuardLimits, Reason, Verdict, rejected
from anymal.safety.views import views
from anymal.safety.watch import Failed, Watch

if TYPE_CHECKING:
    import numpy as np

Model = TypeVar("Model")
Picture = bytes | Image.Image | Shown
"""The content of a file, a picture that was decoded, or either as `Guard.shown` or `Guard.open` gave it: then nothing is made of it twice."""


class TextModel(Protocol):
    """Says what texts are about."""

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Shape (texts, categories), 0 to 1."""
        ...


class Looking(Protocol):
    """A classifier of pictures, which looks before it judges: one look serves many texts, and every classifier with the same image network."""

    @property
    def backbone(self) -> object:
        """The image network."""
        ...

    def features(self, images: Sequence[Image.Image]) -> Iterable[Any]:
        """What the image network sees in each picture, for `judge`."""
        ...


class ImageModel(Looking, Protocol):
    """Says what pictures show."""

    def judge(self, seen: Sequence[Any]) -> np.ndarray:
        """Shape (pictures, categories), 0 to 1."""
        ...


class PairModel(Looking, Protocol):
    """Says what a picture and a text say together."""

    def judge(self, seen: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
        """Each picture with each text, shape (pictures × texts, categories), 0 to 1."""
        ...


class Models(Protocol):
    """The classifiers, None for one that is missing, and thresholds: use (`anymal.safety.models.USES`) -> category -> least probability of a hit."""

    @property
    def text(self) -> TextModel | None: ...
    @property
    def image(self) -> ImageModel | None: ...
    @property
    def pair(self) -> PairModel | None: ...
    @property
    def thresholds(self) -> Mapping[str, Mapping[str, float]]: ...
    @property
    def categories(self) -> tuple[str, ...]: ...


class Reader(Protocol):
    """Reads text in pictures."""

    def read(self, image: Image.Image) -> str:
        """The lines found."""
        ...


class Rejected(Exception):
    """A limit was passed or a file could not be read; holds the reason and nothing else."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.value)
        self.reason = Reason(code)


class Guard:
    """Checks what goes into a model and what comes out of it. May be used from several threads; one check runs at a time.

    Args:
        models: the classifiers. One that is needed and missing rejects.
        reader: of text in pictures; None leaves text in pictures unread (that in their files is still checked).
        limits: of sizes and time.
    """

    def __init__(self, models: Models, *, reader: Reader | None, limits: GuardLimits | None = None) -> None:
        self._models, self._reader = models, reader
        self.limits = limits or GuardLimits()
        self._watch = Watch(self.limits.seconds)

    @classmethod
    def load(cls, folder: Path, *, reader: Reader | None, limits: GuardLimits | None = None) -> Guard:
        """The guard that `train_safety` wrote.

        Raises:
            DataError: if the folder is incomplete or was changed.
        """
        from anymal.safety.models import load_guard

        return cls(load_guard(folder), reader=reader, limits=limits)

    def check_input(self, text: str, images: Sequence[Picture] = ()) -> Verdict:
        """Whether a prompt may go to the model: its text, each picture, text in pictures and files, and each picture with the text."""
        return self._watched("input", lambda: self._input(text, images), len(text), len(images))

    def check_output(self, sentence: str, images: Sequence[Picture] = (), *, before: str = "") -> Verdict:
        """Whether a sentence of an answer may be released.

        Args:
            images: those of the prompt, best as `shown` or `open` gives them, so that they are decoded and looked at once.
            before: the end of what was released already; it is looked at together with the sentence.
        """
        return self._watched("output", lambda: self._output(sentence, images, before), 0, len(images))

    async def acheck_input(self, text: str, images: Sequence[Picture] = ()) -> Verdict:
        """`check_input` without blocking the event loop."""
        return await asyncio.to_thread(self.check_input, text, images)

    async def acheck_output(self, sentence: str, images: Sequence[Picture] = (), *, before: str = "") -> Verdict:
        """`check_output` without blocking the event loop."""
        return await asyncio.to_thread(self.check_output, sentence, images, before=before)

    def shown(self, images: Sequence[Picture]) -> tuple[Shown, ...]:
        """The pictures of one request, for all of its checks: what the first one makes of them the others find. Nothing is read yet."""
        return tuple(image if isinstance(image, Shown) else Shown(image) for image in images)

    def open(self, images: Sequence[Picture]) -> tuple[Shown, ...]:
        """Pictures decoded within the limits.

        Raises:
            Rejected: with the reason, if one is beyond them or is no picture.
        """
        if len(images) > self.limits.images:
            raise Rejected(Code.TOO_MANY_IMAGES)
        shown = self.shown(images)
        for image in shown:
            self._decoded(image)
        return shown

    def _watched(self, name: str, check: Callable[[], Verdict], characters: int, images: int) -> Verdict:
        if characters > self.limits.characters:
            return Verdict((Reason(Code.TOO_LONG),))
        if images > self.limits.images:
            return Verdict((Reason(Code.TOO_MANY_IMAGES),))
        try:
            return self._watch.run(name, check)
        except Failed:
            return NOT_CHECKED

    def _input(self, text: str, images: Sequence[Picture]) -> Verdict:
        try:
            pictures = self.open(images)
            shown = views(text, self.limits.window)
            if not pictures:
                return rejected(self._texts(shown, "request", Code.TEXT))
            with ThreadPoolExecutor(1, "guard-reader") as aside:  # reading takes as long as all classifiers together
                reading = aside.submit(lambda: [self._hidden(picture) for picture in pictures])
                reasons = [*self._texts(shown, "request", Code.TEXT)]
                image = _present(self._models.image)
                reasons += self._hits(image.judge(self._looked(pictures, image)), len(pictures), "image", Code.IMAGE)
                self._looked(pictures, _present(self._models.pair))
                hidden = reading.result()
        except Rejected as error:
            return Verdict((error.reason,))
        found = [part for part in hidden if part]
        together = "\n".join([text, *found]) if found else ""
        beside = [view for part in [*found, "\n".join(found), together] for view in views(part, self.limits.window) if view not in shown]
        reasons += self._texts(tuple(dict.fromkeys(beside)), "request", Code.HIDDEN_TEXT)
        reasons += self._pairs(pictures, tuple(dict.fromkeys([*shown, *beside])), "pair")
        return rejected(reasons)

    def _output(self, sentence: str, images: Sequence[Picture], before: str) -> Verdict:
        shown = views(sentence, self.limits.window)
        if not shown:
            return ALLOWED
        if before.strip():
            shown = tuple(dict.fromkeys([*shown, *readings(before + sentence)]))
        reasons = [*self._texts(shown, "answer", Code.ANSWER)]
        if images:
            try:
                reasons += self._pairs(self.open(images), shown, "pair_answer")
            except Rejected as error:
                return Verdict((error.reason,))
        return rejected(reasons)

    def _decoded(self, image: Shown) -> Image.Image:
        """A picture within the limits, decoded when it is first wanted."""
        if image.picture is None:
            image.picture = self._opened(image.source)
        return image.picture

    def _opened(self, image: bytes | Image.Image) -> Image.Image:
        """A picture within the limits, which are read off its header."""
        if isinstance(image, Image.Image):
            if image.width * image.height > self.limits.image_pixels:
                raise Rejected(Code.TOO_LARGE)
            image.load()  # now, and not in two threads at once
            return image if image.mode == "RGB" else image.convert("RGB")
        if len(image) > self.limits.image_bytes:
            raise Rejected(Code.TOO_LARGE)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(image)) as header:
                    if header.width * header.height > self.limits.image_pixels:
                        raise Rejected(Code.TOO_LARGE)
            return open_image(io.BytesIO(image), "picture")
        except Image.DecompressionBombError:
            raise Rejected(Code.TOO_LARGE) from None
        except (OSError, SyntaxError, ValueError, DataError):
            raise Rejected(Code.UNREADABLE) from None

    def _hidden(self, image: Shown) -> str:
        """What a picture says in words: in its file and on its face."""
        said = self._reader.read(self._decoded(image)) if self._reader else ""
        if isinstance(image.source, Image.Image):
            return said
        try:
            return f"{said}\n{metadata_text(image.source, self.limits.metadata_characters)}".strip()
        except DataError:
            raise Rejected(Code.UNREADABLE) from None

    def _texts(self, texts: Sequence[str], use: str, code: Code) -> Iterator[Reason]:
        if texts:
            yield from self._hits(_present(self._models.text).probabilities(texts), len(texts), use, code)

    def _pairs(self, pictures: Sequence[Shown], texts: Sequence[str], use: str) -> Iterator[Reason]:
        """Each picture with each text."""
        if not pictures or not texts:
            return
        pair = _present(self._models.pair)
        yield from self._hits(pair.judge(self._looked(pictures, pair), texts), len(pictures) * len(texts), use, Code.IMAGE_TEXT)

    def _looked(self, pictures: Sequence[Shown], model: Looking) -> list[Any]:
        """What a classifier sees in each picture; one that its image network looked at in this request is not looked at again."""
        network = model.backbone
        new = [picture for picture in pictures if network not in picture.looked]
        if new:
            for picture, features in zip(new, model.features([self._decoded(picture) for picture in new]), strict=True):
                picture.looked[network] = features
        return [picture.looked[network] for picture in pictures]

    def _hits(self, probabilities: np.ndarray, rows: int, use: str, code: Code) -> Iterator[Reason]:
        """A reason for each category that is found in any row.

        Raises:
            Failed: if these are no probabilities.
        """
        import numpy as np

        from anymal.safety.thresholds import hits

        found = np.asarray(probabilities, dtype=np.float64)
        categories, thresholds = self._models.categories, self._models.thresholds.get(use)
        if not thresholds or found.shape != (rows, len(categories)) or not ((found >= 0) & (found <= 1)).all():
            raise Failed
        hit = hits(found, categories, thresholds)
        yield from (Reason(code, category) for place, category in enumerate(categories) if hit[:, place].any())


def _present(model: Model | None) -> Model:
    """A classifier that is there.

    Raises:
        Failed: if it is not.
    """
    if model is None:
        raise Failed
    return model
