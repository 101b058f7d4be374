"""Which modalities there are and which encoders read them: the one registration that a new modality needs. Loads no torch.

A package of one's own registers at import with `register_encoder`, or names its encoders as entry points of the group `anymal.encoders`
(`KIND = "package.module:Class"`); then every stage and command knows them.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from pydantic import AfterValidator

from anymal.errors import ConfigError

ENTRY_POINTS = "anymal.encoders"
NAME = re.compile(r"[a-z][a-z0-9_]*")

_ENCODERS: dict[str, tuple[str, str | Callable[..., Any]]] = {
    "efficientnet_lite": ("image", "anymal.model.encoders.image:EfficientNetLite"),
    "hf_vision": ("image", "anymal.model.encoders.image:HuggingFaceVision"),
    "video_frames": ("video", "anymal.model.encoders.video:VideoFrames"),
    "hf_video": ("video", "anymal.model.encoders.video:HuggingFaceVideo"),
    "log_mel": ("audio", "anymal.model.encoders.audio:LogMel"),
    "hf_clap": ("audio", "anymal.model.encoders.clap:HuggingFaceClap"),
    "imu2clip": ("imu", "anymal.model.encoders.imu:Imu2Clip"),
}
"""Encoder kind -> the modality it reads, and its class (or where it is)."""


def register_encoder(kind: str, modality: str, factory: str | Callable[..., Any]) -> None:
    """Make an encoder known, and with it its modality: its placeholder `<modality>` in prompts, its sections in profiles, its option of `ask`.

    Args:
        kind: name for profiles.
        modality: lower-case letters, digits and `_`; a new one comes to be by this.
        factory: see `anymal.model.encoders.Encoder`; the class, or "module:Class" to load it when it is used.

    Raises:
        ConfigError: if the name of the modality cannot be a placeholder.
    """
    if not NAME.fullmatch(modality):
        raise ConfigError(f"modality {modality!r}: must be lower-case letters, digits and '_', for prompts name it as <{modality}>")
    _ENCODERS[kind] = (modality, factory)


@functools.cache
def _plugged() -> tuple[EntryPoint, ...]:
    """Entry points of installed packages; what is installed does not change while a process runs, and looking takes milliseconds."""
    return tuple(entry_points(group=ENTRY_POINTS))


def _known() -> dict[str, tuple[str, str | Callable[..., Any]]]:
    found = dict(_ENCODERS)
    for point in _plugged():
        if point.name not in found:
            encoder = point.load()
            register_encoder(point.name, encoder.modality, encoder)
            found[point.name] = _ENCODERS[point.name]
    return found


def modalities() -> tuple[str, ...]:
    """All modalities, in the order of their registration."""
    return tuple(dict.fromkeys(modality for modality, _ in _known().values()))


def encoder_kinds(modality: str | None = None) -> tuple[str, ...]:
    """The kinds of encoders (of one modality)."""
    return tuple(kind for kind, (reads, _) in _known().items() if modality in (None, reads))


def modality_of(kind: str) -> str:
    """The modality that a kind of encoder reads.

    Raises:
        ConfigError: if the kind is unknown.
    """
    known = _known()
    if kind not in known:
        raise ConfigError(f"encoder kind = {kind}: unknown; known kinds: {', '.join(known)}")
    return known[kind][0]


def encoder_factory(kind: str) -> Callable[..., Any]:
    """The class of a kind of encoder, imported now.

    Raises:
        ConfigError: if the kind is unknown.
    """
    modality_of(kind)
    factory = _known()[kind][1]
    if isinstance(factory, str):
        module, _, name = factory.partition(":")
        factory = getattr(importlib.import_module(module), name)
    assert callable(factory)
    return factory


def placeholder() -> re.Pattern[str]:
    """What stands for a medium in a prompt: `<image>`, `<audio>`, …; group 1 is the modality."""
    return re.compile(f"<({'|'.join(map(re.escape, modalities()))})>")


def _check_modality(name: str) -> str:
    if name not in modalities():
        raise ValueError(f"unknown modality; known: {', '.join(modalities())}")
    return name


def _check_kind(kind: str) -> str:
    if kind not in encoder_kinds():
        raise ValueError(f"unknown kind of encoder; known: {', '.join(encoder_kinds())}")
    return kind


ModalityName = Annotated[str, AfterValidator(_check_modality)]
"""A knob that names a modality."""
EncoderKind = Annotated[str, AfterValidator(_check_kind)]
"""A knob that names a kind of encoder."""
