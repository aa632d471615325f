"""Captions of an ad photograph: answers of Qwen2.5-VL, or templates filled with category, title and colours.

A captioner turns `Ad`s into candidate captions. `check_captions` cleans the candidates and keeps those that a text
encoder can learn from. An ad's own captions come first in both. A constructor loads its weights once.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import cv2
import numpy as np
from PIL import Image

from refadgen.catalog.categories import ANY_PRODUCT, last_element
from refadgen.catalog.english import MASS, PAIRS, PLURAL_STUFF, article, singular
from refadgen.config import CaptionConfig
from refadgen.config.weights import require_all_weights
from refadgen.errors import RowError

if TYPE_CHECKING:
    import torch

NUM_CAPTIONS = 4
"""Captions per ad from templates; the paper's number."""


@dataclass(frozen=True, kw_only=True)
class Ad:
    """An ad photograph with the values of its row that a captioner reads."""

    image_u8: np.ndarray
    """uint8 H×W×3."""
    mask: np.ndarray | None = None
    """uint8 H×W, above 127 on the product; None: the product's place is unknown."""
    category: str | None = None
    """As written in the row, such as `Home > Mugs`; None: the row has none."""
    title: str | None = None
    """As written in the row; None: the row has none."""
    captions: tuple[str, ...] = ()
    """The row's own captions, unchecked."""


class Captioner(Protocol):
    """Describes ads."""

    def describe(self, ads: Sequence[Ad]) -> list[list[str]]:
        """Returns the candidate captions of each ad, its own first. They are not checked yet."""
        ...


def make_captioner(config: CaptionConfig, *, gpu_expected: bool = False) -> Captioner:
    """Returns Qwen2.5-VL where `caption.model` is set, else templates. Raises: ValueError as `QwenCaptioner`."""
    return TemplateCaptioner(config) if config.model is None else QwenCaptioner(config, gpu_expected=gpu_expected)


