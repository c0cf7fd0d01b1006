"""The shape of the embedded base: the JSON configs of every part of a small SDXL.

The parts are SDXL's own classes wired the same way (two text encoders whose penultimate layers are concatenated, a
pooled vector, six-number micro-conditioning), only narrower and with a VAE that shrinks by 4 instead of 8. Nothing
here loads a framework, so that a plan can be made from it.
"""

from __future__ import annotations

from typing import Any

from sdxl_ray.tiny.vocabulary import BEGIN, END, bpe

SEED = 20261101

MAX_TOKENS = 32
_TEXT_WIDTHS = (64, 128)
_TEXT_LAYERS = (2, 3)
POOLED = 128
_TIME_IDS = 6
_TIME_EMBED = 32

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def configs() -> dict[str, dict[str, Any]]:
    """JSON configs by component: vae, unet, text_encoder, text_encoder_2, scheduler."""
    return {
        "vae": {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": [16, 32, 64],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "force_upcast": False,
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 1,
            "mid_block_add_attention": False,
            # Four channels a group at the narrowest: a group of one would take the colour out of every image.
            "norm_num_groups": 4,
            "out_channels": 3,
            "sample_size": 64,
            "scaling_factor": 1.0,
        },
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME_EMBED,
            # diffusers reads this as the number of heads: 32 channels a head at every level.
            "attention_head_dim": [1, 2, 4],
            "block_out_channels": [32, 64, 128],
            "cross_attention_dim": sum(_TEXT_WIDTHS),
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "in_channels": 4,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "out_channels": 4,
            "projection_class_embeddings_input_dim": _TIME_IDS * _TIME_EMBED + POOLED,
            "sample_size": 16,
            "transformer_layers_per_block": [1, 1, 1],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "use_linear_projection": True,
        },
        "text_encoder": _text_config(0, "CLIPTextModel", "quick_gelu", pad_token=END),
        "text_encoder_2": _text_config(1, "CLIPTextModelWithProjection", "gelu", pad_token="!"),
        "scheduler": {
            "_class_name": "EulerDiscreteScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "interpolation_type": "linear",
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "steps_offset": 1,
            "timestep_spacing": "leading",
        },
    }


def _text_config(index: int, architecture: str, activation: str, pad_token: str) -> dict[str, Any]:
    vocabulary, _ = bpe()
    width = _TEXT_WIDTHS[index]
    return {
        "architectures": [architecture],
        "model_type": "clip_text_model",
        "bos_token_id": vocabulary[BEGIN],
        # An id of 2 here would switch the pooling of transformers to a legacy rule.
        "eos_token_id": vocabulary[END],
        "pad_token_id": vocabulary[pad_token],
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "max_position_embeddings": MAX_TOKENS,
        "num_attention_heads": width // 32,
        "num_hidden_layers": _TEXT_LAYERS[index],
        "projection_dim": POOLED,
        "vocab_size": len(vocabulary),
    }
