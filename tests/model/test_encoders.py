"""Training encodes as sampling does: `Encoders` and `RefAdGenPipeline` on the same random networks."""

import numpy as np
import pytest
import torch
from tiny_models import make_pipeline, product, relative_difference

from refadgen.model import RefAdGenPipeline
from refadgen.model.encoders import (
    Encoders,
    clip_pixels,
    encode_clip_pixels,
    encode_images,
    pixels_from_u8,
    u8_from_pixels,
)

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4e-2}
"""In float32 the same arithmetic; frozen weights let PyTorch's attention pick another kernel (seen: 2e-7). In bfloat16
only training scales the latents in float32 (seen: 4e-3)."""
IMAGES = np.stack([product(seed)[0] for seed in (1, 2)])
MASKS = np.stack([product(seed)[1] for seed in (1, 2)])


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def both(request: pytest.FixtureRequest) -> tuple[Encoders, RefAdGenPipeline]:
    """Two sets of the same weights: preparing the encoders changes theirs in place."""
    sampling, training = make_pipeline(image_encoder=True), make_pipeline(image_encoder=True)
    sampling.to(dtype=request.param, silence_dtype_warnings=True)
    encoders = Encoders(
        vae=training.vae,
        tokenizer=training.tokenizer,
        text_encoder=training.text_encoder,
        image_encoder=training.image_encoder,
        feature_extractor=training.feature_extractor,
        device=torch.device("cpu"),
        dtype=request.param,
    )
    return encoders.prepared(), sampling


def test_latents_are_the_same(both: tuple[Encoders, RefAdGenPipeline]) -> None:
    encoders, pipeline = both
    trained_on, sampled_with = encoders.latents(IMAGES), pipeline.encode_image(IMAGES)
    assert trained_on.dtype == torch.float32
    assert sampled_with.dtype == encoders.dtype
    assert relative_difference(sampled_with.float(), trained_on) < TOLERANCES[encoders.dtype]


def test_a_frozen_pipeline_gives_training_s_latents_bit_for_bit(both: tuple[Encoders, RefAdGenPipeline]) -> None:
    """Frozen: PyTorch's attention picks another kernel for weights that could take a gradient (1.7e-7)."""
    encoders, _ = both
    vae = make_pipeline(image_encoder=False).vae.to(encoders.dtype)
    vae.requires_grad_(False)
    pixels = pixels_from_u8(torch.from_numpy(IMAGES))
    assert torch.equal(encode_images(vae, pixels, scaled_in=torch.float32), encoders.latents(IMAGES))


def test_latents_of_the_paper_s_size_are_exact() -> None:
    """Those of the pipeline, and of float64 but for float32's own rounding (seen: 2e-5).

    On channels-last tensors PyTorch's group norm on the CPU loses three digits: 2e-3 here.
    """
    images = np.stack([product(1, 512, 640)[0]])
    pipeline = make_pipeline(image_encoder=False)
    vae = make_pipeline(image_encoder=False).vae
    encoders = Encoders(vae, pipeline.tokenizer, None, None, None, torch.device("cpu"), torch.float32).prepared()
    latents = encoders.latents(images)
    assert relative_difference(pipeline.encode_image(images), latents) < TOLERANCES[torch.float32]
    exact = encode_images(vae.double(), pixels_from_u8(torch.from_numpy(images)), scaled_in=torch.float64)
    assert relative_difference(latents.double(), exact) < 1e-4


def test_text_states_are_the_same(both: tuple[Encoders, RefAdGenPipeline]) -> None:
    encoders, pipeline = both
    texts = ["a red cup", "", "on sand"]
    with torch.no_grad():
        assert torch.equal(encoders.text_states(encoders.token_ids(texts)), pipeline._text_states(texts).float())


def test_mask_latents_are_the_same(both: tuple[Encoders, RefAdGenPipeline]) -> None:
    """Also at the threshold: 127 is background, 128 is the product."""
    encoders, pipeline = both
    masks = np.concatenate([MASKS, np.full_like(MASKS[:1], 127), np.full_like(MASKS[:1], 128)])
    sampled_with = torch.cat([pipeline.mask_latents(mask) for mask in masks])
    assert torch.equal(encoders.mask_latents(masks), sampled_with.float())
    assert sampled_with.float().mean(dim=(1, 2, 3)).tolist()[2:] == [0.0, 1.0]


def test_image_states_are_the_same(both: tuple[Encoders, RefAdGenPipeline]) -> None:
    """The states, and the context tokens made of them: of the product and of the zero image that stands for none."""
    encoders, pipeline = both
    states = encoders.image_states(encoders.clip_pixels(IMAGES))
    assert torch.equal(
        states, encode_clip_pixels(pipeline.image_encoder, clip_pixels(pipeline.feature_extractor, IMAGES)).float()
    )
    zero = encoders.image_states(torch.zeros_like(encoders.clip_pixels(IMAGES)))
    with torch.no_grad():
        contexts = pipeline._image_contexts(list(IMAGES))
        for ours, theirs in zip((states, zero), contexts, strict=True):
            assert torch.equal(pipeline.image_projection(ours.to(encoders.dtype)), theirs)


def test_a_caption_is_cut_for_training_and_a_prompt_refused(both: tuple[Encoders, RefAdGenPipeline]) -> None:
    encoders, pipeline = both
    long = "cup " * 50
    assert encoders.token_ids([long]).shape == (1, pipeline.tokenizer.model_max_length)
    with pytest.raises(ValueError, match="the text encoder takes 24"):
        pipeline.encode_prompt(long)


def test_pixels_survive_the_way_there_and_back() -> None:
    every_value = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels = pixels_from_u8(torch.from_numpy(every_value))
    assert (pixels.min().item(), pixels.max().item()) == (-1.0, 1.0)
    assert (u8_from_pixels(pixels) == every_value).all()
    assert u8_from_pixels(torch.tensor([[[[-9.0]], [[0.0]], [[9.0]]]])).tolist() == [[[[0, 128, 255]]]]
