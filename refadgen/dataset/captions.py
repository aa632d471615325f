"""Captions of an ad photograph: asked of Qwen2.5-VL, or put together from category, colours and what the row holds.

A captioner turns `Ad`s into candidate captions; `check_captions` cleans them and keeps what a text encoder can learn
from. An ad's own captions come first in both. Weights load once, in a constructor.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image

from refadgen.config import CaptionConfig
from refadgen.config.weights import require_all_weights
from refadgen.errors import RowError
from refadgen.studio.scenes import ANY_PRODUCT

NUM_CAPTIONS = 4
"""Captions of an ad without a model; the paper's number."""


@dataclass(frozen=True, kw_only=True)
class Ad:
    """What a captioner is told of an ad photograph."""

    image_u8: np.ndarray
    """uint8 H×W×3."""
    mask: np.ndarray | None = None
    """uint8 H×W, above 127 on the product; None: unknown."""
    category: str | None = None
    """As the row has it, such as `Home > Mugs`."""
    title: str | None = None
    captions: tuple[str, ...] = ()
    """The row's own, unchecked."""


class Captioner(Protocol):
    """Describes ads."""

    def describe(self, ads: Sequence[Ad]) -> list[list[str]]:
        """The candidate captions of each ad, its own ones first; `check_captions` judges them."""
        ...


def make_captioner(config: CaptionConfig, *, gpu_expected: bool = False) -> Captioner:
    """Qwen2.5-VL where `caption.model` is set, else templates. Raises: ValueError as `QwenCaptioner`."""
    return TemplateCaptioner(config) if config.model is None else QwenCaptioner(config, gpu_expected=gpu_expected)


