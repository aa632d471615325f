"""Context tokens for the Reference U-Net: CLIP features of the product through the Resampler of IP-Adapter Plus."""

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor


class ProductImageProjection(ModelMixin, ConfigMixin):
    """diffusers' `IPAdapterPlusImageProjection` as a component that saves and loads by itself.

    The defaults are the authors': CLIP ViT-H features in, 16 tokens of Stable Diffusion 1.5's width out.
    """

    @register_to_config
    def __init__(
        self,
        embed_dims: int = 1280,
        output_dims: int = 768,
        hidden_dims: int = 768,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 12,
        num_queries: int = 16,
        ffn_ratio: float = 4,
    ) -> None:
        super().__init__()
        self.resampler = IPAdapterPlusImageProjection(
            embed_dims, output_dims, hidden_dims, depth, dim_head, heads, num_queries, ffn_ratio
        )

    def forward(self, image_features: Tensor) -> Tensor:
        """image_features: the image encoder's second-last hidden states, N×patches×embed_dims.

        Returns: N×num_queries×output_dims.
        """
        return self.resampler(image_features)
