"""The networks of the built-in model: RefAdGen's classes at a width that two CPU cores can train and run."""

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

WIDTH_PX, HEIGHT_PX = 128, 160
LATENT_CHANNELS = 16
TEXT_WIDTH = 64
MAX_TOKENS = 64


def make_vae() -> AutoencoderKL:
    """A VAE that encodes 8×8 pixels as 16 latent channels, randomly initialised.

    At this canvas size printed letters are a few pixels wide, and 8 channels lose them (see the model card).
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,  # groups of few channels lose flat colours: normalisation removes their mean
        mid_block_add_attention=False,
        sample_size=WIDTH_PX,
    )


def make_unet() -> UNet2DConditionModel:
    """The base of both U-Nets, randomly initialised: four levels, attention at the upper three."""
    return UNet2DConditionModel(
        sample_size=(HEIGHT_PX // 8, WIDTH_PX // 8),
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 64, 128, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        # Number of heads, despite the name (diffusers keeps it for old checkpoints): 32 to 48 channels each. A head of
        # 8 channels cannot tell 320 places apart, and attention then takes a third of a step.
        attention_head_dim=(1, 2, 4, 4),
        norm_num_groups=16,
    )


def make_text_encoder(vocab_size: int, eos_token_id: int, bos_token_id: int, pad_token_id: int) -> CLIPTextModel:
    """A text encoder of two layers of 64 channels, randomly initialised: enough for the studio's captions."""
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=TEXT_WIDTH,
        eos_token_id=eos_token_id,
        bos_token_id=bos_token_id,
        pad_token_id=pad_token_id,
    )
    return CLIPTextModel(config)


def make_scheduler() -> DDIMScheduler:
    """The scheduler of training and sampling. v-prediction learns faster at this size (see the model card)."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
