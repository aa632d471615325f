"""A guided step costs what the design says, counted at full size."""

import pytest
import step_flops


@pytest.fixture(scope="module")
def numbers():
    return step_flops.measure()


def test_a_guided_step_costs_at_most_1_17_of_the_stock_one(numbers):
    assert numbers["ratio"] < 1.17
    assert numbers["ratio_no_encoder"] < numbers["ratio"]
    # A step that left something out would be cheap too: these are the exact floors, worked out by hand.
    assert numbers["ratio"] == pytest.approx(1.154, abs=1e-3)
    assert numbers["ratio_no_encoder"] == pytest.approx(1.137, abs=1e-3)
    assert numbers["plain_tflop"] == pytest.approx(2 * 1.042, rel=1e-3)


def test_predict_saves_2_3_to_3_7_percent_of_a_guided_step(numbers):
    """The reason for `unets.predict`, a forward pass of our own; without a gain, diffusers' own would do.

    Most of it is the first self-attention, over 5,120 tokens. Without an image encoder both branches also share its
    reference term; where only one branch sees the product, they cannot.
    """
    assert numbers["saved_both_branches"] == pytest.approx(0.0227, abs=2e-4)
    assert numbers["saved_one_branch"] == pytest.approx(0.0246, abs=2e-4)
    assert numbers["saved_both_branches_no_encoder"] == pytest.approx(0.0367, abs=2e-4)


def test_attention_is_counted():
    """Self-attention over L tokens of C channels is 4 L² C FLOPs, over S prompt tokens 4 L S C; in all 16 blocks."""
    import torch

    with torch.device("meta"):
        unet = step_flops.make_unet()
        inputs = (torch.empty(1, 4, 80, 64), torch.empty(1), torch.empty(1, 77, 768))
    with step_flops.Tflop() as tflop, torch.no_grad():
        unet(*inputs)
    blocks = [(80 * 64, 320)] * 5 + [(40 * 32, 640)] * 5 + [(20 * 16, 1280)] * 5 + [(10 * 8, 1280)]
    by_hand = sum(4 * length * (length + 77) * channels for length, channels in blocks)
    attention = [n for kind, n in tflop.by_kind.items() if "attention" in kind or "bmm" in kind]
    assert sum(attention) * 1e12 == pytest.approx(by_hand)
