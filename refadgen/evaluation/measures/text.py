"""Character error rate of the product's own print: what OCR reads on the placed product, and on the ad inside M′."""

import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np

from refadgen.config.dataset import FilterConfig
from refadgen.config.evaluate import OcrConfig
from refadgen.dataset.content import TextFinder
from refadgen.evaluation.measures.picture import AdPicture, ImageU8, Values, product_crops

_SIDE_PX = 640
"""Shorter pictures are enlarged to it: small print is read badly at its own size."""


class CharacterErrors:
    """`character_error_rate`; None where hardly anything is read on the product itself."""

    measures = ("character_error_rate",)
    network = "RapidOCR (Apache-2.0), the models of its package"

    def __init__(self, config: OcrConfig) -> None:
        """Raises: ValueError naming `ocr.read` where the extra `ocr` is not installed."""
        try:
            self._finder = TextFinder(FilterConfig(min_text_score=config.min_score))
        except ValueError as error:
            raise ValueError(str(error).replace("filter.text", "ocr.read")) from error
        self._least = config.min_characters
        self._read: dict[bytes, str] = {}

    def __call__(self, pictures: Sequence[AdPicture]) -> Values:
        return {"character_error_rate": [self._rate(picture) for picture in pictures]}

    def _rate(self, picture: AdPicture) -> float | None:
        crops = product_crops(picture)
        if crops is None:
            return None
        key = crops[0].tobytes()
        if key not in self._read:  # images of one product come together
            self._read = {key: self._text(crops[0])}
        wanted = self._read[key]
        return error_rate(wanted, self._text(crops[1])) if len(wanted) >= self._least else None

    def _text(self, image_u8: ImageU8) -> str:
        factor = _SIDE_PX / max(image_u8.shape[:2])
        if factor > 1:
            image_u8 = np.asarray(cv2.resize(image_u8, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC))
        return letters("".join(text for _, text in self._finder.pieces(image_u8)))


def letters(text: str) -> str:
    """Letters and digits of a text, without case: OCR takes a speck for a dot."""
    return "".join(each for each in unicodedata.normalize("NFKC", text).casefold() if each.isalnum())


def error_rate(wanted: str, found: str) -> float:
    """Insertions, deletions and substitutions (Levenshtein) as a share of the wanted text's length; may exceed 1."""
    assert wanted
    row = list(range(len(found) + 1))
    for index, letter in enumerate(wanted, start=1):
        before, row[0] = row[0], index
        for place, other in enumerate(found, start=1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (letter != other))
    return row[-1] / len(wanted)
