"""Memory planning: how much of a window is processed at once, computed before the first window.

The constants are peak activations of the published networks, counted on their operations, with attention that
stores no attention matrix (their unit test counts them again). They grow with the image area, the frames and
the width. This module does not know tensors or devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

UNET_ACTIVATIONS = 10_600
"""Values per latent pixel, frame and batch item."""

ENCODER_ACTIVATIONS = 650
"""Values per pixel of one image."""

DECODER_ACTIVATIONS = 900
"""Values per pixel of one image. CUDA's group norms copy between memory layouts, which a CPU's do not."""

UNET_WIDTH, VAE_WIDTH = 320, 128
"""Widths of the finest level of the published networks, to which the constants above apply."""

PUBLISHED_PARAMETERS = 1_351_598_507
"""Of LatentSync's U-Net and VAE."""

PUBLISHED_OFFLOADABLE = 1_230_621_440
"""Parameters of the U-Net that can be offloaded."""

PUBLISHED_LARGEST_BLOCK = 350_813_440
"""Offloadable parameters of the largest block."""

USABLE_FRACTION = 0.85
"""Of the free memory. Convolution workspaces and fragmentation take the rest."""

MAX_ATTENTION_ROWS = 65_535
"""Sequences per call that fused attention accepts: it puts them on the second axis of a CUDA grid."""

MAX_BATCHED_WINDOWS = 8
"""Windows of several jobs in one forward pass. With more, each waits longer for little more throughput."""

DEFAULT_VAE_BATCH = 4
VAE_BATCHES = (32, 16, 8, DEFAULT_VAE_BATCH)


class MemoryMode(IntEnum):
    """How device memory is traded for speed; the results are the same up to rounding."""

    FULL = 0
    SEQUENTIAL = 1
    """The VAE takes one image at a time, and the two passes of guidance run one after the other."""
    OFFLOAD = 2
    """Also CPU offload: the U-Net's blocks stay in host memory and are copied to the device one at a time."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory model of a set of networks.

    Attributes:
        weights_bytes: of all networks.
        offloadable_bytes, largest_block_bytes: U-Net weights that can be offloaded, in all blocks and in the
            largest one.
        value_bytes: size of one value, 2 or 4.
        pixels, latent_pixels: of one face.
        frames: of a window.
        unet_width, vae_width: widths of the finest level.
    """

    weights_bytes: int
    offloadable_bytes: int
    largest_block_bytes: int
    value_bytes: int
    pixels: int
    latent_pixels: int
    frames: int
    unet_width: int = UNET_WIDTH
    vae_width: int = VAE_WIDTH

    def peak_bytes(self, plan: MemoryPlan) -> int:
        """Estimate the peak memory under `plan`."""
        batch = 2 if plan.mode is MemoryMode.FULL else 1
        unet = UNET_ACTIVATIONS * self.latent_pixels * self.frames * batch * self.unet_width / UNET_WIDTH
        weights = self.weights_bytes
        if plan.mode is MemoryMode.OFFLOAD:
            weights += self.largest_block_bytes - self.offloadable_bytes
        return weights + max(int(unet * self.value_bytes), self.vae_bytes(plan))

    def vae_bytes(self, plan: MemoryPlan) -> int:
        """Estimate the peak of the VAE's activations under `plan`."""
        encoder = ENCODER_ACTIVATIONS * min(plan.vae_batch, 2 * self.frames)  # masked and whole faces
        decoder = DECODER_ACTIVATIONS * min(plan.vae_batch, self.frames)
        values = max(encoder, decoder) * self.pixels * self.vae_width / VAE_WIDTH
        return int(values * self.value_bytes)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How much is processed at once.

    Attributes:
        mode: how the U-Net runs.
        vae_batch: images per VAE forward pass.
    """

    mode: MemoryMode = MemoryMode.FULL
    vae_batch: int = DEFAULT_VAE_BATCH

    def describe(self) -> str:
        guidance = "batched guidance" if self.mode is MemoryMode.FULL else "sequential guidance"
        offload = ", CPU offload" if self.mode is MemoryMode.OFFLOAD else ""
        return f"{guidance}, VAE batch {self.vae_batch}{offload}"


PLANS = (
    *(MemoryPlan(MemoryMode.FULL, batch) for batch in VAE_BATCHES),
    *(MemoryPlan(mode, 1) for mode in (MemoryMode.SEQUENTIAL, MemoryMode.OFFLOAD)),
)
"""All plans, from the fastest to the one with the smallest peak."""

DEFAULT_PLAN = MemoryPlan()
"""Used where the free memory is unknown."""


def plan_memory(free_bytes: int, estimate: MemoryEstimate) -> MemoryPlan | None:
    """Return the fastest plan that fits into the free device memory; None if no plan fits."""
    usable = USABLE_FRACTION * free_bytes
    return next((plan for plan in PLANS if estimate.peak_bytes(plan) <= usable), None)


def plan_with_graphs(free_bytes: int, estimate: MemoryEstimate, plan: MemoryPlan) -> MemoryPlan | None:
    """Return `plan` with the largest VAE batch that leaves memory for CUDA graphs of the U-Net.

    A graph keeps the U-Net's activations, so they add to the VAE's. None: they do not fit.
    """
    unet_bytes = estimate.peak_bytes(MemoryPlan(MemoryMode.FULL, vae_batch=0)) - estimate.weights_bytes
    usable = USABLE_FRACTION * free_bytes - unet_bytes
    candidates = PLANS[PLANS.index(plan) :] if plan.mode is MemoryMode.FULL else ()
    for candidate in candidates:
        vae_bytes = estimate.vae_bytes(candidate)
        if candidate.mode is MemoryMode.FULL and estimate.weights_bytes + vae_bytes <= usable:
            return candidate
    return None


def count_batched_windows(free_bytes: int, estimate: MemoryEstimate, plan: MemoryPlan) -> int:
    """Return how many windows of different jobs fit into one forward pass, 1 to `MAX_BATCHED_WINDOWS`.

    Attention over time has one sequence per latent pixel and guided pass, which bounds the windows as well.
    """
    if plan.mode is not MemoryMode.FULL:
        return 1
    window_bytes = estimate.peak_bytes(MemoryPlan(MemoryMode.FULL, vae_batch=0)) - estimate.weights_bytes
    available = USABLE_FRACTION * free_bytes - estimate.weights_bytes
    fitting = int(available // window_bytes)
    return max(1, min(MAX_BATCHED_WINDOWS, fitting, MAX_ATTENTION_ROWS // (2 * estimate.latent_pixels)))


def estimate_published(resolution: int, value_bytes: int) -> MemoryEstimate:
    """Estimate the memory of LatentSync's published networks without building them."""
    return MemoryEstimate(
        weights_bytes=PUBLISHED_PARAMETERS * value_bytes,
        offloadable_bytes=PUBLISHED_OFFLOADABLE * value_bytes,
        largest_block_bytes=PUBLISHED_LARGEST_BLOCK * value_bytes,
        value_bytes=value_bytes,
        pixels=resolution**2,
        latent_pixels=(resolution // 8) ** 2,
        frames=16,
    )