class QwenCaptioner:
    """Qwen2.5-VL through transformers. Decoding is greedy: the same questions in the same batches, the same answers."""

    def __init__(self, config: CaptionConfig, *, gpu_expected: bool = False) -> None:
        """gpu_expected: the cluster gave this process a GPU.

        Raises: ValueError naming `caption.model` where its weights are missing, incomplete or of another model type,
        and `caption.device` where that device does not exist.
        """
        from refadgen.config.devices import resolve_device, resolve_dtype

        assert config.model is not None
        self._config = config
        self._device = resolve_device(config.device, gpu_expected=gpu_expected, field="caption.device")
        self._processor, self._model = _load_qwen(config.model, resolve_dtype(config.dtype, self._device))
        self._model.to(self._device).eval()
        try:
            self._questions = [self._question(prompt) for prompt in config.prompts]
        except ValueError as error:  # the processor has no chat template
            raise ValueError(f"caption.model={config.model!r}: cannot be asked: {error}") from error
        # `_answer` cuts the questions off at one column: padding on the right would stand between question and answer.
        self._processor.tokenizer.padding_side = "left"
        self._use_greedy_decoding()

    def describe(self, ads: Sequence[Ad]) -> list[list[str]]:
        """Returns for each ad its own captions, then one answer to each of `caption.prompts`."""
        asked = [(picture, text) for picture in map(self._picture, ads) for text in self._questions]
        size, num = self._config.batch_size, len(self._questions)
        answers = [text for first in range(0, len(asked), size) for text in self._answer(asked[first : first + size])]
        return [[*ad.captions, *answers[num * k : num * (k + 1)]] for k, ad in enumerate(ads)]

    def _answer(self, asked: Sequence[tuple[Image.Image, str]]) -> list[str]:
        """Returns one answer per question, without special tokens.

        An answer that reached `caption.max_new_tokens` is cut after its last full sentence.
        """
        import torch

        pictures, texts = zip(*asked, strict=True)
        inputs = self._processor(text=list(texts), images=list(pictures), padding=True, return_tensors="pt")
        inputs = inputs.to(self._device)
        with torch.inference_mode():
            # `generate` gives the questions in front of the answers.
            tokens = self._model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        ends = torch.isin(tokens, torch.tensor(self._end_tokens, device=tokens.device)).any(dim=1).tolist()
        answers = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [text if ended else _full_sentences(text) for text, ended in zip(answers, ends, strict=True)]

    def _picture(self, ad: Ad) -> Image.Image:
        picture = Image.fromarray(ad.image_u8)
        # The model's tokens, and with them its time and memory, grow with the picture's area.
        picture.thumbnail((self._config.max_side_px, self._config.max_side_px), Image.Resampling.LANCZOS)
        return picture

    def _question(self, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _use_greedy_decoding(self) -> None:
        """Replaces the sampling settings of the checkpoint. Its repetition penalty stays."""
        settings, tokenizer = self._model.generation_config, self._processor.tokenizer
        settings.update(do_sample=False, num_beams=1, max_new_tokens=self._config.max_new_tokens)
        # Left as they are, transformers would warn of each of these in every batch.
        settings.update(temperature=None, top_k=None, top_p=None, max_length=None)
        if settings.eos_token_id is None:
            settings.eos_token_id = tokenizer.eos_token_id
        if settings.pad_token_id is None:
            settings.pad_token_id = tokenizer.pad_token_id
        ends = settings.eos_token_id
        self._end_tokens: list[int] = list(ends) if isinstance(ends, list | tuple) else [ends]


def _load_qwen(address: str, dtype: "torch.dtype") -> tuple[Any, Any]:
    """Loads processor and model from a folder or hub id. Raises: ValueError, also where a single weight is missing."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration

    field = f"caption.model={address!r}"
    try:
        kind = AutoConfig.from_pretrained(address).model_type
        if kind != "qwen2_5_vl":
            raise ValueError(f"is a {kind} model, must be qwen2_5_vl (Qwen2.5-VL)")
        processor = AutoProcessor.from_pretrained(address)
        model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            address, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{field}: cannot be loaded: {error}") from error
    require_all_weights(field, report)
    return processor, model


def _full_sentences(text: str) -> str:
    """Cuts `text` after its last full sentence; returns it unchanged where no sentence ends."""
    found = re.match(r".*[.!?](?=\s|$)", text, re.DOTALL)
    return found[0] if found else text


class TemplateCaptioner:
    """Captions without a model. They hold only words that the row or its pixels support."""

    def __init__(self, config: CaptionConfig) -> None:
        self._config = config

    def describe(self, ads: Sequence[Ad]) -> list[list[str]]:
        """Returns at least four captions of each ad: its own that pass `check_captions`, then templates."""
        return [self._describe(ad) for ad in ads]

    def _describe(self, ad: Ad) -> list[str]:
        own, _ = _judged(ad.captions, self._config)
        return own + template_captions(ad, self._config.min_latin)[: max(0, NUM_CAPTIONS - len(own))]


def template_captions(ad: Ad, min_latin: float) -> list[str]:
    """Returns at least four different captions, such as "a red mug in front of a plain light grey background".

    A category or title is left out where the share of Latin letters in it is below `min_latin`, or below one half.
    """
    noun, title = _noun(ad.category, min_latin), _title(ad.title, min_latin)
    product, surroundings = _looks(ad)
    # A category that names a colour, such as "Blue Bottles", gets no second one.
    colored = noun if not product or _FAMILIES & set(noun.split()) else f"{product} {noun}"
    thing, anything = _with_article(colored), _with_article(f"{product} {ANY_PRODUCT}".strip())
    if surroundings is None:
        return _distinct([
            f"{thing} filling the picture",
            f"a photo of {title}" if title else "",
            f"a photo of {_with_article(noun)} filling the picture",
            f"an advertising photo of {thing} and nothing else",
            f"{anything} filling the picture",
            f"a photo of {anything}",
        ])  # fmt: skip
    place = _with_article(f"{surroundings} background")
    return _distinct([
        f"{thing} in front of {place}",
        f"{title} in front of {place}" if title else "",
        f"a photo of {_with_article(noun)} with {place}",
        f"{place}, {thing} in front of it",
        f"{anything} in front of {place}",
        f"an advertising photo of {thing}, {surroundings} background",
    ])  # fmt: skip


def _distinct(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, texts)))


_WITHOUT_ARTICLE = (
    MASS
    | PAIRS
    | PLURAL_STUFF
    | {"boots", "earbuds", "earrings", "glasses", "gloves", "heels", "sandals", "shoes", "slippers", "sneakers"}
    | {"socks", "stockings", "trainers"}
)
"""Nouns that stand for themselves: stuff, and things that come in pairs."""


def _noun(category: str | None, min_latin: float) -> str:
    """Returns the name of one such object: `Home > Travel Mugs` gives "travel mug"; "product" where it is not clear.

    A category of several kinds ("Cups & Mugs") does not tell which one the picture shows.
    """
    last = last_element(category) or ""
    words = "".join(letter for letter in last if letter.isprintable()).lower().split()
    kinds = re.search(r"[,;&+]|(?<!\bw)/\S*$|\b(and|or)\b", last.lower())
    if not words or len(words) > 5 or kinds or latin_share(last) < max(min_latin, 0.5):
        return ANY_PRODUCT
    *first, noun = words
    return " ".join([*first, noun if noun in _WITHOUT_ARTICLE else singular(noun)])


def _title(title: str | None, min_latin: float) -> str:
    """Returns the title up to the first bar, on one line, at most 12 words; empty where too few letters are Latin."""
    text = one_line((title or "").split("|")[0])
    text = " ".join(text.split()[:12]).rstrip(" ,;:.-–—")
    return text if latin_share(text) >= max(min_latin, 0.5) else ""


def _with_article(words: str) -> str:
    """`words` with "a" or "an", or as they are where they need none."""
    if words.split()[-1] in _WITHOUT_ARTICLE:
        return words
    return f"{article(words)} {words}"


def _looks(ad: Ad) -> tuple[str, str | None]:
    """Returns the colours of the product and of its surroundings in words.

    The product's are "" where its place is unknown. The surroundings are None where the product fills the picture.
    """
    lab = cv2.cvtColor(ad.image_u8.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    if ad.mask is None or not (ad.mask > 127).any():  # most of an unknown picture is background
        return "", name_colors(lab.reshape(-1, 3))
    product = ad.mask > 127
    around = lab[~product]
    if len(around) < 0.02 * product.size:
        return name_colors(lab[product]), None
    center = np.median(around, axis=0)
    plain = (np.linalg.norm(around - center, axis=1) < PLAIN_DISTANCE).mean() >= PLAIN_SHARE
    return name_colors(lab[product]), ("plain " if plain else "") + name_colors(around)


PLAIN_DISTANCE, PLAIN_SHARE = 12.0, 0.9
"""A background is plain where at least PLAIN_SHARE of it lies within PLAIN_DISTANCE (ΔE*ab) of its median colour."""

PALETTE = {
    "white": ("ffffff", "f1f1f1"),
    "light grey": ("d9d9d9", "c0c0c0"),
    "grey": ("a3a3a3", "828282"),
    "dark grey": ("636363", "484848"),
    "black": ("2a2a2a", "161616", "000000"),
    "red": ("d4202a", "ec3f36", "ff0000", "b51f24"),
    "dark red": ("7d1518", "570d0f", "8b0000"),
    "pink": ("f7b8c8", "ff8fb8", "ee5f9c", "e79a9a", "ff1493", "f4847a"),
    "orange": ("f58220", "ffa53d", "e8641b", "ff7f50"),
    "brown": ("6f4325", "8a5a34", "4a2c1a", "9b6b43", "b8703a"),
    "beige": ("ecdfc8", "d6bd98", "f3ead8", "c4ab87"),
    "yellow": ("ffe119", "f2c230", "ffff00", "fff176"),
    "olive green": ("7b7b22", "5a5a1a"),
    "green": ("2e9e3f", "4cc04c", "00ff00", "1f7a33", "7bbf2f"),
    "light green": ("a8dca0", "c8f0a0"),
    "dark green": ("14532d", "23402a"),
    "turquoise": ("1fb5ad", "57d3c7", "00ffff", "0f7f7f"),
    "blue": ("2061c8", "3a86ff", "0000ff", "1f3fd0", "5c86b5"),
    "light blue": ("9cc9ef", "c9e2f7", "87ceeb"),
    "dark blue": ("14275c", "0b1640", "00008b", "191970"),
    "purple": ("7b2fa8", "9a55c9", "800080", "ff00ff"),
    "light purple": ("c9a6e3", "dcc8f0"),
    "dark purple": ("3d1559", "4b0082"),
}
"""Names of colours, each with examples in sRGB."""


def _lab(hexes: Sequence[str]) -> np.ndarray:
    rgb = np.array([list(bytes.fromhex(each)) for each in hexes], np.float32)[None]
    return np.asarray(cv2.cvtColor(rgb / 255, cv2.COLOR_RGB2LAB)[0])


_NAMES = [name for name, examples in PALETTE.items() for _ in examples]
_EXAMPLES = _lab([each for examples in PALETTE.values() for each in examples])
_FAMILIES = {name.split()[-1] for name in PALETTE}


def name_colors(lab: np.ndarray) -> str:
    """Returns one or two colours in words, the larger first, such as "light grey" or "blue and white".

    "multicoloured" where no colour has a share of 35 %. lab: float32 N×3, N at least 1, CIE Lab. A pixel has the name
    of the nearest example in PALETTE.
    """
    # Every n-th of at most 4096 pixels: shares are compared with round limits, and the distances take N × 60 floats.
    lab = lab[:: -(-len(lab) // 4096)]
    nearest = np.linalg.norm(lab[:, None] - _EXAMPLES[None], axis=2).argmin(axis=1)
    names = np.array(_NAMES)[nearest]
    families = np.array([name.split()[-1] for name in _NAMES])[nearest]
    ranked = Counter(families.tolist()).most_common(2)
    first = ranked[0][0]
    if ranked[0][1] < 0.35 * len(lab):
        return "multicoloured"
    colors = [_shade(names[families == first])]
    if len(ranked) > 1 and ranked[1][1] >= 0.25 * len(lab):
        second = ranked[1][0]
        light, *hue = np.abs(lab[families == first].mean(axis=0) - lab[families == second].mean(axis=0))
        if light > 50 or np.hypot(*hue) > 30:  # nearer ones are one colour in light and in shade
            colors.append(_shade(names[families == second]))
    return " and ".join(colors)


def _shade(names: np.ndarray) -> str:
    """Returns the most frequent name, or its family's ("grey") where light and dark shades are about equally many."""
    (name, count), *others = Counter(names.tolist()).most_common(2)
    return str(name) if not others or count > 1.5 * others[0][1] else str(name).split()[-1]


def check_captions(texts: Sequence[str], config: CaptionConfig) -> list[str]:
    """Returns the usable captions in their order, cleaned (see `clean`), without duplicates.

    Raises: RowError (rejected) where none is usable, for the most frequent reason: `caption_empty`, `caption_language`,
    `caption_too_long` or `caption_too_short`.
    """
    good, problems = _judged(texts, config)
    if good:
        return good
    if not problems:
        raise RowError("caption_empty", "there is no caption: none was asked for in caption.prompts")
    reason, count = Counter(reason for reason, _ in problems).most_common(1)[0]
    rules: dict[_Problem, str] = {
        "caption_empty": "say nothing (caption.model and caption.prompts, or the row's own)",
        "caption_language": f"have fewer than {config.min_latin:.0%} Latin letters (caption.min_latin)",
        "caption_too_long": f"are longer than {config.max_words} words (caption.max_words)",
        "caption_too_short": f"are shorter than {config.min_words} words (caption.min_words)",
    }
    example = next((text for why, text in problems if why == reason and text), "")
    shown = f", such as {example[:60] + ('…' if len(example) > 60 else '')!r}" if example else ""
    raise RowError(reason, f"no caption is usable: {count} of {len(texts)} {rules[reason]}{shown}")


_Problem = Literal["caption_empty", "caption_language", "caption_too_long", "caption_too_short"]


def _judged(texts: Sequence[str], config: CaptionConfig) -> tuple[list[str], list[tuple[_Problem, str]]]:
    """Returns the captions that pass, and (reason, caption) of the others."""
    good: dict[str, str] = {}
    problems: list[tuple[_Problem, str]] = []
    for text in map(clean, texts):
        words = len(text.split())
        if not any(letter.isalpha() for letter in text):
            problems.append(("caption_empty", text))
        elif latin_share(text) < config.min_latin:
            problems.append(("caption_language", text))
        elif words > config.max_words:
            problems.append(("caption_too_long", text))
        elif words < config.min_words:
            problems.append(("caption_too_short", text))
        else:
            # Captions that differ in case or in the final mark are the same caption.
            good.setdefault(text.casefold().rstrip(" .!"), text)
    return list(good.values()), problems


def latin_share(text: str) -> float:
    """Returns the share of Latin letters among all letters, 0 to 1; 0 for a text without letters."""
    letters = [letter for letter in text if letter.isalpha()]
    return sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters) / max(1, len(letters))