class QwenCaptioner:
    """Qwen2.5-VL through transformers, greedy: the same questions in the same batches have the same answers."""

    def __init__(self, config: CaptionConfig, *, gpu_expected: bool = False) -> None:
        """gpu_expected: the cluster gave this process a GPU.

        Raises: ValueError naming `caption.model` where weights are not there, not whole or of another model, and
        `caption.device` where there is no such device.
        """
        from refadgen.config.devices import resolve_device, resolve_dtype

        assert config.model is not None
        self._config = config
        self._device = resolve_device(config.device, gpu_expected=gpu_expected, field="caption.device")
        self._processor, self._model = _load_qwen(config.model, resolve_dtype(config.dtype, self._device))
        self._model.to(self._device).eval()
        try:
            self._questions = [self._question(prompt) for prompt in config.prompts]
        except ValueError as error:  # of a processor without a chat template
            raise ValueError(f"caption.model={config.model!r}: cannot be asked: {error}") from error
        self._processor.tokenizer.padding_side = "left"  # answers begin where the longest question ends
        self._be_greedy()

    def describe(self, ads: Sequence[Ad]) -> list[list[str]]:
        """The row's own captions, then an answer to each of `caption.prompts`, for each ad."""
        asked = [(picture, text) for picture in map(self._picture, ads) for text in self._questions]
        size, each = self._config.batch_size, len(self._questions)
        answers = [text for first in range(0, len(asked), size) for text in self._answer(asked[first : first + size])]
        return [[*ad.captions, *answers[each * k : each * (k + 1)]] for k, ad in enumerate(ads)]

    def _answer(self, asked: Sequence[tuple[Image.Image, str]]) -> list[str]:
        """One answer a question, without special tokens; one cut off by the limit ends with its last full sentence."""
        import torch

        pictures, texts = zip(*asked, strict=True)
        inputs = self._processor(text=list(texts), images=list(pictures), padding=True, return_tensors="pt")
        inputs = inputs.to(self._device)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        ends = torch.isin(tokens, torch.tensor(self._end_tokens, device=tokens.device)).any(dim=1).tolist()
        answers = self._processor.batch_decode(tokens, skip_special_tokens=True)
        return [text if ended else _full_sentences(text) for text, ended in zip(answers, ends, strict=True)]

    def _picture(self, ad: Ad) -> Image.Image:
        picture = Image.fromarray(ad.image_u8)
        picture.thumbnail((self._config.max_side_px, self._config.max_side_px), Image.Resampling.LANCZOS)
        return picture

    def _question(self, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _be_greedy(self) -> None:
        """Checkpoints bring sampling settings; what they say of repetition stays."""
        settings, tokenizer = self._model.generation_config, self._processor.tokenizer
        settings.update(do_sample=False, num_beams=1, max_new_tokens=self._config.max_new_tokens)
        settings.update(temperature=None, top_k=None, top_p=None, max_length=None)
        if settings.eos_token_id is None:
            settings.eos_token_id = tokenizer.eos_token_id
        if settings.pad_token_id is None:
            settings.pad_token_id = tokenizer.pad_token_id
        ends = settings.eos_token_id
        self._end_tokens: list[int] = list(ends) if isinstance(ends, list | tuple) else [ends]


def _load_qwen(address: str, dtype: Any) -> tuple[Any, Any]:
    """Processor and model from a folder or hub id, every weight of it present."""
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
    """`text` to its last full stop; all of it where there is none."""
    found = re.match(r".*[.!?](?=\s|$)", text, re.DOTALL)
    return found[0] if found else text


class TemplateCaptioner:
    """Captions without a model: nothing in them that a row or its pixels do not say."""

    def __init__(self, config: CaptionConfig) -> None:
        self._config = config

    def describe(self, ads: Sequence[Ad]) -> list[list[str]]:
        """Four captions of each ad: the row's own that pass `check_captions`, filled up with made ones."""
        return [self._describe(ad) for ad in ads]

    def _describe(self, ad: Ad) -> list[str]:
        own, _ = _judged(ad.captions, self._config)
        return own + template_captions(ad, self._config.min_latin)[: max(0, NUM_CAPTIONS - len(own))]


def template_captions(ad: Ad, min_latin: float) -> list[str]:
    """At least four captions, each another, such as "a red mug in front of a plain light grey background".

    Category and title are left out where fewer than `min_latin` of their letters are Latin.
    """
    noun, title = _noun(ad.category, min_latin), _title(ad.title, min_latin)
    product, surroundings = _looks(ad)
    colored = noun if not product or _FAMILIES & set(noun.split()) else f"{product} {noun}"
    thing, anything = _with_article(colored), _with_article(f"{product} {ANY_PRODUCT}".strip())
    if surroundings is None:  # all of the picture is product
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


_WITHOUT_ARTICLE = {
    "apparel", "clothes", "clothing", "cosmetics", "electronics", "food", "footwear", "furniture", "jewellery",
    "jewelry", "lingerie", "luggage", "makeup",
    "binoculars", "boots", "earbuds", "earphones", "earrings", "glasses", "gloves", "headphones", "heels", "jeans",
    "leggings", "pajamas", "pants", "pyjamas", "sandals", "scissors", "shoes", "shorts", "slippers", "sneakers",
    "socks", "stockings", "sunglasses", "tights", "trainers", "trousers",
}  # fmt: skip
"""Nouns that stand for themselves: stuff, and things that come in pairs."""


def _noun(category: str | None, min_latin: float) -> str:
    """What one such thing is called: `Home > Travel Mugs` is a "travel mug"; "product" where that is not clear.

    A category of several kinds ("Cups & Mugs") does not tell which one the picture shows.
    """
    last = re.split(r"[>»|/]", category or "")[-1]
    words = "".join(letter for letter in last if letter.isprintable()).lower().split()
    kinds = re.search(r"[,;&+]|\b(and|or)\b", last.lower())
    if not words or len(words) > 5 or kinds or latin_share(last) < max(min_latin, 0.5):
        return ANY_PRODUCT
    *first, noun = words
    return " ".join([*first, noun if noun in _WITHOUT_ARTICLE else _singular(noun)])


def _singular(word: str) -> str:
    if re.search(r"[^aeiou]ies$", word) and len(word) > 4:
        return f"{word[:-3]}y"
    if re.search(r"(ss|x|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and re.search(r"[^siu']s$", word) else word


def _title(title: str | None, min_latin: float) -> str:
    """The title on one line, at most 12 words, without what follows a bar; empty where it says nothing."""
    text = one_line((title or "").split("|")[0])
    text = " ".join(text.split()[:12]).rstrip(" ,;:.-–—")
    return text if latin_share(text) >= max(min_latin, 0.5) else ""


def _with_article(words: str) -> str:
    """`words` with "a" or "an", or as they are where they need none."""
    if words.split()[-1] in _WITHOUT_ARTICLE:
        return words
    vowel = re.match(r"(?!uni|us[abeu]|uk|ute|eu|ew|one\b)[aeiou]|hour|heir|honest", words)
    return f"{'an' if vowel else 'a'} {words}"


def _looks(ad: Ad) -> tuple[str, str | None]:
    """The product's colours, "" where unknown; those of what is around it, None where there is nothing around it."""
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
"""A plain background: this share of it lies within this distance (ΔE*ab) of its median."""

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
    """One or two colours in words, the larger first, such as "light grey" or "blue and white"; else "multicoloured".

    lab: float32 N×3, N at least 1, CIE Lab. Each pixel is its nearest example of PALETTE.
    """
    lab = lab[:: -(-len(lab) // 4096)]
    nearest = np.linalg.norm(lab[:, None] - _EXAMPLES[None], axis=2).argmin(axis=1)
    names = np.array(_NAMES)[nearest]
    families = np.array([name.split()[-1] for name in _NAMES])[nearest]
    ranked = Counter(families.tolist()).most_common(2)
    first = ranked[0][0]
    if ranked[0][1] < 0.35 * len(lab):
        return "multicoloured"
    said = [_shade(names[families == first])]
    if len(ranked) > 1 and ranked[1][1] >= 0.25 * len(lab):
        second = ranked[1][0]
        light, *hue = np.abs(lab[families == first].mean(axis=0) - lab[families == second].mean(axis=0))
        if light > 50 or np.hypot(*hue) > 30:  # nearer ones are one colour in light and shade
            said.append(_shade(names[families == second]))
    return " and ".join(said)


def _shade(names: np.ndarray) -> str:
    """The most frequent name; the family's own where dark and light are about as many."""
    (name, count), *others = Counter(names.tolist()).most_common(2)
    return str(name) if not others or count > 1.5 * others[0][1] else str(name).split()[-1]


def check_captions(texts: Sequence[str], config: CaptionConfig) -> list[str]:
    """The captions that are fit to learn from, cleaned (see `clean`), in their order, each once.

    Raises: RowError, rejected, for what most of them lack where none is left: `caption_empty`, `caption_language`,
    `caption_too_long`, `caption_too_short`.
    """
    good, problems = _judged(texts, config)
    if good:
        return good
    if not problems:
        raise RowError("caption_empty", "there is no caption: none was asked for in caption.prompts")
    reason, count = Counter(reason for reason, _ in problems).most_common(1)[0]
    rule = {
        "caption_empty": "say nothing (caption.model and caption.prompts, or the row's own)",
        "caption_language": f"have fewer than {config.min_latin:.0%} Latin letters (caption.min_latin)",
        "caption_too_long": f"are longer than {config.max_words} words (caption.max_words)",
        "caption_too_short": f"are shorter than {config.min_words} words (caption.min_words)",
    }[reason]
    example = next((text for why, text in problems if why == reason and text), "")
    shown = f", such as {example[:60] + ('…' if len(example) > 60 else '')!r}" if example else ""
    raise RowError(reason, f"no caption is usable: {count} of {len(texts)} {rule}{shown}")


def _judged(texts: Sequence[str], config: CaptionConfig) -> tuple[list[str], list[tuple[str, str]]]:
    """Captions that pass, and the others with their reason."""
    good: dict[str, str] = {}
    problems = []
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
            good.setdefault(text.casefold().rstrip(" .!"), text)
    return list(good.values()), problems


def latin_share(text: str) -> float:
    """Share of Latin letters among the letters, 0 to 1; 0 where there are none."""
    letters = [letter for letter in text if letter.isalpha()]
    return sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters) / max(1, len(letters))


def one_line(text: str) -> str:
    """Without control characters, each run of white space one space."""
    return " ".join("".join(c for c in text if c.isspace() or unicodedata.category(c)[0] != "C").split())


_WHAT = r"(?:captions?|descriptions?|prompts?|sentences?|answers?|responses?|summary)"
_PREFIXES = re.compile(
    rf"(?:(?:sure|certainly|of course|absolutely|okay)\s*(?:!|[,.:]?\s+(?=here\b)))"
    rf"|here(?:['’]s|\s+is|\s+are)\b[^:.!?]{{0,80}}\b{_WHAT}\b[^:.!?]{{0,80}}:"
    rf"|(?:\w+\s+)?{_WHAT}(?:\s+\d+)?\s*:",
    re.IGNORECASE,
)
_NOT_CAPTION = re.compile(
    r"\s*(?:#{1,6}\s|```|[-*_]{3,}\s*$|let me know\b|i hope th(?:is|at)\b|feel free to\b)", re.IGNORECASE
)
"""How lines begin that are about a caption, beside one."""
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "`": "`"}


def clean(text: str) -> str:
    """A caption on one line, without what models and people put around one: markdown, quotes, "Here is the prompt:".

    What stands inside stays: a quoted word, a product that is called Here.
    """
    lines = [re.sub(r"^\s*(?:[-*+•>]|\d{1,2}[.)])\s+", "", line) for line in text.splitlines()]
    body = [line for line in lines if line.strip() and not _NOT_CAPTION.match(line)]
    # A heading alone is the caption; above others it only names them.
    text = one_line(" ".join(body or [line.strip("#`-*_ ") for line in lines]))
    text = re.sub(r"!?\[([^\]\[]{0,300})\]\([^)\s]{0,500}\)", r"\1", text)
    text = re.sub(r"(?<!\w)(\*{1,3}|_{1,3}|~~|`)(?=\S)(.{1,300}?)(?<=\S)\1(?!\w)", r"\2", text)
    for _ in range(4):  # each may hide the next
        before = text
        text = _unquoted(_PREFIXES.sub("", text, count=1) if _PREFIXES.match(text) else text).strip()
        if text == before:
            break
    return text


def _unquoted(text: str) -> str:
    """`text` without a pair of quotes around all of it."""
    text = text.strip()
    inner = text.removesuffix(".")
    if len(inner) > 1 and inner[-1] == _QUOTES.get(inner[0]):
        inside = re.sub(r"(?<=\w)['’](?=\w)", "", inner[1:-1])
        if not {inner[0], inner[-1]} & set(inside):
            return inner[1:-1]
    return text
