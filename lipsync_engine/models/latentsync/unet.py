"""LatentSync's audio-conditioned video U-Net, 1.5 and 1.6 alike: one file that reads top to bottom.

It predicts the noise of a short window of latents. Per frame it sees 13 channels (noisy latents, mask, masked
face, reference face) and hears 50 audio tokens through cross-attention. Frames of a window see each other in
two places: the residual blocks' group norms, whose statistics pool over all frames, and the motion modules,
which attend over time. Attention heads, not head size, are what `attention_head_dim` counts in the published
configuration.

Two things are taken out of the sampling loop because they do not change in it: keys and values of the sound
(`listen`), and, where a caller accepts that, everything but the finest layer (`predict` with `deep`).

Shapes: B batch, F frames, C channels, H x W latent pixels; activations are (B, C, F, H, W), in memory with
the channels last, so that a frame's convolution and a pixel's token are views. Facts and key names: parity
pack sections 1 and 2. It knows neither schedulers nor guidance nor files.
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


def per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2-D layer to each frame of (B, C, F, H, W)."""
    batch = x.shape[0]
    y: Tensor = layer(x.transpose(1, 2).flatten(0, 1))
    frames: Tensor = y.unflatten(0, (batch, -1)).transpose(1, 2)
    return frames


def each_alone(layer: nn.Module, rows: Tensor) -> Tensor:
    """Apply a layer to each of a few rows by itself: one row rounds otherwise than the same among others."""
    if len(rows) == 1:
        alone: Tensor = layer(rows)
        return alone
    return torch.cat([layer(row) for row in rows.split(1)])


# --- attention ---


class Attention(nn.Module):
    """Multi-head attention of (N, L, C) tokens to themselves or to a context; projections without bias."""

    def __init__(self, channels: int, heads: int, context_channels: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Tensor) -> Tensor:
        return self._attend(tokens, *self._keys_and_values(tokens))

    def _keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def _attend(self, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(self._split(self.to_q(tokens)), key, value)
        out: Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, tokens: Tensor) -> Tensor:
        heads: Tensor = tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads


class Sound(NamedTuple):
    """What one audio attention hears; the same at every step.

    Attributes:
        key, value: (rows, heads, T, head size).
        silent: rows before those that hear nothing.
    """

    key: Tensor
    value: Tensor
    silent: int


class AudioAttention(Attention):
    """Attention to sound. Without a bias on keys and values, silence leaves the output's bias alone."""

    def listen(self, audio: Tensor, silent: int) -> Sound:
        return Sound(*self._keys_and_values(audio), silent)

    def forward(self, tokens: Tensor, sound: Sound) -> Tensor:  # type: ignore[override]
        bias = cast(Tensor, self.to_out[0].bias)
        nothing = bias.expand(sound.silent, *tokens.shape[1:])
        if sound.silent == len(tokens):
            return nothing
        heard = self._attend(tokens[sound.silent :], sound.key, sound.value)
        return torch.cat([nothing, heard]) if sound.silent else heard


class SpatialTransformerBlock(nn.Module):
    """Self-attention inside the frame, audio cross-attention, gated feed-forward."""

    def __init__(self, channels: int, heads: int, context_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = AudioAttention(channels, heads, context_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, activation_fn="geglu")

    def forward(self, tokens: Tensor, sound: Sound) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens))
        if len(tokens) < len(sound.key) + sound.silent:  # here silent and heard rows part
            tokens = tokens.repeat(2, 1, 1)
        tokens = tokens + self.attn2(self.norm2(tokens), sound)
        out: Tensor = tokens + self.ff(self.norm3(tokens))
        return out