def one_line(text: str) -> str:
    """Returns `text` without control characters, each run of white space as one space."""
    return " ".join("".join(c for c in text if c.isspace() or unicodedata.category(c)[0] != "C").split())


# `clean` runs on texts of strangers: every repeat is bounded or unambiguous, so that no match takes quadratic time.
_CAPTION_NOUN = r"(?:captions?|descriptions?|prompts?|sentences?|answers?|responses?|summary)"
_PREFIXES = re.compile(
    rf"(?:(?:sure|certainly|of course|absolutely|okay)\s*(?:!|[,.:]?\s+(?=here\b)))"
    rf"|here(?:['’]s|\s+is|\s+are)\b[^:.!?]{{0,80}}\b{_CAPTION_NOUN}\b[^:.!?]{{0,80}}:"
    rf"|(?:\w+\s+)?{_CAPTION_NOUN}(?:\s+\d+)?\s*:",
    re.IGNORECASE,
)
_NOT_CAPTION = re.compile(
    r"\s*(?:#{1,6}\s|```|[-*_]{3,}\s*$|let me know\b|i hope th(?:is|at)\b|feel free to\b)", re.IGNORECASE
)
"""The beginning of a line that is about the caption, not part of it."""
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "`": "`"}


def clean(text: str) -> str:
    """Returns a caption on one line, without the wrapping that models and people add.

    Wrapping is markdown, quotes around the text, "Here is the prompt:". Words inside the caption stay: a quoted word,
    a product that is called Here.
    """
    lines = [re.sub(r"^\s*(?:[-*+•>]|\d{1,2}[.)])\s+", "", line) for line in text.splitlines()]
    body = [line for line in lines if line.strip() and not _NOT_CAPTION.match(line)]
    # A heading alone is the caption; above others it only names them.
    text = one_line(" ".join(body or [line.strip("#`-*_ ") for line in lines]))
    text = re.sub(r"!?\[([^\]\[]{0,300})\]\([^)\s]{0,500}\)", r"\1", text)
    text = re.sub(r"(?<!\w)(\*{1,3}|_{1,3}|~~|`)(?=\S)(.{1,300}?)(?<=\S)\1(?!\w)", r"\2", text)
    for _ in range(4):  # wrappers nest: `Prompt: Caption: "…"`
        before = text
        text = _unquoted(_PREFIXES.sub("", text, count=1) if _PREFIXES.match(text) else text).strip()
        if text == before:
            break
    return text


def _unquoted(text: str) -> str:
    """Removes one pair of quotes that encloses all of `text`."""
    text = text.strip()
    inner = text.removesuffix(".")
    if len(inner) > 1 and inner[-1] == _QUOTES.get(inner[0]):
        inside = re.sub(r"(?<=\w)['’](?=\w)", "", inner[1:-1])
        if not {inner[0], inner[-1]} & set(inside):
            return inner[1:-1]
    return text
