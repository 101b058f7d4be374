"""Text in pictures, as the guard reads it: everything the model could make out, upright, on its side or faint."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageOps

SIDE = 960
"""Longest side in pixels at which text is looked for: several times what an image encoder is shown."""
LEAST_SIDE = 320
"""Smaller pictures are scaled up to this, so that letters of ten pixels are read."""
SURE = 0.5
"""Confidence from which a string counts."""


class PictureReader:
    """Reads text in pictures with PP-OCR (ONNX, from `rapidocr-onnxruntime`), on one thread."""

    def __init__(self) -> None:
        from rapidocr_onnxruntime import RapidOCR

        threads = {f"{part}intra_op_num_threads": 1 for part in ("", "det_", "cls_", "rec_")}
        self._reader: Any = RapidOCR(det_limit_side_len=SIDE, det_limit_type="max", inter_op_num_threads=1, **threads)

    def read(self, image: Image.Image) -> str:
        """The lines found, top to bottom; the empty string where there is none. Where nothing is seen, it is looked for with all contrasts raised."""
        longest = max(image.size)
        scale = SIDE / longest if longest > SIDE else max(1.0, LEAST_SIDE / longest)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        scaled = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        lines, on_side = self._lines(scaled)
        if not lines:
            lines, on_side = self._lines(ImageOps.equalize(scaled))
        if on_side:  # lines that stand close to each other get lost
            lines = max(lines, *(self._lines(scaled.rotate(angle, expand=True))[0] for angle in (90, 270)), key=len)
        return lines

    def _lines(self, image: Image.Image) -> tuple[str, bool]:
        """Lines, and whether any of them runs up or down."""
        import numpy as np

        result, _ = self._reader(np.asarray(image)[:, :, ::-1], use_cls=True)
        found = [(np.ptp(np.asarray(corners), axis=0), str(text).strip()) for corners, text, sure in result or [] if float(sure) >= SURE]
        return "\n".join(text for _, text in found), any(height > 2 * width for (width, height), _ in found)
