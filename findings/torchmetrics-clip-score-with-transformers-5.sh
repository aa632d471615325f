#!/usr/bin/env bash
# torchmetrics==1.9.0 with transformers==5.23.0, torch==2.14.1, Python 3.11, seen 2026-11-28.
#
# torchmetrics' CLIPScore raises on every CLIP of transformers 5: get_image_features and get_text_features return an object
# that holds the features there, where they returned the features themselves, and the metric takes the object's norm.
# torchmetrics asks for transformers>=4.43 with no upper bound, so a fresh installation ends up with both.
#
# Output seen:
#     get_image_features gives BaseModelOutputWithPooling
#     CLIPScore: AttributeError: 'BaseModelOutputWithPooling' object has no attribute 'norm'
#     with the features taken out of it: a score of one number
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torchmetrics==1.9.0 transformers==5.23.0 torch==2.14.1 'numpy<3'
cat > "$folder/show.py" <<'PYTHON'
import torch
from torchmetrics.multimodal.clip_score import CLIPScore
from transformers import CLIPConfig, CLIPModel

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
text = sizes | {"vocab_size": 99, "eos_token_id": 98}
config = CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 32, "patch_size": 8}, projection_dim=16)


def processor(images=None, text=None, **_):
    if text is not None:
        ids = torch.tensor([[5, 6, 7, 98]] * len(text))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {"pixel_values": torch.stack([image[:, :32, :32].float() / 255 for image in images])}


class Features(CLIPModel):
    def get_image_features(self, *given, **named):
        return super().get_image_features(*given, **named).pooler_output

    def get_text_features(self, *given, **named):
        return super().get_text_features(*given, **named).pooler_output


picture = torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8)
model = CLIPModel(config).eval()
print("get_image_features gives", type(model.get_image_features(torch.zeros(1, 3, 32, 32))).__name__)
try:
    CLIPScore(lambda: (model, processor))(picture, "a cup")
    raise SystemExit("the behaviour has changed")
except AttributeError as error:
    print(f"CLIPScore: AttributeError: {error}")
score = CLIPScore(lambda: (Features(config).eval(), processor))(picture, "a cup")
assert score.ndim == 0, "the behaviour has changed"
print("with the features taken out of it: a score of one number")
PYTHON
cd "$folder"
"$folder/venv/bin/python" show.py 2>"$folder/log" || { cat "$folder/log"; exit 1; }
