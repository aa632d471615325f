"""The Attention Fusion Module (Eq. 1): capture in the Reference U-Net, fuse in the Generation U-Net.

Data flow: `capture` runs the Reference U-Net and keeps the input of each self-attention; `project` turns each into
K_ref and V_ref with the AFM's own projections; `Conditioning` holds them, with the prompt's K and V, for one batch;
`AttentionFusionProcessor` adds the second term of Eq. 1. K_ref, V_ref and the prompt's K, V depend on neither timestep
nor noise, so they are made once and reused over steps, and K_ref, V_ref over scenes and seeds as well.

Shapes: B rows of a batch; N rows of the network, B or 2B with guidance (unconditional rows first); L tokens;
C channels; H heads; D channels of a head.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]
"""K and V of one layer, each N×H×L×D."""


def self_attention_layers(unet: UNet2DConditionModel) -> list[str]:
    """Names of all self-attentions (`…attn1`), in the order in which the network runs them: down, mid, up."""
    return _attention_layers(unet, "attn1")


def prompt_attention_layers(unet: UNet2DConditionModel) -> list[str]:
    """Names of all cross-attentions to the prompt (`…attn2`), in the order in which the network runs them."""
    return _attention_layers(unet, "attn2")


def _attention_layers(unet: UNet2DConditionModel, kind: str) -> list[str]:
    names = [name for name, module in unet.named_modules() if isinstance(module, Attention) and name.endswith(kind)]
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    # diffusers assigns down, up, mid, and named_modules follows that. sorted is stable: parts keep their own order.
    return sorted(names, key=lambda name: order[name.split(".")[0]])


def split_heads(attn: Attention, hidden_states: Tensor) -> Tensor:
    """N×L×C → N×H×L×D."""
    return hidden_states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def _output(attn: Attention, attended_NHLD: Tensor) -> Tensor:
    """Joins heads and projects: N×H×L×D → N×L×C."""
    return attn.to_out[1](attn.to_out[0](attended_NHLD.transpose(1, 2).flatten(2)))


@dataclass(frozen=True)
class LayerFeatures:
    """K and V by layer name, for the conditional and, where it differs, the unconditional guidance branch."""

    conditional: Mapping[str, KeyValue]
    unconditional: Mapping[str, KeyValue] | None = None
    """None: the unconditional branch uses the conditional ones."""

    @property
    def num_rows(self) -> int:
        """Products (or prompts) held, the leading size of every tensor."""
        key, _ = next(iter(self.conditional.values()))
        return len(key)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        branches = [self.conditional, self.unconditional or {}]
        return sum(tensor.nbytes for branch in branches for pair in branch.values() for tensor in pair)

    def row(self, index: int) -> "LayerFeatures":
        """The features of one product (or prompt), as views. Raises: IndexError."""
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")

        def take(branch: Mapping[str, KeyValue]) -> dict[str, KeyValue]:
            return {name: (key[index : index + 1], value[index : index + 1]) for name, (key, value) in branch.items()}

        return type(self)(take(self.conditional), None if self.unconditional is None else take(self.unconditional))


class ReferenceFeatures(LayerFeatures):
    """K_ref and V_ref of every self-attention: the only form in which the Generation U-Net sees a product.

    `unconditional` is set only with an image encoder, whose zero image is the context of that branch, or with the
    model's `negative_prompt_context`, where it is the negative prompt.
    """


class PromptFeatures(LayerFeatures):
    """K and V of the prompt and of the negative prompt in every cross-attention."""


class CaptureProcessor(AttnProcessor2_0):
    """Plain self-attention that also puts its input h (after norm1), N×L×C, into `captured` under its layer's name."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        captured: dict[str, Tensor] | None = None,
    ) -> Tensor:
        if captured is not None:
            captured[self.layer] = hidden_states
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class PromptAttentionProcessor(AttnProcessor2_0):
    """Cross-attention to the prompt that takes K and V from the `Conditioning` where there is one."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        conditioning: "Conditioning | None" = None,
        captured: dict[str, Tensor] | None = None,  # diffusers gives all layers the same keywords; unused here
    ) -> Tensor:
        if conditioning is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        key_NHLD, value_NHLD = conditioning.prompt[self.layer]
        query_NHLD = split_heads(attn, attn.to_q(hidden_states))
        return _output(attn, F.scaled_dot_product_attention(query_NHLD, key_NHLD, value_NHLD))


class AttentionFusionProcessor(nn.Module):
    """Self-attention plus λ times cross-attention to the product's features (Eq. 1, Sec. 5.5).

    `to_k_ref` and `to_v_ref` start as copies of the layer's `to_k` and `to_v` (the paper is silent). They are applied
    by `project`, not here, since their input is the same at every step. Without a `Conditioning` the layer is as in
    the base.
    """

    def __init__(self, attn: Attention, layer: str) -> None:
        super().__init__()
        self.layer = layer
        self.to_k_ref = nn.Linear(attn.to_k.in_features, attn.to_k.out_features, bias=False)
        self.to_v_ref = nn.Linear(attn.to_v.in_features, attn.to_v.out_features, bias=False)
        self.to(device=attn.to_k.weight.device, dtype=attn.to_k.weight.dtype)
        with torch.no_grad():
            self.to_k_ref.weight.copy_(attn.to_k.weight)
            self.to_v_ref.weight.copy_(attn.to_v.weight)

    # Not `forward`: diffusers reads the signature of `__call__` and drops the keywords that it does not name.
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        conditioning: "Conditioning | None" = None,
    ) -> Tensor:
        num_rows = hidden_states.shape[0]
        if conditioning is not None and self.layer == conditioning.shared_layer:
            # The guidance branches are still equal here, and this layer has the most tokens: half the rows will do.
            hidden_states = hidden_states[: conditioning.num_rows]
        query_NHLD = split_heads(attn, attn.to_q(hidden_states))
        key_NHLD = split_heads(attn, attn.to_k(hidden_states))
        value_NHLD = split_heads(attn, attn.to_v(hidden_states))
        attended_NHLD = F.scaled_dot_product_attention(query_NHLD, key_NHLD, value_NHLD)
        if conditioning is not None and conditioning.reference:
            attended_NHLD = conditioning.fuse(self.layer, query_NHLD, attended_NHLD)
        return repeat_rows(_output(attn, attended_NHLD), num_rows)


def repeat_rows(tensor: Tensor, num_rows: int) -> Tensor:
    """`tensor` repeated along its first axis up to `num_rows`, a multiple of its rows; itself where it has as many."""
    times = num_rows // tensor.shape[0]
    return tensor if times == 1 else torch.cat([tensor] * times)


@dataclass(frozen=True)
class Conditioning:
    """One batch's inputs to all attention layers of the Generation U-Net. Made by `condition`."""

    num_rows: int
    """B: images of the batch."""
    num_branches: int
    """2 with classifier-free guidance (N = 2B, unconditional rows first), else 1."""
    prompt: Mapping[str, KeyValue]
    """By `attn2` name; N rows."""
    reference: Mapping[str, KeyValue]
    """By `attn1` name; N rows, B where only the conditional branch sees the product or in a shared layer whose
    branches see the same. Empty: no reference at all."""
    fusion_scale: Tensor
    """λ of each image, B×1×1×1."""
    reference_in_uncond: bool
    """Whether the unconditional branch sees the product."""
    shared_layer: str | None
    """The first self-attention, whose input is the same in both guidance branches; None without guidance."""

    def fuse(self, layer: str, query_NHLD: Tensor, attended_NHLD: Tensor) -> Tensor:
        """Adds λ · softmax(Q K_refᵀ / √d) V_ref, the second term of Eq. 1.

        `query_NHLD`, `attended_NHLD`: N rows, or B in the shared layer. Returns N rows, or B where branches stay equal.
        """
        key_NHLD, value_NHLD = self.reference[layer]
        if not self.reference_in_uncond and self.num_branches == 2:
            # From the end: the conditional half of N rows, and all of the B rows of a shared layer.
            term_BHLD = F.scaled_dot_product_attention(query_NHLD[-self.num_rows :], key_NHLD, value_NHLD)
            fused_BHLD = attended_NHLD[-self.num_rows :] + self.fusion_scale * term_BHLD
            return torch.cat([attended_NHLD[: self.num_rows], fused_BHLD])
        num_rows = key_NHLD.shape[0]
        term_NHLD = F.scaled_dot_product_attention(repeat_rows(query_NHLD, num_rows), key_NHLD, value_NHLD)
        return repeat_rows(attended_NHLD, num_rows) + repeat_rows(self.fusion_scale, num_rows) * term_NHLD


