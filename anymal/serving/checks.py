"""The guard that a server puts before and behind its model, from a folder or the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anymal.safety.verdicts import GuardLimits

if TYPE_CHECKING:
    from anymal.safety.guard import Guard

LIMITS = GuardLimits(images=16)
"""A conversation's pictures, and the frames of its clips that are looked at."""


def load_checks(reference: str, *, text_in_pictures: bool) -> Guard:
    """The guard; whatever it lacks is refused now rather than with every request.

    Args:
        reference: a folder that train_safety wrote, or an address of the registry.
        text_in_pictures: whether text in pictures is read and checked.

    Raises:
        BundleError: if the guard is damaged, or lacks a classifier.
        TrackingError: if MLflow cannot be reached.
    """
    from anymal.registry import resolve_bundle
    from anymal.safety.guard import Guard
    from anymal.serving.guard import GUARD, read_guard

    folder = resolve_bundle(reference, GUARD)
    read_guard(folder)
    reader = None
    if text_in_pictures:
        from anymal.safety.ocr import PictureReader

        reader = PictureReader()
    return Guard.load(folder, reader=reader, limits=LIMITS)
