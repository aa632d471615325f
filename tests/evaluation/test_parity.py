"""FID, CLIP-Score and LPIPS equal their reference implementations (torchmetrics) on the same random weights."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measure_cases import changes, pictures
from random_inception import random_inception

import refadgen
from refadgen.evaluation.measures.frechet import FeatureStatistics, frechet_distance
from refadgen.evaluation.measures.inception import InceptionFeatures
from refadgen.evaluation.measures.perceptual import Lpips, MatchedPatches, PerceptualDistance, matched_points, patch
from refadgen.evaluation.measures.transformers_features import ClipScore, DinoSimilarity

CPU = torch.device("cpu")
TOKENIZER = Path(refadgen.__file__).parent / "mini" / "weights" / "tokenizer"
SAME = 1e-5
"""Relative; float32 networks, whose batches may be cut otherwise."""


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random AlexNet as torchvision saves it, where torchvision looks for its own."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("torch") / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / "alexnet-owt-7be5be79.pth"
    torch.save(alexnet(weights=None).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def distance(alexnet: Path) -> PerceptualDistance:
    return PerceptualDistance("alex", str(alexnet), CPU)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_inception(tmp_path_factory.mktemp("inception"))


def images(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 5, 4, 3))
    return list(
        np.clip(coarse.repeat(16, 1).repeat(16, 2) + rng.normal(0, 9, (count, 80, 64, 3)), 0, 255).astype(np.uint8)
    )


def test_lpips_equals_torchmetrics(
    distance: PerceptualDistance, alexnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    monkeypatch.setenv("TORCH_HOME", str(alexnet.parents[2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True, reduction="mean")
    rows = pictures(changes())[3:6]
    found = Lpips(distance, 4)(rows)["lpips"]
    for row, value in zip(rows, found, strict=True):
        first, second = (torch.from_numpy(each).permute(2, 0, 1)[None] / 255 for each in (row.ad_u8, row.canvas_u8))
        assert value == pytest.approx(float(reference(first, second)), rel=SAME)


def features(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 1, (count, 48)) @ rng.normal(0, 1, (48, 48)) + rng.normal(0, 1, 48)).astype(np.float32)


def test_fid_of_merged_parts_equals_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Module):
        """The features themselves in place of a network: this is about the sums over them."""

        num_features = 48

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return given.flatten(1)

    real, made = features(300, 0), features(211, 1)
    parts = [FeatureStatistics.of(part) for part in np.array_split(made, 3)]
    found = frechet_distance(parts[0].merged(parts[1]).merged(parts[2]), FeatureStatistics.of(real))
    reference = FrechetInceptionDistance(feature=Given(), normalize=False).set_dtype(torch.float64)
    reference.update(torch.from_numpy(real).double(), real=True)
    reference.update(torch.from_numpy(made).double(), real=False)
    assert found == pytest.approx(float(reference.compute()), rel=SAME)


def test_fid_of_equal_statistics_is_0() -> None:
    same = FeatureStatistics.of(features(30, 0))  # fewer than dimensions: a covariance without full rank
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-4)


def test_inception_features_are_those_of_torchmetrics(inception_file: Path) -> None:
    from torchmetrics.image.fid import NoTrainInceptionV3

    reference = NoTrainInceptionV3("i", ["2048"], feature_extractor_weights_path=str(inception_file), antialias=False)
    rows = images(3, 2)
    with torch.inference_mode():
        wanted = reference(torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)).numpy()
    assert np.abs(InceptionFeatures(str(inception_file), 2, CPU)(rows) - wanted).max() <= SAME * np.abs(wanted).max()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random CLIP with a tokenizer, as a folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = CLIPTokenizer.from_pretrained(TOKENIZER)
    text = sizes | {"vocab_size": len(words), "max_position_embeddings": 77, "eos_token_id": words.eos_token_id}
    config = CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    folder = tmp_path_factory.mktemp("clip")
    model = CLIPModel(config)
    model.text_projection.weight.data.neg_()  # with these random weights all cosines are negative, and the scores 0
    model.save_pretrained(folder)
    pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(pixels, words).save_pretrained(folder)
    return str(folder)


def test_clip_score_equals_torchmetrics(clip: str) -> None:
    from torchmetrics.multimodal.clip_score import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    rows = pictures(changes(), "a mug on a wooden table, evening sun")[:5]
    found = ClipScore(clip, CPU)(rows)["clip_score"]

    class Model(CLIPModel):
        """As transformers 4 was, which torchmetrics is written for: features, not an object that holds them."""

        def get_image_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().get_image_features(*args, **kwargs).pooler_output

        def get_text_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().get_text_features(*args, **kwargs).pooler_output

    reference = CLIPScore(lambda: (Model.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)))
    for row, value in zip(rows, found, strict=True):
        reference.reset()
        wanted = reference(torch.from_numpy(row.ad_u8).permute(2, 0, 1), row.prompt)
        assert value == pytest.approx(float(wanted), rel=SAME, abs=1e-4)  # of 100
    assert len(set(found)) == len(found)


def test_clip_score_does_not_depend_on_company(clip: str) -> None:
    rows = pictures(changes())[:4]
    rows[1] = pictures(changes(), "a much longer prompt about a mug that stands on a wooden table in the sun")[1]
    scorer = ClipScore(clip, CPU)
    together = scorer(rows)["clip_score"]
    assert together == pytest.approx([scorer([row])["clip_score"][0] for row in rows], rel=SAME, abs=1e-4)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random DINOv2 as a folder."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, mlp_ratio=2
    )
    folder = tmp_path_factory.mktemp("dino")
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(folder)
    return str(folder)


def test_dino_is_1_for_the_product_itself_and_blind_to_the_scene(dino: str) -> None:
    ads = changes()
    found = dict(zip(ads, DinoSimilarity(dino, CPU)(pictures(ads))["dino"], strict=True))
    assert found["the product itself"] == pytest.approx(1, abs=SAME)
    assert found["scene blurred"] == pytest.approx(1, abs=SAME)
    assert found["wrong product"] < found["another label"] < 1


# MP-LPIPS by hand: a mask with two points of the grid, and features that say where each of them is found.

POINTS = np.array([[200, 240], [240, 240]])
"""y, x."""


def one_hot(places: dict[int, tuple[int, int]]) -> torch.Tensor:
    """Features 3×512×512: channel 0 everywhere, and channel n + 1 at one place alone."""
    features = torch.zeros(3, 512, 512)
    features[0] = 0.1
    for channel, (y, x) in places.items():
        features[:, y, x] = torch.nn.functional.one_hot(torch.tensor(channel + 1), 3).float()
    return features


def test_points_are_matched_by_the_most_similar_feature() -> None:
    product = one_hot({0: (200, 240), 1: (240, 240)})
    ad = one_hot({0: (203, 250), 1: (10, 10)})
    assert matched_points(product, ad, POINTS).tolist() == [[203, 250], [10, 10]]


def test_mp_lpips_of_a_case_by_hand(distance: PerceptualDistance) -> None:
    """The first point is matched within the mask, the second far outside: a mean of one LPIPS and the constant."""
    from refadgen.evaluation.measures.picture import AdPicture

    rng = np.random.default_rng(0)
    canvas, ad = (rng.integers(0, 255, (512, 512, 3), dtype=np.uint8) for _ in range(2))
    mask = np.zeros((512, 512), np.uint8)
    mask[190:250, 235:245] = 255  # of the multiples of 40 it holds (200, 240) and (240, 240)
    maps = iter([one_hot({0: (200, 240), 1: (240, 240)}), one_hot({0: (203, 250), 1: (10, 10)})])
    scorer = MatchedPatches(distance, lambda _: next(maps), "by hand")
    picture = AdPicture(ad_u8=ad, canvas_u8=canvas, mask_u8=mask, prompt="")
    (found,) = scorer([picture])["mp_lpips"]

    inside = mask[..., None] > 127
    first = np.where(inside, canvas, 0)[200 - 16 : 200 + 17, 240 - 16 : 240 + 17].astype(np.uint8)
    second = np.where(inside, ad, 0)[203 - 16 : 203 + 17, 250 - 16 : 250 + 17].astype(np.uint8)
    # x = 250 is 6 px outside the mask and so within its dilation of 8.
    near = distance([first], [second])[0]
    white, black = np.full((33, 33, 3), 255, np.uint8), np.zeros((33, 33, 3), np.uint8)
    assert found == pytest.approx((near + distance([white], [black])[0]) / 2, rel=SAME)


def test_a_patch_at_the_border_is_black_beyond_it() -> None:
    image = np.full((512, 512, 3), 9, np.uint8)
    cut = patch(image, np.array([0, 511]))
    assert cut.shape == (33, 33, 3)
    assert (cut[16:, :17] == 9).all()
    assert not cut[:16].any()
    assert not cut[:, 17:].any()


def test_the_picture_matched_with_itself_has_no_distance(distance: PerceptualDistance, dino: str) -> None:
    from refadgen.evaluation.measures.transformers_features import VisionFeatures

    rows = pictures(changes())[:1]
    scorer = MatchedPatches(distance, VisionFeatures("mp_lpips.features", dino, CPU).patches, "tiny DINOv2")
    assert scorer(rows)["mp_lpips"] == pytest.approx([0], abs=1e-3)  # neighbours tie