class SpatialTransformer(nn.Module):
    """Each frame by itself, its pixels as tokens. Items double where `sound` has rows for twice as many."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            [SpatialTransformerBlock(channels, config.attention_head_dim, config.cross_attention_dim)]
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, sound: Sound) -> Tensor:
        frames = x.transpose(1, 2).flatten(0, 1)
        y = self.proj_in(self.norm(frames))
        tokens = y.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, sound)
        y = self.proj_out(tokens.transpose(1, 2).unflatten(2, y.shape[-2:]))
        added: Tensor = y.unflatten(0, (-1, x.shape[2])).transpose(1, 2)
        return _for_both(x, added) + added


# --- motion ---


def positional_table(max_frames: int, channels: int) -> Tensor:
    """(1, max_frames, channels): sine in even channels, cosine in odd ones (parity pack 2.7)."""
    position = torch.arange(max_frames, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2, dtype=torch.float32) * (-math.log(10000.0) / channels))
    return torch.stack([torch.sin(position * rate), torch.cos(position * rate)], dim=-1).flatten(1)[None]


class PositionalTable(nn.Module):
    """A stored table, part of the checkpoint; it bounds the frames of a window."""

    pe: Tensor

    def __init__(self, max_frames: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("pe", positional_table(max_frames, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.pe[:, : tokens.shape[1]]


class TemporalAttention(Attention):
    """Self-attention over frames; the positions enter query, key and value."""

    def __init__(self, channels: int, heads: int, max_frames: int) -> None:
        super().__init__(channels, heads)
        self.pos_encoder = PositionalTable(max_frames, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(self.pos_encoder(tokens))


class TemporalTransformerBlock(nn.Module):
    """Two attentions over time, then a gated feed-forward. Tokens are (N, F, C), one row per pixel."""

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
        y = per_frame(self.norm, x)
        tokens = self.proj_in(y.permute(0, 3, 4, 2, 1).flatten(0, 2))  # (B*H*W, F, C)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        y = self.proj_out(tokens).unflatten(0, (batch, height, width))
        out: Tensor = x + y.permute(0, 4, 3, 1, 2)
        return out


class MotionModule(nn.Module):
    """Only a level in the key names."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, config)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.temporal_transformer(x)
        return out


# --- convolution ---


class ResnetBlock(nn.Module):
    """Two convolutions, the time embedding (1 or B, D) between them; norms pool over a window's frames."""

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
        y = per_frame(self.conv1, F.silu(self.norm1(x)))
        at = each_alone(self.time_emb_proj, F.silu(time))[:, :, None, None, None]
        y = y + _for_both(at, y)
        y = per_frame(self.conv2, F.silu(self.norm2(y)))
        return (x if self.conv_shortcut is None else per_frame(self.conv_shortcut, x)) + y


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return per_frame(self.conv, x)


