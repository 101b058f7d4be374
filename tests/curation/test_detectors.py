"""The real face detector on a real photograph, and the real text reader on drawn text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from anymal.curation.detectors import FaceBlur, TextReader
from tests.curation.drawings import drawing


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    skimage = pytest.importorskip("skimage")
    return Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB").resize((320, 320))


def test_a_face_is_found_and_nothing_else_is_blurred(portrait: Image.Image) -> None:
    faces = FaceBlur(0.5)
    boxes = faces.boxes(portrait)
    assert len(boxes) == 1
    left, top, right, bottom = boxes[0]
    assert 100 < left < 130
    assert 150 < right < 185
    blurred = faces.blur(portrait, boxes)
    before, after = np.asarray(portrait, dtype=int), np.asarray(blurred, dtype=int)
    outside = np.ones(before.shape[:2], dtype=bool)
    outside[top:bottom, left:right] = False
    assert (before == after)[outside].all()
    detail = [np.abs(np.diff(pixels[top:bottom, left:right], axis=1)).mean() for pixels in (before, after)]
    assert detail[1] < detail[0] / 2
    assert faces.boxes(blurred) == [], "what is blurred is no face any more"
    assert faces.boxes(drawing(0).convert("RGB")) == []


def test_text_is_read() -> None:
    image = Image.new("RGB", (300, 120), "white")
    ImageDraw.Draw(image).text((20, 30), "HOSPITAL", fill="black", font=ImageFont.load_default(48))
    assert any("HOSPITAL" in text.upper() for text in TextReader(320).read(image))
    assert TextReader(320).read(Image.new("RGB", (200, 200), "white")) == []
