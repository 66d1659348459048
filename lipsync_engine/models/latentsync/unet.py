"""LatentSync's audio-conditioned video U-Net, versions 1.5 and 1.6.

The network predicts the noise of a short window of latents. Its input has 13 channels per frame: noisy
latents, mask, masked face and reference face. Cross-attention conditions each frame on 50 audio tokens.
Frames of a window exchange information in two places: the group norms of the residual blocks, whose
statistics pool over all frames, and the motion modules, which attend over time. In the published
configuration `attention_head_dim` is the number of heads, not their size.

Two results can be reused over the steps of the sampling loop:

- the keys and values of audio cross-attention (`precompute_audio_kv`), which are the same at every step;
- the features of all layers but the finest (`predict` with `cached_features`, DeepCache: Ma et al., 2023),
  where the caller accepts the approximation.

Classifier-free guidance runs the unconditional and the conditional pass as one batch. The unconditional pass
has no audio. Both passes are identical until the first cross-attention, so the batch doubles there.

Shapes: B batch, F frames, C channels, H x W latent pixels. Activations are (B, C, F, H, W) with channels last
in memory, so the tokens of a pixel and the input of a frame's convolution are views. Facts and key names:
parity pack, sections 1 and 2. This module does not know schedulers, guidance scales or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn import functional as F

from lipsync_engine.models.latentsync.config import MOTION_NORM_GROUPS, UNetConfig

TRANSFORMER_NORM_EPS = 1e-6


def apply_per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2-D layer to each frame of (B, C, F, H, W)."""
    batch = x.shape[0]
    y: Tensor = layer(x.transpose(1, 2).flatten(0, 1))
    frames: Tensor = y.unflatten(0, (batch, -1)).transpose(1, 2)
    return frames


def apply_per_row(layer: nn.Module, rows: Tensor) -> Tensor:
    """Apply a layer to each row separately: libraries may round a row differently in a larger batch."""
    if len(rows) == 1:
        out: Tensor = layer(rows)
        return out
    return torch.cat([layer(row) for row in rows.split(1)])


# --- attention ---


class Attention(nn.Module):
    """Multi-head self- or cross-attention of (N, L, C) tokens; the projections have no bias."""

    def __init__(self, channels: int, heads: int, context_channels: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Tensor) -> Tensor:
        return self._attend(tokens, *self._project_context(tokens))

    def _project_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self._split_heads(self.to_k(context)), self._split_heads(self.to_v(context))

    def _attend(self, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(self._split_heads(self.to_q(tokens)), key, value)
        out: Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out

    def _split_heads(self, tokens: Tensor) -> Tensor:
        heads: Tensor = tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads


class AudioKV(NamedTuple):
    """Keys and values of one audio cross-attention layer; the same at every step of a window.

    Attributes:
        key, value: (rows, heads, T, head size), of the conditional rows.
        num_unconditional: rows without audio, which precede the conditional ones.
    """

    key: Tensor
    value: Tensor
    num_unconditional: int


class AudioCrossAttention(Attention):
    """Cross-attention to audio features.

    The key and value projections have no bias, so zero audio yields only the output bias. Unconditional rows
    therefore need no attention.
    """

    def precompute_audio_kv(self, audio: Tensor, num_unconditional: int) -> AudioKV:
        return AudioKV(*self._project_context(audio), num_unconditional)

    def forward(self, tokens: Tensor, audio_kv: AudioKV) -> Tensor:  # type: ignore[override]
        count = audio_kv.num_unconditional
        bias = cast(Tensor, self.to_out[0].bias)
        unconditional = bias.expand(count, *tokens.shape[1:])
        if count == len(tokens):
            return unconditional
        conditional = self._attend(tokens[count:], audio_kv.key, audio_kv.value)
        return torch.cat([unconditional, conditional]) if count else conditional


class SpatialTransformerBlock(nn.Module):
    """Spatial self-attention, audio cross-attention, gated feed-forward."""

    def __init__(self, channels: int, heads: int, context_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = AudioCrossAttention(channels, heads, context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, activation_fn="geglu")

    def forward(self, tokens: Tensor, audio_kv: AudioKV) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens))
        if len(tokens) < len(audio_kv.key) + audio_kv.num_unconditional:
            tokens = tokens.repeat(2, 1, 1)  # unconditional and conditional rows differ from here on
        tokens = tokens + self.attn2(self.norm2(tokens), audio_kv)
        out: Tensor = tokens + self.ff(self.norm3(tokens))
        return out


