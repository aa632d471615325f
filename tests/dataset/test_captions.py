"""Captions: sensible English from templates, a real Qwen2.5-VL of the smallest size, and a strict check of both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageColor

from refadgen.config import CaptionConfig
from refadgen.dataset.captions import (
    Ad,
    QwenCaptioner,
    TemplateCaptioner,
    check_captions,
    clean,
    make_captioner,
    name_colors,
)
from refadgen.errors import RowError

CONFIG = CaptionConfig()
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _ad(product: str = "#be1e1e", around: str = "#d2d2d2", **facts: Any) -> Ad:
    """A block of one colour on another."""
    image_u8 = np.full((120, 100, 3), ImageColor.getrgb(around), np.uint8)
    mask = np.zeros((120, 100), np.uint8)
    mask[40:90, 30:70] = 255
    image_u8[mask > 0] = ImageColor.getrgb(product)
    return Ad(**{"image_u8": image_u8, "mask": mask, **facts})


def _templates(ad: Ad, **settings: Any) -> list[str]:
    return TemplateCaptioner(CaptionConfig(**settings)).describe([ad])[0]


def _lab(*colors: str) -> np.ndarray:
    import cv2

    rgb = np.array([ImageColor.getrgb(color) for color in colors], np.float32)[None] / 255
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0])


# --- templates


def test_four_captions_of_category_colours_and_title() -> None:
    assert _templates(_ad(category="Home > Mugs")) == [
        "a red mug in front of a plain light grey background",
        "a photo of a mug with a plain light grey background",
        "a plain light grey background, a red mug in front of it",
        "a red product in front of a plain light grey background",
    ]
    assert _templates(_ad(category="Umbrellas", title=" Blunt\nMetro 2.0 | Free shipping "))[:2] == [
        "a red umbrella in front of a plain light grey background",
        "Blunt Metro 2.0 in front of a plain light grey background",
    ]


@pytest.mark.parametrize("category", [None, "Mugs", "shoes", "Wrist Watches > Red watches", "杯子"])
@pytest.mark.parametrize("title", [None, "", "Blunt Metro", "便携式雨伞", "word " * 300])
@pytest.mark.parametrize("mask", ["block", "none", "empty", "full"])
def test_any_ad_has_four_good_captions(category: str | None, title: str | None, mask: str) -> None:
    ad = _ad(category=category, title=title)
    masks = {"block": ad.mask, "none": None, "empty": np.zeros_like(ad.mask), "full": np.full_like(ad.mask, 255)}
    texts = _templates(Ad(image_u8=ad.image_u8, mask=masks[mask], category=category, title=title))
    assert len(texts) == 4
    assert check_captions(texts, CONFIG) == texts
    assert all("  " not in text and "None" not in text and "a a" not in text for text in texts)


def test_the_rows_own_captions_come_first_and_bad_ones_are_made_up_for() -> None:
    own = ("My own caption of it.", "只有中文的说明", "Mug", "**A second one of mine**", "my own caption of it")
    texts = _templates(_ad(category="mug", captions=own))
    assert texts[:2] == ["My own caption of it.", "A second one of mine"]
    assert texts[2:] == _templates(_ad(category="mug"))[:2]
    many = tuple(f"caption number {k}" for k in range(6))
    assert _templates(_ad(captions=many)) == list(many)


def test_the_same_ad_has_the_same_captions_in_any_company() -> None:
    ads = [_ad("#1f4fbf", category="mug"), _ad("#ffffff", "#204020", category="shoes"), _ad(category="mug")]
    captioner = make_captioner(CONFIG)
    assert captioner.describe(ads) == [captioner.describe([ad])[0] for ad in ads]
    assert captioner.describe([]) == []


@pytest.mark.parametrize(
    ("category", "words"),
    [
        ("Home > Travel Mugs", "a red travel mug"),
        ("Home &gt; Mugs > 4711", "a red mug"),
        ("Bottle w/ Lid", "a red bottle w/ lid"),
        ("CD/DVD Cases", "a red cd/dvd case"),
        ("TV/Audio", "a red product"),
        ("Clothing > T-Shirts/Tops", "a red product"),
        ("Umbrellas", "a red umbrella"),
        ("Shoes", "red shoes"),
        ("Apparel/Glasses", "red glasses"),
        ("Men's Watches", "a red men's watch"),
        ("Batteries", "a red battery"),
        ("Dress", "a red dress"),
        ("Blue Bottles", "a blue bottle"),  # the row says so
        ("Cups & Mugs", "a red product"),
        ("Health and Beauty", "a red product"),
        ("188", "a red product"),
        ("  ", "a red product"),
        ("чашка", "a red product"),
        (None, "a red product"),
    ],
)
def test_what_a_category_is_called(category: str | None, words: str) -> None:
    assert _templates(_ad(category=category))[0].startswith(f"{words} in front of")


@pytest.mark.parametrize(
    ("category", "words"),
    [("Umbrella", "an umbrella"), ("USB stick", "a usb stick"), ("Uniform", "a uniform"), ("Hourglass", "an hourglass"),
     ("Ice cream maker", "an ice cream maker"), ("Jeans", "jeans")],
)  # fmt: skip
def test_articles(category: str, words: str) -> None:
    assert _templates(_ad(category=category))[1] == f"a photo of {words} with a plain light grey background"


def test_colours_are_not_named_where_the_product_is_not_known() -> None:
    ad = _ad("#ffffff", "#1f4fbf", category="mug")
    texts = _templates(Ad(image_u8=ad.image_u8, category="mug"))
    assert texts[0] == "a mug in front of a blue background"
    assert not any("white" in text for text in texts)


def test_plain_is_only_what_is_plain() -> None:
    ad = _ad(category="mug")
    rng = np.random.default_rng(0)
    noise = np.where(ad.mask[..., None] > 0, 0, rng.normal(0, 2, ad.image_u8.shape))
    sensor = np.clip(ad.image_u8 + noise, 0, 255).astype(np.uint8)
    assert "plain light grey" in _templates(Ad(image_u8=sensor, mask=ad.mask, category="mug"))[0]
    halves = ad.image_u8.copy()
    halves[60:][ad.mask[60:] == 0] = ImageColor.getrgb("saddlebrown")
    assert _templates(Ad(image_u8=halves, mask=ad.mask, category="mug"))[0] == (
        "a red mug in front of a light grey and brown background"
    )


# --- colours


@pytest.mark.parametrize(
    ("words", "colors"),
    [
        ("white", "white snow #f4f4f2"),
        ("light grey", "gainsboro lightgray silver"),
        ("grey", "gray #909090"),
        ("dark grey", "dimgray #505050"),
        ("black", "black #101012 #202020"),
        ("red", "red crimson firebrick #c8202c"),
        ("dark red", "maroon darkred"),
        ("pink", "pink hotpink deeppink lightpink"),
        ("orange", "orange darkorange coral"),
        ("brown", "saddlebrown sienna #5c4033"),
        ("beige", "beige tan wheat linen bisque"),
        ("yellow", "yellow gold khaki"),
        ("green", "green lime forestgreen seagreen limegreen"),
        ("light green", "lightgreen"),
        ("dark green", "#0b3d20"),
        ("turquoise", "turquoise teal cyan lightseagreen"),
        ("blue", "blue royalblue steelblue dodgerblue"),
        ("light blue", "skyblue lightblue"),
        ("dark blue", "navy midnightblue darkblue"),
        ("purple", "purple darkviolet mediumorchid"),
        ("light purple", "plum thistle"),
        ("olive green", "olive"),
    ],
)
def test_names_of_colours(words: str, colors: str) -> None:
    assert {color: name_colors(_lab(color)) for color in colors.split()} == dict.fromkeys(colors.split(), words)


def test_two_colours_the_larger_first() -> None:
    assert name_colors(_lab(*["blue"] * 6, *["white"] * 4)) == "blue and white"
    assert name_colors(_lab(*["black"] * 4, *["white"] * 6)) == "white and black"
    assert name_colors(_lab(*["blue"] * 9, "white")) == "blue"


def test_light_and_shade_are_one_colour() -> None:
    assert name_colors(_lab(*["#f4f4f4"] * 6, *["#a0a0a0"] * 4)) == "white"
    assert name_colors(_lab(*["#d4202a"] * 6, *["#7d1518"] * 3)) == "red"
    assert name_colors(_lab(*["#e0e0e0", "#505050"] * 5)) == "grey"


def test_many_colours_are_multicoloured() -> None:
    assert name_colors(_lab("red", "blue", "green", "yellow", "white", "black", "pink", "brown")) == "multicoloured"


def test_a_colour_does_not_depend_on_the_size() -> None:
    lab = np.repeat(_lab("blue", "white", "blue"), 40_000, axis=0)
    assert name_colors(lab) == name_colors(lab[::1000]) == "blue and white"


# --- cleaning and checking


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A red mug\n on\ta table. ", "A red mug on a table."),
        ('"A red mug on a table."', "A red mug on a table."),
        ('"A red mug".', "A red mug"),
        ("“A red mug.”", "A red mug."),
        ("'A men's shoe on sand'", "A men's shoe on sand"),
        ('Here is the prompt: "A red mug."', "A red mug."),
        ("Sure! Here's a one-sentence description:\n\n**A red mug** on *a wet* table.", "A red mug on a wet table."),
        ("Sure, here is the caption: A red mug", "A red mug"),
        ("Certainly! A red mug on sand.", "A red mug on sand."),
        ("**Caption:** A red mug", "A red mug"),
        ('Prompt: Caption: "A red mug."', "A red mug."),
        ("Image description: A red mug", "A red mug"),
        ("Caption 1: A red mug", "A red mug"),
        ("- A red mug", "A red mug"),
        ("1. A red mug", "A red mug"),
        ("### Description\nA red mug", "A red mug"),
        ("### A red mug", "A red mug"),
        ("```\nA red mug\n```", "A red mug"),
        ("A red mug.\n\nLet me know if you need more!", "A red mug."),
        ("A [red mug](mug.html) on __sand__", "A red mug on sand"),
        ("A red\u200b mug\x00 on sand\ufeff", "A red mug on sand"),
        # What looks like it and is none of it.
        ('"A mug" and "a cup"', '"A mug" and "a cup"'),
        ('A mug that says "HELLO"', 'A mug that says "HELLO"'),
        ("Here is a mug on a table", "Here is a mug on a table"),
        ("Here is a mug: red, on a table", "Here is a mug: red, on a table"),
        ("Sure deodorant on a shelf", "Sure deodorant on a shelf"),
        ("A 3D_model_file, 5*3*2 cm", "A 3D_model_file, 5*3*2 cm"),
        ("2.5 litres of paint", "2.5 litres of paint"),
        ("", ""),
        ("---", ""),
        ("***", ""),
    ],
)  # fmt: skip
def test_clean(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize("text", ["*a " * 30_000, '"' * 90_000, "here is " * 12_000, "[" * 90_000, "caption:" * 9_000])
@pytest.mark.timeout(20)
def test_a_hostile_text_takes_no_time(text: str) -> None:
    clean(text)


def test_check_keeps_the_order_and_each_caption_once() -> None:
    texts = ["A red mug on sand.", "", "Mug", '"a red mug on sand"', "Another mug, on grass", "红色的杯子放在桌子上"]
    assert check_captions(texts, CONFIG) == ["A red mug on sand.", "Another mug, on grass"]


@pytest.mark.parametrize(
    ("texts", "reason", "setting"),
    [
        ([], "caption_empty", "caption.prompts"),
        (["", " \n", "?!", "12 34 56"], "caption_empty", "caption.model"),
        (["红色的杯子放在木桌上，背景是白墙", "mug 红色的杯子放在木桌上"], "caption_language", "caption.min_latin"),
        (["a mug on a table and " * 400], "caption_too_long", "caption.max_words"),
        (["A mug", "mug"], "caption_too_short", "caption.min_words"),
        (["", "A mug", "mug"], "caption_too_short", "caption.min_words"),
    ],
)
def test_why_no_caption_is_left(texts: list[str], reason: str, setting: str) -> None:
    with pytest.raises(RowError) as caught:
        check_captions(texts, CONFIG)
    assert (caught.value.status, caught.value.reason) == ("rejected", reason)
    assert setting in caught.value.detail
    assert len(caught.value.detail) < 250


def test_the_settings_of_the_check_reach_it() -> None:
    text = "ein roter Becher 杯"
    assert check_captions([text], CONFIG) == [text]
    for settings in ({"min_words": 5}, {"max_words": 3}, {"min_latin": 1.0}):
        with pytest.raises(RowError):
            check_captions([text], CaptionConfig(**settings))


# --- Qwen2.5-VL


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Qwen2.5-VL; its tokens are bytes, and its own settings sample."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2Tokenizer,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    folder = tmp_path_factory.mktemp("models") / "qwen"
    vocabulary = {token: index for index, token in enumerate([*sorted(ByteLevel.alphabet()), *SPECIAL])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=list(SPECIAL[1:]))
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=CHAT
    ).save_pretrained(folder)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "bos_token_id": None, "eos_token_id": vocabulary["<|im_end|>"],
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
            "fullatt_block_indexes": [1], "initializer_range": 0.5,
        },
        **{f"{name}_token_id": vocabulary[f"<|{token}|>"] for name, token in {
            "image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end",
        }.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    ends = [vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]]
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=5, repetition_penalty=1.05, eos_token_id=ends)
    model.save_pretrained(folder)
    return folder


def _qwen_config(folder: Path, **settings: Any) -> CaptionConfig:
    few = {"max_new_tokens": 10, "max_side_px": 84, "prompts": ("What is it?", "Describe the scene of this picture.")}
    return CaptionConfig(model=str(folder), device="cpu", **{**few, **settings})


def _pictures(count: int) -> list[Ad]:
    rng = np.random.default_rng(0)
    sizes = [(60, 90), (112, 56), (80, 80), (300, 200)]
    return [Ad(image_u8=rng.integers(0, 256, (*sizes[k % 4], 3)).astype(np.uint8)) for k in range(count)]


class _Recorded:
    """The captioner's real `generate`, with what went in and came out."""

    def __init__(self, captioner: QwenCaptioner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inputs: list[dict[str, torch.Tensor]] = []
        self.made: list[torch.Tensor] = []
        generate: Callable[..., torch.Tensor] = captioner._model.generate

        def recorded(**inputs: torch.Tensor) -> torch.Tensor:
            self.inputs.append(inputs)
            self.made.append(generate(**inputs))
            return self.made[-1]

        monkeypatch.setattr(captioner._model, "generate", recorded)


def test_an_answer_to_each_question_after_the_rows_own_captions(qwen: Path) -> None:
    captioner = make_captioner(_qwen_config(qwen))
    first, second = _pictures(2)
    texts = captioner.describe([first, Ad(image_u8=second.image_u8, captions=("My own.",))])
    assert [len(each) for each in texts] == [2, 3]
    assert texts[1][0] == "My own."
    assert all(isinstance(text, str) for each in texts for text in each)
    assert len({text for each in texts for text in each}) > 3  # question and picture make a difference
    assert captioner.describe([]) == []


def test_a_batch_of_n_equals_n_singles(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ads = _pictures(3)
    one, four = (QwenCaptioner(_qwen_config(qwen, batch_size=size)) for size in (1, 4))
    seen = _Recorded(four, monkeypatch)
    texts = four.describe(ads)
    assert [len(batch["input_ids"]) for batch in seen.inputs] == [4, 2]
    padding = seen.inputs[0]["attention_mask"] == 0
    assert padding.any()
    assert padding[:, 0].any() and not padding[:, -1].any()  # noqa: PT018
    assert texts == one.describe(ads) == [four.describe([ad])[0] for ad in ads] == four.describe(ads)


def test_prompts_pictures_and_limits_reach_the_model(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = QwenCaptioner(_qwen_config(qwen, max_new_tokens=8, max_side_px=140))
    seen = _Recorded(captioner, monkeypatch)
    captioner.describe(_pictures(4)[3:])
    texts = captioner._processor.batch_decode(seen.inputs[0]["input_ids"])
    for text, prompt in zip(texts, captioner._config.prompts, strict=True):
        assert text.endswith(f"{prompt}<|im_end|>\n<|im_start|>assistant\n")
    # 300×200 px to 140×93, in whole cells of 28×28: 5×3 of 2×2 patches.
    assert seen.inputs[0]["image_grid_thw"].tolist() == [[1, 10, 6]] * 2
    assert seen.made[0].shape[1] - seen.inputs[0]["input_ids"].shape[1] <= 8


def test_the_checkpoints_sampling_is_off(qwen: Path) -> None:
    settings = QwenCaptioner(_qwen_config(qwen))._model.generation_config
    assert not settings.do_sample
    assert settings.temperature is None
    assert settings.repetition_penalty == 1.05


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("A red mug. It stands on a wo", "A red mug."),
        ("A red mug on a wo", "A red mug on a wo"),
        ("A red mug. It stands<|im_end|><|endoftext|>", "A red mug. It stands"),
        ("A 2.5 l mug on a wo", "A 2.5 l mug on a wo"),
    ],
)
def test_an_answer_cut_off_by_the_limit(qwen: Path, answer: str, caption: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = QwenCaptioner(_qwen_config(qwen, prompts=("What?",)))
    tokens = captioner._processor.tokenizer(answer, return_tensors="pt")["input_ids"]
    monkeypatch.setattr(captioner._model, "generate", lambda **inputs: torch.cat([inputs["input_ids"], tokens], dim=1))
    assert captioner.describe(_pictures(1)) == [[caption]]


@pytest.mark.parametrize(("name", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_number_formats(qwen: Path, name: str, dtype: torch.dtype) -> None:
    captioner = QwenCaptioner(_qwen_config(qwen, dtype=name))
    assert captioner._model.dtype == dtype
    assert len(captioner.describe(_pictures(1))[0]) == 2


def _copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_what_is_missing_is_named(qwen: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def refusal(folder: Path) -> str:
        with pytest.raises(ValueError, match=r"^caption\.model=") as caught:
            QwenCaptioner(_qwen_config(folder))
        return str(caught.value)

    refusal(tmp_path / "none")
    no_weights = _copy(qwen, tmp_path / "no_weights")
    (no_weights / "model.safetensors").unlink()
    refusal(no_weights)
    (no_weights / "model.safetensors").write_bytes(b"no weights")
    refusal(no_weights)
    weights = load_file(qwen / "model.safetensors")
    gone = next(name for name in weights if "mlp" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, no_weights / "model.safetensors", {"format": "pt"})
    assert "1 weights are missing" in refusal(no_weights)
    no_template = _copy(qwen, tmp_path / "no_template")
    (no_template / "chat_template.jinja").unlink()
    assert "cannot be asked" in refusal(no_template)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "vit"}')
    assert "must be qwen2_5_vl" in refusal(other)


def test_a_gpu_that_is_not_there_is_an_error(qwen: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"caption\.device"):
        QwenCaptioner(CaptionConfig(model=str(qwen), device="cuda"))
    with pytest.raises(ValueError, match=r"caption\.device=auto: num_gpus asks for a GPU"):
        make_captioner(CaptionConfig(model=str(qwen)), gpu_expected=True)
