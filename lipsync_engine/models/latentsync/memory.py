"""How much is done at once, by what a device's memory holds: computed before the first window, not by trying.

Figures are values alive at the same time in the published networks, counted on their operations, with
attention that keeps no matrix of weights (this module's test counts them again); all grow with the
picture's area, the frames and the width. It knows neither tensors nor devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

UNET_VALUES = 10_600
"""Per latent pixel, frame and batch item."""

ENCODER_VALUES = 650
"""Per pixel of one picture."""

DECODER_VALUES = 780
"""Per pixel of one picture."""

UNET_WIDTH, VAE_WIDTH = 320, 128
"""Finest widths of the networks that the figures belong to."""

PUBLISHED_VALUES, PUBLISHED_STREAMED, PUBLISHED_LARGEST_BLOCK = 1_351_598_507, 1_230_621_440, 350_813_440
"""Of LatentSync's networks: all weights; the U-Net's that can wait in the host's memory; of one block."""

USABLE = 0.85
"""Share of the free memory that is planned with: workspaces of convolutions and gaps take the rest."""

MOST_WINDOWS = 8
"""Of several jobs in one run of the U-Net; with more each would wait longer for hardly more speed."""

DEFAULT_VAE_BATCH = 4
VAE_BATCHES = (32, 16, 8, DEFAULT_VAE_BATCH)


class Thrift(IntEnum):
    """How little device memory is used at once; each step costs speed and nothing else."""

    NONE = 0
    SINGLE = 1
    """The VAE takes one picture at a time, the U-Net the two halves of guidance one after the other."""
    OFFLOADED = 2
    """The U-Net's weights also wait in the host's memory, and come to the device block by block."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a window takes.

    Attributes:
        weights_bytes: of all networks.
        streamed_bytes, largest_block_bytes: of the U-Net's blocks, all and the largest, as far as they can
            wait in the host's memory.
        value_bytes: of one value, 2 or 4.
        pixels, latent_pixels: of one face.
        frames: of a window.
        unet_width, vae_width: finest widths.
    """

    weights_bytes: int
    streamed_bytes: int
    largest_block_bytes: int
    value_bytes: int
    pixels: int
    latent_pixels: int
    frames: int
    unet_width: int = UNET_WIDTH
    vae_width: int = VAE_WIDTH

    def peak_bytes(self, plan: MemoryPlan) -> int:
        """Most bytes alive at once under `plan`."""
        items = 2 if plan.thrift is Thrift.NONE else 1
        unet = UNET_VALUES * self.latent_pixels * self.frames * items * self.unet_width / UNET_WIDTH
        vae = max(ENCODER_VALUES, DECODER_VALUES) * self.pixels * plan.vae_batch * self.vae_width / VAE_WIDTH
        weights = self.weights_bytes
        if plan.thrift is Thrift.OFFLOADED:
            weights += self.largest_block_bytes - self.streamed_bytes
        return weights + int(max(unet, vae) * self.value_bytes)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What to do at once.

    Attributes:
        thrift: how the work is cut.
        vae_batch: pictures that the VAE takes at once.
    """

    thrift: Thrift = Thrift.NONE
    vae_batch: int = DEFAULT_VAE_BATCH

    def describe(self) -> str:
        guidance = "both halves of guidance at once" if self.thrift is Thrift.NONE else "guidance in halves"
        pictures = "1 picture" if self.vae_batch == 1 else f"{self.vae_batch} pictures"
        weights = ", weights wait in the host's memory" if self.thrift is Thrift.OFFLOADED else ""
        return f"{guidance}, VAE {pictures} at a time{weights}"


PLANS = (
    *(MemoryPlan(Thrift.NONE, batch) for batch in VAE_BATCHES),
    *(MemoryPlan(thrift, 1) for thrift in (Thrift.SINGLE, Thrift.OFFLOADED)),
)
"""From the fastest to the leanest."""

DEFAULT_PLAN = MemoryPlan()
"""Where nothing is known of the memory."""


def plan_memory(free_bytes: int, needs: Needs) -> MemoryPlan | None:
    """The fastest plan that fits into what is free on the device; None: not even the leanest does."""
    usable = USABLE * free_bytes
    return next((plan for plan in PLANS if needs.peak_bytes(plan) <= usable), None)


def windows_at_once(free_bytes: int, needs: Needs, plan: MemoryPlan) -> int:
    """How many windows of different jobs fit into one run of the U-Net, 1 to `MOST_WINDOWS`."""
    if plan.thrift is not Thrift.NONE:
        return 1
    each = needs.peak_bytes(MemoryPlan(Thrift.NONE, vae_batch=0)) - needs.weights_bytes
    room = USABLE * free_bytes - needs.weights_bytes
    return max(1, min(MOST_WINDOWS, int(room // each)))


def published_needs(resolution: int, value_bytes: int) -> Needs:
    """Of LatentSync's published networks, without building them."""
    return Needs(
        weights_bytes=PUBLISHED_VALUES * value_bytes,
        streamed_bytes=PUBLISHED_STREAMED * value_bytes,
        largest_block_bytes=PUBLISHED_LARGEST_BLOCK * value_bytes,
        value_bytes=value_bytes,
        pixels=resolution**2,
        latent_pixels=(resolution // 8) ** 2,
        frames=16,
    )
