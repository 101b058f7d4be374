"""Image rules: what a file must be to become a training image, and how it is brought to one form.

Every rule answers with a `Drop` that names its reason, or with the image. Sizes are read from the header before a pixel is decoded: the
sample sources hold PNGs of 623 megapixels in 3 MB.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anymal.curation.drops import Drop

if TYPE_CHECKING:
    from PIL import Image

RASTER_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})
SUFFIXES = RASTER_SUFFIXES | {".svg"}
MAX_SVG_BYTES = 4 * 2**20
RASTER_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_OUTSIDE = re.compile(rb"""(?:href\s*=\s*["']|url\(\s*["']?)\s*(?!#|data:image/(?:png|jpeg|gif);)[^"'\s)]""", re.IGNORECASE)
_LICENCE_ONLY = re.compile(rb"<metadata.*?</metadata>|<(?:cc|rdf):.*?>|xmlns:?\w*\s*=\s*[\"'][^\"']*[\"']|<a\s[^>]*>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class ImageLimits:
    """What an image file may be. Sides and areas in pixels, `max_bytes` in bytes."""

    max_bytes: int
    max_pixels: int
    min_side: int


def probe(data: bytes, suffix: str, limits: ImageLimits) -> Drop | tuple[int, int]:  # noqa: PLR0911 (one return per rule)
    """Check size, format and header of an image file without decoding it.

    Args:
        data: the whole file, or at least its header; `len(data)` is not used as the file's size.
        suffix: file name ending with its dot, lower case; decides only between SVG and raster formats.

    Returns:
        (width, height) in pixels, (0, 0) for SVG (it has no pixels yet), or the reason to leave the file out.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        return Drop("empty_file")
    if suffix == ".svg":
        return Drop("not_an_image", "no <svg> element") if b"<svg" not in data else (0, 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=RASTER_FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        return Drop("too_many_pixels", str(error))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        return Drop("not_an_image", type(error).__name__)
    if width * height > limits.max_pixels:
        return Drop("too_many_pixels", f"{width}×{height}")
    if min(width, height) < limits.min_side:
        return Drop("too_small", f"{width}×{height}")
    return width, height


def decode(data: bytes, suffix: str, limits: ImageLimits, side: int) -> Drop | Image.Image:
    """Decode an image to RGBA, upright (EXIF orientation applied), a transparent margin cut off, its longest side at most
    `side` pixels.

    SVG is drawn at that size; one that refers to anything outside itself, or declares entities, is refused.
    """
    from PIL import Image, ImageOps

    if len(data) > limits.max_bytes:
        return Drop("file_too_large", f"{len(data)} bytes")
    if suffix == ".svg":
        drawn = _draw_svg(data, side)
        if isinstance(drawn, Drop):
            return drawn
        data = drawn
    checked = probe(data, ".png" if suffix == ".svg" else suffix, limits)
    if isinstance(checked, Drop):
        return checked
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = Image.open(io.BytesIO(data), formats=RASTER_FORMATS)
            opened.draft("RGB", (side, side))
            opened.load()
            rgba = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return Drop("truncated_image", str(error)[:80])
    rgba = trim(rgba)
    if max(rgba.size) > side:
        # Premultiplied, so that the colour of transparent pixels does not bleed into the edges.
        scale = side / max(rgba.size)
        size = (max(1, round(rgba.width * scale)), max(1, round(rgba.height * scale)))
        rgba = rgba.convert("RGBa").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).convert("RGBA")
    return rgba


def _draw_svg(data: bytes, side: int) -> Drop | bytes:
    import resvg_py

    if len(data) > MAX_SVG_BYTES:
        return Drop("file_too_large", f"{len(data)} bytes of SVG")
    if b"<!ENTITY" in data and re.search(rb"<!ENTITY\s+[^>]*(?:SYSTEM|PUBLIC|%)", data, re.IGNORECASE):
        return Drop("unsafe_svg", "declares external entities")
    outside = _OUTSIDE.search(_LICENCE_ONLY.sub(b"", data))
    if outside:
        return Drop("unsafe_svg", "refers to something outside the file")
    try:
        text = data.decode("utf-8-sig")
        probe_png: bytes = resvg_py.svg_to_bytes(svg_string=text, width=16, skip_system_fonts=True, dpi=96.0)
        tall = int.from_bytes(probe_png[20:24], "big") > 16
        if int.from_bytes(probe_png[20:24], "big") > 16 * 16:
            return Drop("too_many_pixels", "a drawing more than 16 times as tall as wide")
        png: bytes = resvg_py.svg_to_bytes(svg_string=text, skip_system_fonts=True, dpi=96.0,
                                           width=None if tall else side, height=side if tall else None)
    except (ValueError, UnicodeDecodeError) as error:
        return Drop("not_an_image", str(error)[:80])
    return png


def trim(image: Image.Image) -> Image.Image:
    """Cut a transparent margin off an RGBA image; an image without one comes back as it is."""
    box = image.getchannel("A").point(lambda value: 255 if value > 8 else 0).getbbox()
    return image.crop(box) if box else image


def composite(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Lay an RGBA image on a plain background, giving RGB."""
    from PIL import Image

    plain = Image.new("RGBA", image.size, (*background, 255))
    plain.alpha_composite(image)
    return plain.convert("RGB")


def is_blank(image: Image.Image) -> bool:
    """Whether an RGB image shows nothing: its grey levels vary by less than 2 of 255 (standard deviation)."""
    import numpy as np

    return float(np.asarray(image.convert("L"), dtype=np.float32).std()) < 2.0


def cutout_fraction(image: Image.Image) -> float:
    """Share of an RGBA image that is transparent, 0 to 1: a drawing that was cut out has some, a photograph in a frame has none."""
    import numpy as np

    return float((np.asarray(image.getchannel("A")) < 128).mean())


def jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode RGB as baseline JPEG; the same pixels give the same bytes."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()
