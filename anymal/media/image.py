"""Pictures: decoded within limits, upright, RGB."""

from __future__ import annotations

import io
import warnings
from typing import Any

from PIL import Image

from anymal.errors import DataError

MAX_PIXELS = 50_000_000
"""Pictures above this are refused from their header, before decoding (public files of 600 megapixels exist)."""


def open_image(source: Any, name: str) -> Image.Image:
    """Open, check and decode one picture: upright, RGB, transparency on white.

    Raises:
        DataError: naming the file, if it is empty, no picture, cut short, or larger than `MAX_PIXELS`.
    """
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{name}: {image.width} x {image.height} pixels, more than the {MAX_PIXELS} allowed; scale it down")
                upright = ImageOps.exif_transpose(image)
                if not upright.has_transparency_data:
                    return upright.convert("RGB")
                rgba = upright.convert("RGBA")
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: more pixels than the {MAX_PIXELS} allowed; scale it down") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: cannot be read as a picture ({error}); give a PNG, JPEG or WebP file") from error
    background = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(background, rgba).convert("RGB")


def png(image: Image.Image) -> bytes:
    """A picture as the content of a PNG file, the same bytes for the same pixels."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