def condition(
    prompts: Sequence[PromptFeatures],
    references: Sequence[ReferenceFeatures] | None,
    fusion_scale: Tensor,
    *,
    guidance: bool,
    reference_in_uncond: bool,
) -> Conditioning:
    """One batch's `Conditioning` from the features of its parts, in row order.

    prompts, references: together B rows each; `references` None: the network without the product.
    fusion_scale: B floats on the networks' device, in their dtype.
    """
    reference: dict[str, KeyValue] = {}
    shared_layer = None
    if references:
        layers = list(references[0].conditional)
        shared_layer = layers[0] if guidance else None
        twice = guidance and reference_in_uncond
        # Without an image encoder both branches see the same K_ref and V_ref, so the shared layer can stay at B rows.
        same = all(features.unconditional is None for features in references)
        for layer in layers:
            if twice and not (same and layer == shared_layer):
                reference[layer] = _stack([*map(_unconditional, references), *map(_conditional, references)], layer)
            else:
                reference[layer] = _stack([features.conditional for features in references], layer)
    parts = [features.conditional for features in prompts]
    if guidance:
        parts = [*map(_unconditional, prompts), *parts]
    return Conditioning(
        num_rows=len(fusion_scale),
        num_branches=2 if guidance else 1,
        prompt={layer: _stack(parts, layer) for layer in parts[0]},
        reference=reference,
        fusion_scale=fusion_scale.view(-1, 1, 1, 1),
        reference_in_uncond=reference_in_uncond,
        shared_layer=shared_layer,
    )


