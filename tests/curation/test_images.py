from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

from anymal.curation import images
from anymal.curation.images import Drop, ImageLimits
from anymal.media import likeness
from tests.curation.drawings import bomb, drawing, png

LIMITS = ImageLimits(max_bytes=10_000_000, max_pixels=40_000_000, min_side=16)


def reason(result: object) -> str | None:
    return result.reason if isinstance(result, Drop) else None


def test_each_bad_file_is_dropped_for_its_own_reason() -> None:
    good = png(drawing(0))
    assert reason(images.probe(b"", ".png", LIMITS)) == "empty_file"
    assert reason(images.probe(b"just some words, no picture", ".png", LIMITS)) == "not_an_image"
    assert reason(images.probe(png(drawing(0, (200, 60)).resize((200, 8))), ".png", LIMITS)) == "too_small"
    assert images.probe(good, ".png", LIMITS) == (120, 100)
    assert images.probe(good[:200], ".png", LIMITS) == (120, 100), "the header is enough"
    assert reason(images.decode(good[: len(good) // 2], ".png", LIMITS, 64)) == "truncated_image"
    assert reason(images.decode(b"x" * 11_000_000, ".png", LIMITS, 64)) == "file_too_large"


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    data = bomb(25_000)
    assert len(data) < 2_000_000
    started = time.perf_counter()
    assert reason(images.probe(data[:65536], ".png", LIMITS)) == "too_many_pixels"
    assert reason(images.decode(data, ".png", LIMITS, 64)) == "too_many_pixels"
    assert time.perf_counter() - started < 0.5, "decoding 625 megapixels takes seconds"


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (60, 30), "white")
    image.paste((255, 0, 0), (0, 0, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° to see it upright
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=exif, quality=95)
    upright = images.decode(stream.getvalue(), ".jpg", LIMITS, 64)
    assert isinstance(upright, Image.Image)
    assert upright.size == (30, 60)
    red = np.asarray(upright)[:30, :, 0].mean(), np.asarray(upright)[:30, :, 1].mean()
    assert red[0] > 200
    assert red[1] < 60, "the left half is on top now"


def test_transparency_lies_on_the_background_and_its_margin_is_cut() -> None:
    image = Image.new("RGBA", (100, 80), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (20, 20, 60, 50))
    decoded = images.decode(png(image), ".png", LIMITS, 320)
    assert isinstance(decoded, Image.Image)
    assert decoded.size == (40, 30)
    ring = Image.new("RGBA", (40, 40), (0, 0, 255, 255))
    ring.paste((255, 0, 0, 0), (10, 10, 30, 30))
    plain = images.composite(ring, (10, 200, 30))
    assert plain.getpixel((20, 20)) == (10, 200, 30), "the hidden red does not show"
    assert plain.getpixel((2, 2)) == (0, 0, 255)


def test_svg_is_drawn_at_size_and_outside_references_are_refused() -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="4000" height="2000"><rect width="4000" height="2000" fill="#00f"/>%s</svg>'
    drawn = images.decode(svg % b"", ".svg", LIMITS, 100)
    assert isinstance(drawn, Image.Image)
    assert drawn.size == (100, 50)
    for inside in (b'<image href="file:///etc/passwd"/>', b'<image xlink:href="https://example.org/a.png"/>', b'<rect fill="url(other.svg#a)"/>'):
        assert reason(images.decode(svg % inside, ".svg", LIMITS, 100)) == "unsafe_svg", inside
    assert reason(images.decode(b"<svg broken", ".svg", LIMITS, 100)) == "not_an_image"
    entity = b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + svg % b"<text>&x;</text>"
    assert reason(images.decode(entity, ".svg", LIMITS, 100)) == "unsafe_svg"


def test_blank_and_hashes() -> None:
    assert images.is_blank(Image.new("RGB", (40, 40), (7, 7, 7)))
    one, other = (images.composite(drawing(seed), (255, 255, 255)) for seed in (1, 2))
    assert not images.is_blank(one)
    assert likeness.pixel_hash(one) == likeness.pixel_hash(one.copy()) != likeness.pixel_hash(other)
    small = one.resize((90, 75))
    distance = bin(int(likeness.perceptual_hash(one), 16) ^ int(likeness.perceptual_hash(small), 16)).count("1")
    assert distance <= 4 < bin(int(likeness.perceptual_hash(one), 16) ^ int(likeness.perceptual_hash(other), 16)).count("1")
    assert likeness.miniature(one).shape == (768,)
    assert images.jpeg(one, 90) == images.jpeg(one.copy(), 90)


@pytest.mark.parametrize("orientation", [1, 3, 8])
def test_decoding_bounds_the_longest_side(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    images.composite(drawing(3, (600, 300)), (255, 255, 255)).save(stream, "JPEG", exif=exif)
    decoded = images.decode(stream.getvalue(), ".jpg", LIMITS, 128)
    assert isinstance(decoded, Image.Image)
    assert max(decoded.size) == 128
