"""The table of operations: its smallest entry by hand, and its order."""

import method_flops
import pytest
import step_flops

pytestmark = pytest.mark.long


def test_the_table_is_what_can_be_worked_out() -> None:
    found = method_flops.measure()
    plain = found["TextToImage, PixelPaste"]
    # Twenty guided steps and the decoder; the texts are next to nothing.
    decoder = method_flops.count_decoder(step_flops.make_meta_pipeline(image_encoder=False).vae)
    assert plain == pytest.approx(20 * step_flops.count_plain() + decoder, rel=0.002)
    ours = found["RefAdGen, with the authors' image encoder"]
    assert plain < found["T2IAdapter"] < found["RefAdGen, without an image encoder"] < ours
    assert 1.3 < found["ControlNet"] / plain < 1.5  # a copy of the U-Net's first half
    assert found["InstructPix2Pix"] / plain == pytest.approx(1.5, abs=0.02)  # three branches, not two