def _conditional(features: LayerFeatures) -> Mapping[str, KeyValue]:
    return features.conditional


def _unconditional(features: LayerFeatures) -> Mapping[str, KeyValue]:
    return features.conditional if features.unconditional is None else features.unconditional


def _stack(parts: Sequence[Mapping[str, KeyValue]], layer: str) -> KeyValue:
    if len(parts) == 1:
        return parts[0][layer]  # no copy
    return torch.cat([part[layer][0] for part in parts]), torch.cat([part[layer][1] for part in parts])


def attach_capture(unet: UNet2DConditionModel) -> None:
    """Makes `unet` a Reference U-Net: `capture` can read the inputs of its self-attentions."""
    processors = {f"{layer}.processor": CaptureProcessor(layer) for layer in self_attention_layers(unet)}
    processors |= {f"{layer}.processor": PromptAttentionProcessor(layer) for layer in prompt_attention_layers(unet)}
    unet.set_attn_processor(processors)


def attach_fusion(unet: UNet2DConditionModel) -> None:
    """Makes `unet` a Generation U-Net: an AFM in each self-attention, its projections copied from the layer's own."""
    processors: dict[str, nn.Module | AttnProcessor2_0] = {}
    for layer in self_attention_layers(unet):
        processors[f"{layer}.processor"] = AttentionFusionProcessor(unet.get_submodule(layer), layer)
    for layer in prompt_attention_layers(unet):
        processors[f"{layer}.processor"] = PromptAttentionProcessor(layer)
    unet.set_attn_processor(processors)


def fusion_processors(unet: UNet2DConditionModel) -> dict[str, AttentionFusionProcessor]:
    """The AFM of each self-attention by layer name. Raises: ValueError when `unet` has none attached."""
    found = {layer: unet.get_submodule(layer).processor for layer in self_attention_layers(unet)}
    if not all(isinstance(processor, AttentionFusionProcessor) for processor in found.values()):
        raise ValueError("the U-Net has no Attention Fusion Modules attached: see attach_fusion")
    return found


def detach(unet: UNet2DConditionModel) -> None:
    """Puts plain attentions back into `unet`. Attaching changes nothing else in the network."""
    unet.set_attn_processor(AttnProcessor2_0())


@contextmanager
def detached(unet: UNet2DConditionModel) -> Iterator[None]:
    """Inside the block `unet` has plain attentions; after it, its own processors again."""
    # Taken from the layers themselves: set_attn_processor empties the dictionary it is given.
    layers = self_attention_layers(unet) + prompt_attention_layers(unet)
    processors = {f"{layer}.processor": unet.get_submodule(layer).processor for layer in layers}
    detach(unet)
    try:
        yield
    finally:
        unet.set_attn_processor(processors)


def capture(reference_unet: UNet2DConditionModel, latents: Tensor, context: Tensor) -> dict[str, Tensor]:
    """The inputs h of all self-attentions of the Reference U-Net, by layer name, each N×L×C.

    latents: clean, scaled latents of the product image, N×4×h×w; read at t = 0 in one pass.
    context: encoder hidden states, N×tokens×channels.
    """
    captured: dict[str, Tensor] = {}
    timesteps = torch.zeros(latents.shape[0], dtype=torch.long, device=latents.device)
    reference_unet(latents, timesteps, context, cross_attention_kwargs={"captured": captured}, return_dict=False)
    return captured


def project(generation_unet: UNet2DConditionModel, captured: Mapping[str, Tensor]) -> dict[str, KeyValue]:
    """K_ref and V_ref by layer name from the Reference U-Net's inputs h of the same names."""
    features = {}
    for layer, afm in fusion_processors(generation_unet).items():
        attn, hidden_states = generation_unet.get_submodule(layer), captured[layer]
        key, value = afm.to_k_ref(hidden_states), afm.to_v_ref(hidden_states)
        features[layer] = (split_heads(attn, key), split_heads(attn, value))
    return features


def project_prompt(generation_unet: UNet2DConditionModel, prompt_embeds: Tensor) -> dict[str, KeyValue]:
    """The prompt's K and V by cross-attention name. prompt_embeds: N×tokens×channels."""
    features = {}
    for layer in prompt_attention_layers(generation_unet):
        attn = generation_unet.get_submodule(layer)
        key, value = attn.to_k(prompt_embeds), attn.to_v(prompt_embeds)
        features[layer] = (split_heads(attn, key), split_heads(attn, value))
    return features
