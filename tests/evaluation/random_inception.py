"""Random weights of the network that FID asks."""

from pathlib import Path

import pytest
import torch


def random_inception(folder: Path) -> Path:
    """A file of random weights of torch-fidelity's InceptionV3."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # it has no way to be made without weights
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(inception.torch, "load", lambda *_, **__: {})
        model = inception.FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path="none")
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):  # as wide at its end as at its start: rounding stays small
            torch.nn.init.kaiming_normal_(module.weight)
    file = folder / "inception.pth"
    torch.save(model.state_dict(), file)
    return file
