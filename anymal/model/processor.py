"""Text and media to tensors, with the conventions of Hugging Face's multimodal processors (the model for them: `anymal.model.hf`)."""

from __future__ import annotations

import base64
import binascii
import copy
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from anymal.data.features import TRAINED_ENCODER
from anymal.errors import ConfigError, DataError
from anymal.media.image import png
from anymal.model.bundle import BUNDLE, read_bundle
from anymal.model.checkpoint import read_checkpoint
from anymal.model.encoders import Encoder, load_encoder
from anymal.model.loading import resolve_asset
from anymal.model.modalities import placeholder
from anymal.model.prompt import MEDIUM, Medium, Prompt, tokenize
from anymal.model.saving import reads_alike, save_bundle

VALUES = "_values"
"""`image_values` and the like: what a modality's encoder is fed, (media, *shape)."""


class AnyMALProcessor:
    """Text and media to the tensors that `AnyMALForConditionalGeneration` takes.

    Args:
        tokenizer: of the LLM, with its chat template.
        encoder: modality -> its encoder, which reads and prepares media.
        metadata: modality -> what its checkpoint records.
        bundle: the folder it came from.

    Attributes:
        placeholder_ids: modality -> the id, beyond the tokenizer's vocabulary, that stands for each of a medium's tokens in `input_ids`.
    """

    def __init__(self, tokenizer: Any, encoder: Callable[[str], Encoder], metadata: Mapping[str, Mapping[str, Any]], bundle: Path) -> None:
        self.tokenizer, self._encoder, self._bundle = tokenizer, encoder, bundle
        self._tokens = token_counts(metadata)
        self._introductions = {modality: entry["introduction"] for modality, entry in metadata.items()}
        self.placeholder_ids = placeholder_ids(tokenizer, metadata)
        self._as_is = copy.copy(tokenizer)
        self._as_is.chat_template = "{{ messages[0]['content'] }}"

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> AnyMALProcessor:
        """The processor of a bundle. It loads the tokenizer now, and an encoder when it is needed; `model.processor` shares the model's.

        Raises:
            BundleError: if the bundle, or an asset it names, is incomplete, has extra files or was changed.
            AssetError: if the LLM or an encoder is not on this machine and cannot be fetched.
        """
        from transformers import AutoTokenizer

        folder = Path(folder)
        document = read_bundle(folder)
        assets = {name: resolve_asset(folder, name, record) for name, record in document["assets"].items()}
        described = {modality: read_checkpoint(folder / modality) for modality in document["encoders"]}
        loaded: dict[str, Encoder] = {}

        def encoder(modality: str) -> Encoder:
            if modality not in loaded:
                spec = described[modality]["encoder"]
                place = folder / modality / TRAINED_ENCODER if spec["asset"] is None else assets[spec["asset"]]
                loaded[modality] = load_encoder(spec["kind"], place, spec["settings"])
            return loaded[modality]

        tokenizer = AutoTokenizer.from_pretrained(assets[document["llm"]], local_files_only=True)
        return cls(tokenizer, encoder, described, folder)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the bundle, unless `folder` holds one with the same LLM, encoders and projectors already (the model's, saved before).

        Raises:
            BundleError: if `folder` holds anything else.
        """
        target = Path(folder)
        if (target / BUNDLE).is_file() and reads_alike(target, self._bundle):
            return
        save_bundle(self._bundle, target, {})

    def __call__(self, text: str | Sequence[str], *, padding: bool = True, return_tensors: str = "pt", **media: Any) -> Any:
        """Rendered prompts (see `apply_chat_template`) with placeholders such as `<image>`, and the media for them.

        Args:
            text: one prompt or several.
            media: `images`, `audios`, `videos`, `imus` (the modality, or its plural): one medium, the media of all texts in order, or one list
                per text. A medium is a path, a file's content as bytes or a binary file, a PIL picture, or an array (as a .npy file holds it).

        Returns:
            BatchFeature of `input_ids` and `attention_mask`, (texts, tokens), padded on the left, and `{modality}_values`,
            (media of this modality, *shape), in the order of the texts.

        Raises:
            DataError: if placeholders and media do not match, or a medium cannot be read or is of no modality that the model reads.
        """
        texts = [text] if isinstance(text, str) else list(text)
        given = {self._modality_of(name): value for name, value in media.items() if value is not None}
        return self._batch(texts, self._media_of_texts(texts, given), padding, return_tensors)

    def apply_chat_template(self, conversation: Sequence[Any], *, tokenize: bool = False, add_generation_prompt: bool = False,
                            return_dict: bool = False, padding: bool = True, return_tensors: str = "pt") -> Any:
        """A conversation, or a list of them, as a prompt, as ids or as the model's inputs.

        Each message has a `role`, and as `content` a text or a list of parts: `{"type": "text", "text": …}`, or `{"type": MODALITY}` with
        the medium as `path`, as `base64`, or under the modality's name (see `__call__`). Parts stand on lines of their own, media introduced as
        in training (`The sound is <audio>.`); next to white space in a text (`Is this `, the medium, ` a dog?`) they stand inside that text.

        Returns:
            Text (a list, if several) without `tokenize`; otherwise `input_ids`, or with `return_dict` what `__call__` gives.

        Raises:
            DataError: for what is listed at `__call__`, or a part of another form.
        """
        single = bool(conversation) and isinstance(conversation[0], Mapping)
        rendered = [self._render(messages, add_generation_prompt) for messages in ([conversation] if single else conversation)]
        texts, media = [text for text, _ in rendered], [found for _, found in rendered]
        if not tokenize:
            return texts[0] if single else texts
        batch = self._batch(texts, media, padding, return_tensors)
        return batch if return_dict else batch["input_ids"]

    def decode(self, ids: Any, **options: Any) -> str:
        """The tokenizer's text of token ids; the tokens of media have none."""
        first = min(self.placeholder_ids.values(), default=len(self.tokenizer))
        text: str = self.tokenizer.decode([int(token) for token in ids if 0 <= int(token) < first], **options)
        return text

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """`decode` of each sequence."""
        return [self.decode(ids, **options) for ids in sequences]

    def _modality_of(self, name: str) -> str:
        for modality in self._tokens:
            if name in (modality, f"{modality}s"):
                return modality
        raise DataError(f"the argument '{name}': this model takes text and {', '.join(f'{modality}s' for modality in self._tokens)}")

    def _check_reads(self, modality: str) -> None:
        if modality not in self._tokens:
            raise DataError(f"this model has no projector for '{modality}'; it reads {', '.join(self._tokens) or 'text only'}")

    @staticmethod
    def _media_of_texts(texts: Sequence[str], given: Mapping[str, Any]) -> list[list[tuple[str, Any, str]]]:
        """(modality, medium, name) of each text's media, in the order of its placeholders; what has no placeholder comes last."""
        wanted = [[found[1] for found in placeholder().finditer(text)] for text in texts]
        queues: dict[str, list[list[tuple[Any, str]]]] = {}
        for modality, value in given.items():
            items = list(value) if isinstance(value, list | tuple) else [value]
            if any(isinstance(item, list | tuple) for item in items):
                if len(items) != len(texts):
                    raise DataError(f"{modality}s: {len(items)} lists of media for {len(texts)} texts; give one list per text")
                nested = [list(item) if isinstance(item, list | tuple) else [item] for item in items]
            else:
                counts = [row.count(modality) for row in wanted]
                ends = [sum(counts[: i + 1]) for i in range(len(counts))]
                nested = [items[end - count : end] for end, count in zip(ends, counts, strict=True)]
                nested[-1] += items[ends[-1] :]
            numbers = iter(range(sum(map(len, nested))))
            queues[modality] = [[(item, f"{modality} {next(numbers)}") for item in items] for items in nested]
        media = []
        for i, row in enumerate(wanted):
            left = {modality: list(by_text[i]) for modality, by_text in queues.items()}
            ordered = [(modality, *left[modality].pop(0)) for modality in row if left.get(modality)]
            media.append([*ordered, *((modality, *item) for modality, items in left.items() for item in items)])
        return media

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> tuple[str, list[tuple[str, Any, str]]]:
        turns, media = [], []
        for number, message in enumerate(messages):
            content = message.get("content")
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if not isinstance(message.get("role"), str) or not isinstance(parts, Sequence):
                raise DataError(f"message {number}: needs a 'role', and a text or a list of parts as 'content'")
            pieces: list[tuple[str, str | None]] = []
            for place, part in enumerate(parts):
                name = f"message {number}, part {place}"
                modality = part.get("type") if isinstance(part, Mapping) else None
                if modality == "text" and isinstance(part.get("text"), str):
                    pieces.append((part["text"], None))
                elif isinstance(modality, str) and modality != "text":
                    self._check_reads(modality)
                    media.append((modality, _medium_of(part, modality, name), name))
                    pieces.append((f"<{modality}>", modality))
                else:
                    raise DataError(f"{name}: must be {{'type': 'text', 'text': …}} or {{'type': {' | '.join(self._tokens)}, 'path': …}}")
            turns.append({"role": message["role"], "content": _joined(pieces, self._introductions)})
        text: str = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
        return text, media

    def _batch(self, texts: Sequence[str], media: Sequence[Sequence[tuple[str, Any, str]]], padding: bool, return_tensors: str) -> Any:
        from transformers import BatchFeature

        if return_tensors != "pt":
            raise ConfigError(f"return_tensors = {return_tensors}: the model takes PyTorch tensors only; use 'pt'")
        rows = [self._ids(text, [modality for modality, _, _ in found]) for text, found in zip(texts, media, strict=True)]
        longest = max(map(len, rows), default=0)
        if not padding and any(len(row) != longest for row in rows):
            raise ConfigError("padding = False: the texts are of different lengths, so they make no tensor; use padding=True")
        fill = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        data = {"input_ids": torch.tensor([[fill] * (longest - len(row)) + row for row in rows], dtype=torch.long),
                "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)}
        arrays: dict[str, list[np.ndarray]] = {}
        for modality, medium, name in (item for found in media for item in found):
            source = _source(medium, name)
            arrays.setdefault(modality, []).append(self._encoder(modality).read(source, str(source) if isinstance(source, Path) else name))
        return BatchFeature({**data, **{f"{modality}{VALUES}": torch.from_numpy(np.stack(found)) for modality, found in arrays.items()}})

    def _ids(self, text: str, modalities: Sequence[str]) -> list[int]:
        """One prompt's ids, each medium as a run of its placeholder id."""
        for modality in modalities:
            self._check_reads(modality)
        nothing = torch.empty(0)
        prompt = Prompt([{"role": "user", "content": text}], [Medium(modality, nothing) for modality in modalities])
        first, *others = tokenize(prompt, self._as_is).texts
        ids = list(first)
        for modality, piece in zip(modalities, others, strict=True):
            ids += [self.placeholder_ids[modality]] * self._tokens[modality] + list(piece)
        return ids


def token_counts(metadata: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Modality -> number of tokens that a medium takes up in a prompt, from what the checkpoints record."""
    return {modality: entry["projector"]["arguments"]["tokens"] for modality, entry in metadata.items()}


def placeholder_ids(tokenizer: Any, modalities: Mapping[str, Any]) -> dict[str, int]:
    """Modality -> an id that no text has: those after the tokenizer's vocabulary, in the order of the modalities' names."""
    return {modality: len(tokenizer) + place for place, modality in enumerate(sorted(modalities))}


def _joined(parts: Sequence[tuple[str, str | None]], introductions: Mapping[str, str]) -> str:
    """One message of (text, None) and (placeholder, modality) parts: on lines of their own, media introduced; inside a text, as they stand."""
    text = ""
    for i, (piece, modality) in enumerate(parts):
        after = parts[i + 1][0][:1] if i + 1 < len(parts) else ""
        inside = text[-1:].isspace() or after.isspace()
        shown = piece if modality is None or inside else introductions[modality].replace(MEDIUM, piece)
        text += ("\n" if text and shown and not text[-1].isspace() and not shown[0].isspace() else "") + shown
    return text


def _medium_of(part: Mapping[str, Any], modality: str, name: str) -> Any:
    given = [key for key in ("path", "base64", modality) if part.get(key) is not None]
    if len(given) != 1:
        raise DataError(f"{name}: needs its {modality} as exactly one of 'path', 'base64' and '{modality}'; it has {', '.join(given) or 'none'}")
    if given[0] != "base64":
        return part[given[0]]
    try:
        return base64.b64decode(part["base64"], validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise DataError(f"{name}: its 'base64' cannot be decoded ({error}); give a file's content in base64") from error


def _source(medium: Any, name: str) -> Path | BinaryIO:
    """What an encoder can read, of the forms in which a medium can be given."""
    if isinstance(medium, str | Path):
        path = Path(medium)
        if not path.is_file():
            raise DataError(f"{path}: no such file; give the path of a file on this machine")
        return path
    if isinstance(medium, bytes):
        return io.BytesIO(medium)
    if isinstance(medium, Image.Image):
        return io.BytesIO(png(medium if medium.mode in {"1", "L", "LA", "P", "RGB", "RGBA"} else medium.convert("RGB")))
    if isinstance(medium, np.ndarray) and not medium.dtype.hasobject:
        stream = io.BytesIO()
        np.save(stream, medium, allow_pickle=False)
        stream.seek(0)
        return stream
    if callable(getattr(medium, "read", None)):
        file: BinaryIO = medium
        return file
    raise DataError(f"{name}: cannot be read from a {type(medium).__name__}; give a path, bytes, a binary file, a PIL picture or an array")