class SpatialTransformer(nn.Module):
    """Transformer over the pixels of each frame.

    The batch doubles if `audio_kv` has twice its rows: the unconditional items come first.
    """

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            [SpatialTransformerBlock(channels, config.attention_head_dim, config.cross_attention_dim)]
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, audio_kv: AudioKV) -> Tensor:
        frames = x.transpose(1, 2).flatten(0, 1)
        y = self.proj_in(self.norm(frames))
        tokens = y.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, audio_kv)
        y = self.proj_out(tokens.transpose(1, 2).unflatten(2, y.shape[-2:]))
        residual: Tensor = y.unflatten(0, (-1, x.shape[2])).transpose(1, 2)
        return _repeat_batch(x, residual) + residual


# --- motion ---


def sinusoidal_positions(max_frames: int, channels: int) -> Tensor:
    """Compute (1, max_frames, channels): sine in even channels, cosine in odd ones (parity pack 2.7)."""
    position = torch.arange(max_frames, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2, dtype=torch.float32) * (-math.log(10000.0) / channels))
    return torch.stack([torch.sin(position * rate), torch.cos(position * rate)], dim=-1).flatten(1)[None]


class PositionalEncoding(nn.Module):
    """Positional encoding over frames, part of the checkpoint; it limits the frames of a window."""

    pe: Tensor

    def __init__(self, max_frames: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoidal_positions(max_frames, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.pe[:, : tokens.shape[1]]


class TemporalAttention(Attention):
    """Self-attention over frames; the positions are added to query, key and value."""

    def __init__(self, channels: int, heads: int, max_frames: int) -> None:
        super().__init__(channels, heads)
        self.pos_encoder = PositionalEncoding(max_frames, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(self.pos_encoder(tokens))


class TemporalTransformerBlock(nn.Module):
    """Two temporal self-attentions and a gated feed-forward. Tokens are (N, F, C), one row per pixel."""

    def __init__(self, channels: int, heads: int, max_frames: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            [TemporalAttention(channels, heads, max_frames) for _ in range(2)]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(2)])
        self.ff = FeedForward(channels, activation_fn="geglu")
        self.ff_norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            tokens = tokens + attention(norm(tokens))
        out: Tensor = tokens + self.ff(self.ff_norm(tokens))
        return out


class TemporalTransformer(nn.Module):
    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(MOTION_NORM_GROUPS, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [TemporalTransformerBlock(channels, config.motion_heads, config.motion_max_frames)]
        )
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, _, height, width = x.shape
        y = apply_per_frame(self.norm, x)
        # (B*H*W, F, C); of one item this is a view that a linear layer would multiply pixel by pixel.
        tokens = self.proj_in(y.permute(0, 3, 4, 2, 1).flatten(0, 2).contiguous())
        for block in self.transformer_blocks:
            tokens = block(tokens)
        y = self.proj_out(tokens).unflatten(0, (batch, height, width))
        out: Tensor = x + y.permute(0, 4, 3, 1, 2)
        return out


class MotionModule(nn.Module):
    """Wrapper that exists only as a level in the key names."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.temporal_transformer(x)
        return out


# --- convolution ---


class ResnetBlock(nn.Module):
    """Two convolutions with the time embedding (1 or B, D) added in between.

    The group norms pool over the frames of a window.
    """

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(config.time_embed_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = apply_per_frame(self.conv1, F.silu(self.norm1(x)))
        shift = apply_per_row(self.time_emb_proj, F.silu(time))[:, :, None, None, None]
        y = y + _repeat_batch(shift, y)
        y = apply_per_frame(self.conv2, F.silu(self.norm2(y)))
        return (x if self.conv_shortcut is None else apply_per_frame(self.conv_shortcut, x)) + y


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return apply_per_frame(self.conv, x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to the size of the next skip (twice the size, except for odd inputs)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return apply_per_frame(self.conv, F.interpolate(x, size=(x.shape[2], *size), mode="nearest"))


# --- blocks ---


class DownBlock(nn.Module):
    """Layers of residual block, attention and motion module; every output is a skip connection."""

    def __init__(
        self, in_channels: int, out_channels: int, config: UNetConfig, *, attention: bool, last: bool
    ) -> None:
        super().__init__()
        layers = range(config.layers_per_block)
        self.resnets = nn.ModuleList(
            [ResnetBlock(out_channels if i else in_channels, out_channels, config) for i in layers]
        )
        self.attentions = _build_layers(layers, attention, SpatialTransformer, out_channels, config)
        self.motion_modules = _build_layers(
            layers, config.motion_in_encoder, MotionModule, out_channels, config
        )
        self.downsamplers = None if last else nn.ModuleList([Downsample(out_channels)])

    def forward(self, x: Tensor, time: Tensor, layer_kvs: Sequence[AudioKV]) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i in range(len(self.resnets)):
            x = _run_layer(self, i, x, time, layer_kvs)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, config) for _ in range(2)])
        self.attentions = nn.ModuleList([SpatialTransformer(channels, config)])

    def forward(self, x: Tensor, time: Tensor, layer_kvs: Sequence[AudioKV]) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, time), layer_kvs[0])
        out: Tensor = self.resnets[1](x, time)
        return out


class UpBlock(nn.Module):
    """Layers that each concatenate the newest skip connection."""

    def __init__(
        self,
        in_channels: int,
        skip_channels: list[int],
        out_channels: int,
        config: UNetConfig,
        *,
        attention: bool,
        last: bool,
    ) -> None:
        super().__init__()
        layers = range(len(skip_channels))
        self.resnets = nn.ModuleList(
            [
                ResnetBlock((out_channels if i else in_channels) + skip, out_channels, config)
                for i, skip in enumerate(skip_channels)
            ]
        )
        self.attentions = _build_layers(layers, attention, SpatialTransformer, out_channels, config)
        self.motion_modules = _build_layers(
            layers, config.motion_in_decoder, MotionModule, out_channels, config
        )
        self.upsamplers = None if last else nn.ModuleList([Upsample(out_channels)])

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        layer_kvs: Sequence[AudioKV],
        skips: Sequence[Tensor],
        first_layer: int = 0,
        size: torch.Size | None = None,
    ) -> Tensor:
        """Run one layer per skip from `first_layer` on, then upsample to `size`.

        Args:
            skips: oldest first; the layers consume them from the newest.
            size: of the next block's skips; None in the last block.
        """
        for i, skip in enumerate(reversed(skips), start=first_layer):
            x = torch.cat([x, _repeat_batch(skip, x)], dim=1)
            x = _run_layer(self, i, x, time, layer_kvs)
        return x if self.upsamplers is None else self.upsamplers[0](x, size)


def _repeat_batch(tensor: Tensor, x: Tensor) -> Tensor:
    """Repeat `tensor` to the batch size of `x`, which may have doubled for guidance since.

    The result is a real copy: an expanded view would change memory layout and summation order downstream.
    """
    return tensor if len(tensor) == len(x) else torch.cat([tensor] * (len(x) // len(tensor)))


def _build_layers(
    layers: range, present: bool, kind: type[nn.Module], channels: int, config: UNetConfig
) -> nn.ModuleList | None:
    return nn.ModuleList([kind(channels, config) for _ in layers]) if present else None


def _run_layer(
    block: DownBlock | UpBlock, i: int, x: Tensor, time: Tensor, layer_kvs: Sequence[AudioKV]
) -> Tensor:
    x = block.resnets[i](x, time)
    if block.attentions is not None:
        x = block.attentions[i](x, layer_kvs[i])
    if block.motion_modules is not None:
        x = block.motion_modules[i](x)
    return x


# --- the model ---

AudioContext = tuple[tuple[AudioKV, ...], ...]
"""The `AudioKV` of every cross-attention layer, grouped by block in the order of computation."""

Prediction = tuple[Tensor, Tensor]
"""Predicted noise (B, out_channels, F, H, W), and the coarse features that a later step may reuse."""


class LatentSyncUNet(nn.Module):
    """The denoising network; build it on the meta device and load a checkpoint strictly."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], config.time_embed_dim)

        skips = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            self.down_blocks.append(
                DownBlock(widths[max(0, i - 1)], width, config, attention=not last, last=last)
            )
            skips += [width] * (config.layers_per_block + (not last))

        self.mid_block = MidBlock(widths[-1], config)

        self.up_blocks = nn.ModuleList()
        in_channels = widths[-1]
        for i, width in enumerate(reversed(widths)):
            block_skips = [skips.pop() for _ in range(config.layers_per_block + 1)]
            last = i == len(widths) - 1
            self.up_blocks.append(
                UpBlock(in_channels, block_skips, width, config, attention=i > 0, last=last)
            )
            in_channels = width

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Predict the noise.

        Args:
            sample: (B, in_channels, F, H, W).
            timestep: scalar, or one for each batch item.
            encoder_hidden_states: (B*F, T, cross_attention_dim) audio tokens, row = b * F + f.

        Returns:
            (B, out_channels, F, H, W).
        """
        audio_context = self.precompute_audio_kv(encoder_hidden_states)
        return self.predict(sample, timestep, audio_context)[0]

    def precompute_audio_kv(self, audio: Tensor, num_unconditional: int = 0) -> AudioContext:
        """Compute the keys and values of all audio cross-attention layers, once per window.

        Args:
            audio: (rows, T, cross_attention_dim) of the conditional rows; rows may be 0.
            num_unconditional: rows without audio that precede the conditional ones.
        """
        return tuple(
            tuple(
                attention.transformer_blocks[0].attn2.precompute_audio_kv(audio, num_unconditional)
                for attention in block.attentions or ()
            )
            for block in self.blocks
        )

    def predict(
        self,
        sample: Tensor,
        timestep: Tensor,
        audio_context: AudioContext,
        cached_features: Tensor | None = None,
    ) -> Prediction:
        """Predict the noise, with or without the feature cache.

        Args:
            sample: (B, in_channels, F, H, W).
            timestep: scalar, or one for each batch item.
            audio_context: from `precompute_audio_kv`, B*F rows; for guidance B*F unconditional rows followed
                by B*F conditional ones.
            cached_features: coarse features of an earlier step (DeepCache). Only the finest layer is then
                computed.

        Returns:
            Noise (B', out_channels, F, H, W) with B' = rows / F, and the coarse features of the same batch.
        """
        angles = self.time_proj(timestep.reshape(-1))  # float32 in every precision
        time = apply_per_row(self.time_embedding, angles.to(sample.dtype))
        first_skip = apply_per_frame(self.conv_in, sample.contiguous(memory_format=torch.channels_last_3d))
        features = cached_features
        if features is None:
            features = self._coarse_features(first_skip, time, audio_context)
        last = self.blocks[-1]
        x = last(features, time, audio_context[-1], [first_skip], first_layer=len(last.resnets) - 1)
        return apply_per_frame(self.conv_out, F.silu(self.conv_norm_out(x))), features

    def _coarse_features(self, x: Tensor, time: Tensor, audio_context: AudioContext) -> Tensor:
        """Run everything between the first convolution and the last layer, which takes the first skip."""
        layer_kvs = iter(audio_context)
        skips: list[Tensor] = []
        for block in self.down_blocks:
            x, block_skips = block(x, time, next(layer_kvs))
            skips += block_skips
        x = self.mid_block(x, time, next(layer_kvs))
        for block in self.blocks[-len(self.up_blocks) :]:
            count = min(len(block.resnets), len(skips))
            block_skips, skips = skips[-count:], skips[: len(skips) - count]
            x = block(x, time, next(layer_kvs), block_skips, size=skips[-1].shape[-2:] if skips else None)
        return x

    @property
    def blocks(self) -> list[Any]:
        """All blocks in the order of `AudioContext`."""
        return [*self.down_blocks, self.mid_block, *self.up_blocks]
