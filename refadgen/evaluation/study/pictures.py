"""Pictures as raters see them: nothing but pixels tells who made one.

All are cropped to one shape, made smaller alike where they are large, and encoded anew in one way, so that neither size
nor format nor metadata (which says that a picture is generated) gives one away.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageOps

from refadgen.evaluation.measures.picture import on_white
from refadgen.evaluation.study.plan import Picture, Question, Study
from refadgen.evaluation.study.real_ads import PICTURE_ERRORS, open_picture

_KEPT = 256
"""Pictures in memory, about 100 KB each."""
_QUALITY = 92


class BlindPictures:
    """Reads pictures of a study as JPEG bytes."""

    def __init__(self, study: Study) -> None:
        self._longest_px = int(study.asked["settings"]["study"]["picture_px"])
        self._kept = functools.lru_cache(_KEPT)(self._read)

    def __call__(self, picture: Picture, question: Question) -> bytes:
        """A picture of a question. Raises: ValueError naming a file that is missing or no picture."""
        return self._kept(picture, (question.width_px, question.height_px))

    def check(self, study: Study) -> None:
        """Reads every picture once. Raises: ValueError naming the first that is missing or no picture."""
        for questions in study.questions.values():
            for question in questions:
                for picture in (*question.pictures, question.product_picture):
                    if picture is not None:
                        self._read(picture, (question.width_px, question.height_px))

    def _read(self, picture: Picture, size: tuple[int, int]) -> bytes:
        try:
            found = open_picture(picture.folder, picture.key, picture.row_group, picture.row)
            image = self._fitted(found, size)
        except PICTURE_ERRORS as error:
            raise ValueError(f"{picture.folder}: {picture.key}: cannot be shown: {error}") from error
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=_QUALITY, subsampling=0)
        return sink.getvalue()

    def _fitted(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if image.mode == "RGBA":  # a placed product; its alpha is the mask
            pixels = np.asarray(image)
            image = Image.fromarray(on_white(pixels[..., :3], pixels[..., 3] >= 128))
        else:
            size = _bounded(size, self._longest_px)
            image = image.convert("RGB")
            if image.size != size:
                image = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        # A new image has no metadata that Pillow might write.
        return Image.fromarray(np.asarray(image))


def _bounded(size: tuple[int, int], longest_px: int) -> tuple[int, int]:
    scale = min(1.0, longest_px / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