class Upsample(nn.Module):
    """Nearest neighbour to the size of the skip that comes next (twice the size, but for odd inputs)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return per_frame(self.conv, F.interpolate(x, size=(x.shape[2], *size), mode="nearest"))


# --- blocks ---


class DownBlock(nn.Module):
    """Layers of resnet, attention, motion; every output is a skip."""

    def __init__(
        self, in_channels: int, out_channels: int, config: UNetConfig, *, attention: bool, last: bool
    ) -> None:
        super().__init__()
        layers = range(config.layers_per_block)
        self.resnets = nn.ModuleList(
            [ResnetBlock(out_channels if i else in_channels, out_channels, config) for i in layers]
        )
        self.attentions = _each(layers, attention, SpatialTransformer, out_channels, config)
        self.motion_modules = _each(layers, config.motion_in_encoder, MotionModule, out_channels, config)
        self.downsamplers = None if last else nn.ModuleList([Downsample(out_channels)])

    def forward(self, x: Tensor, time: Tensor, sounds: Sequence[Sound]) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for i in range(len(self.resnets)):
            x = _layer(self, i, x, time, sounds)
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

    def forward(self, x: Tensor, time: Tensor, sounds: Sequence[Sound]) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, time), sounds[0])
        out: Tensor = self.resnets[1](x, time)
        return out


class UpBlock(nn.Module):
    """Layers that each take the newest skip in."""

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
        self.attentions = _each(layers, attention, SpatialTransformer, out_channels, config)
        self.motion_modules = _each(layers, config.motion_in_decoder, MotionModule, out_channels, config)
        self.upsamplers = None if last else nn.ModuleList([Upsample(out_channels)])

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        sounds: Sequence[Sound],
        skips: Sequence[Tensor],
        first_layer: int = 0,
        size: torch.Size | None = None,
    ) -> Tensor:
        """As many layers from `first_layer` on as there are skips, oldest first; then to `size`, if given."""
        for i, skip in enumerate(reversed(skips), start=first_layer):
            x = torch.cat([x, _for_both(skip, x)], dim=1)
            x = _layer(self, i, x, time, sounds)
        return x if self.upsamplers is None else self.upsamplers[0](x, size)


def _for_both(part: Tensor, x: Tensor) -> Tensor:
    """As many items as `x` has, where silent and heard items have parted since: all silent ones first.

    A real copy: an expanded one would have what is made of it lie, and be summed, in another order.
    """
    return part if len(part) == len(x) else torch.cat([part] * (len(x) // len(part)))


def _each(
    layers: range, present: bool, kind: type[nn.Module], channels: int, config: UNetConfig
) -> nn.ModuleList | None:
    return nn.ModuleList([kind(channels, config) for _ in layers]) if present else None


def _layer(block: DownBlock | UpBlock, i: int, x: Tensor, time: Tensor, sounds: Sequence[Sound]) -> Tensor:
    x = block.resnets[i](x, time)
    if block.attentions is not None:
        x = block.attentions[i](x, sounds[i])
    if block.motion_modules is not None:
        x = block.motion_modules[i](x)
    return x


# --- the model ---

Heard = tuple[tuple[Sound, ...], ...]
"""A `Sound` for each attention of each block, blocks in the order of their computation."""


class LatentSyncUNet(nn.Module):
    """The network; build it on the meta device and load a checkpoint strictly."""

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
        running = widths[-1]
        for i, width in enumerate(reversed(widths)):
            taken = [skips.pop() for _ in range(config.layers_per_block + 1)]
            last = i == len(widths) - 1
            self.up_blocks.append(UpBlock(running, taken, width, config, attention=i > 0, last=last))
            running = width

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
        return self.predict(sample, timestep, self.listen(encoder_hidden_states))[0]

    def listen(self, audio: Tensor, silent: int = 0) -> Heard:
        """What every audio attention hears, for all steps of a window.

        Args:
            audio: (rows, T, cross_attention_dim); rows may be 0.
            silent: rows of silence before those.
        """
        return tuple(
            tuple(
                attention.transformer_blocks[0].attn2.listen(audio, silent)
                for attention in block.attentions or ()
            )
            for block in self.blocks
        )

    def predict(
        self, sample: Tensor, timestep: Tensor, heard: Heard, deep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict the noise, and give what an earlier step's coarser layers said to a later one.

        Args:
            sample: (B, in_channels, F, H, W).
            timestep: scalar, or one for each item.
            heard: from `listen`, B*F rows; or where items are seen with and without sound, B*F silent ones
                and B*F that hear.
            deep: from an earlier step: then only the finest layer is computed.

        Returns:
            (B', out_channels, F, H, W) with B' = rows heard / F, and `deep` of the same batch.
        """
        angles = self.time_proj(timestep.reshape(-1))  # float32 in every precision
        time = each_alone(self.time_embedding, angles.to(sample.dtype))
        first = per_frame(self.conv_in, sample.contiguous(memory_format=torch.channels_last_3d))
        if deep is None:
            deep = self._deep(first, time, heard)
        last = self.blocks[-1]
        x = last(deep, time, heard[-1], [first], first_layer=len(last.resnets) - 1)
        return per_frame(self.conv_out, F.silu(self.conv_norm_out(x))), deep

    def _deep(self, x: Tensor, time: Tensor, heard: Heard) -> Tensor:
        """Everything between the first convolution and the last layer, which takes the first skip in."""
        sounds = iter(heard)
        skips: list[Tensor] = []
        for block in self.down_blocks:
            x, new = block(x, time, next(sounds))
            skips += new
        x = self.mid_block(x, time, next(sounds))
        for block in self.blocks[-len(self.up_blocks) :]:
            count = min(len(block.resnets), len(skips))
            taken, skips = skips[-count:], skips[: len(skips) - count]
            x = block(x, time, next(sounds), taken, size=skips[-1].shape[-2:] if skips else None)
        return x

    @property
    def blocks(self) -> list[Any]:
        """In the order of `Heard`."""
        return [*self.down_blocks, self.mid_block, *self.up_blocks]
