"""Denoiser: the one module that an engine wraps: the UNet and those text encoders that train.

DeepSpeed takes one module tree per engine, so whatever has a gradient lives here; the VAE and frozen text encoders stay
outside, where ZeRO-3 does not shard them and memory can be given back once their outputs are cached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sdxl_ray.models.text_encoders import TokenIds, align, encode

_Moved = TypeVar("_Moved", Tensor, TokenIds)


@dataclass
class TextInputs:
    """Conditioning of a batch: per encoder either cached states or token ids for a trained encoder.

    hidden: per encoder fp [B, L, C_i] or None; ids: per encoder the captions' ids or None; pooled_BP: of encoder 2, or
    None when that encoder trains; keep_B: 1, or 0 where caption dropout replaces the text by zeros.
    """

    hidden: tuple[Tensor | None, Tensor | None]
    ids: tuple[TokenIds | None, TokenIds | None]
    pooled_BP: Tensor | None
    keep_B: Tensor

    def to(self, device: torch.device | str) -> TextInputs:
        """The same on another device."""

        def move(x: _Moved | None) -> _Moved | None:
            return None if x is None else x.to(device, non_blocking=True)

        return TextInputs(
            (move(self.hidden[0]), move(self.hidden[1])),
            (move(self.ids[0]), move(self.ids[1])),
            move(self.pooled_BP),
            self.keep_B.to(device, non_blocking=True),
        )


class Denoiser(nn.Module):
    """UNet plus trained text encoders: noisy latents, timesteps, text and size conditioning -> prediction."""

    def __init__(self, unet: Any, text_encoder_1: Any | None = None, text_encoder_2: Any | None = None) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder_1 = text_encoder_1
        self.text_encoder_2 = text_encoder_2

    def forward(self, noisy_BCHW: Tensor, t_B: Tensor, text: TextInputs, time_ids_B6: Tensor) -> Tensor:
        """Prediction [B, C, H, W].

        `time_ids_B6` (original h, w; crop top, left; target h, w) are integers: they are embedded in fp32 and only then
        cast. As bf16 numbers, sizes above 512 would be rounded to multiples of 4 to 16 pixels.
        """
        dtype = next(self.unet.parameters()).dtype  # `unet.dtype` walks thousands of modules, 77 ms under a LoRA
        hidden = list(text.hidden)
        pooled_BP = text.pooled_BP
        for i, encoder in enumerate((self.text_encoder_1, self.text_encoder_2)):
            if encoder is not None:
                ids = text.ids[i]
                assert ids is not None
                states, first = encode(encoder, ids)
                hidden[i] = align(states)
                pooled_BP = first if i == 1 else pooled_BP
        keep_B = text.keep_B.to(dtype)
        hidden_BLC = torch.cat([h.to(dtype) for h in hidden if h is not None], dim=-1) * keep_B[:, None, None]
        assert pooled_BP is not None
        condition = {"text_embeds": pooled_BP.to(dtype) * keep_B[:, None], "time_ids": time_ids_B6}
        prediction_BCHW: Tensor = self.unet(
            noisy_BCHW.to(dtype), t_B, encoder_hidden_states=hidden_BLC, added_cond_kwargs=condition, return_dict=False
        )[0]
        return prediction_BCHW
