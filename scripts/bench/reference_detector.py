"""The reference's face detector by shape: the same graphs with random weights, run by the library it uses.

LatentSync finds faces with insightface's FaceAnalysis: SCRFD-10G with five points at 512 px, then 106
landmarks of each face at 192 px. Those weights are for research only, so they are not here; a frame's cost
depends on the layers' shapes alone. The shapes are the published ones: insightface's `scrfd_10g_bnkps`
configuration and its description of `2d106det` (MobileNet 0.5). Random weights find no face, so the box is
given.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

DETECT_SIDE, LANDMARK_SIDE = 512, 192
PLANES, BLOCKS, BASE = (56, 88, 88, 224), (3, 4, 2, 3), 56
NECK, HEAD, HEAD_DEPTH, ANCHORS = 56, 80, 3, 2
NO_FACE = -4.6
"""The scores' bias before training: no cell answers, so there is no overlap of faces to work out."""

PUBLISHED = {
    "detector": {"params_m": 4.23, "gflops": 9.98},
    "landmarks": {"params_m": 1.26},
}
"""Files of 16.9 MB and 5.03 MB of float32; the operations are those of the detector without points at VGA."""


def _conv(into: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class _Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(into, out, stride=stride), _conv(out, out)
        aside: list[nn.Module] = [nn.AvgPool2d(stride, stride)] if stride > 1 else []
        self.aside = (
            nn.Sequential(*aside, _conv(into, out, 1)) if stride > 1 or into != out else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.aside(x))


class _Head(nn.Module):
    """Of one stride: scores, boxes and points of two anchors a cell, a row each."""

    def __init__(self) -> None:
        super().__init__()
        sides = [NECK] + [HEAD] * HEAD_DEPTH
        self.shared = nn.Sequential(
            *(nn.Sequential(_conv(a, b), nn.ReLU()) for a, b in itertools.pairwise(sides))
        )
        self.width = (1, 4, 10)
        self.answers = nn.ModuleList(nn.Conv2d(HEAD, ANCHORS * width, 3, padding=1) for width in self.width)
        nn.init.constant_(self.answers[0].bias, NO_FACE)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.shared(x)
        score, box, points = (
            answer(x).permute(0, 2, 3, 1).reshape(-1, width)
            for answer, width in zip(self.answers, self.width, strict=True)
        )
        return [score.sigmoid(), box * self.scale, points]


class Detector(nn.Module):
    """SCRFD-10G with five points: (1, 3, H, W) → scores, boxes and points, each at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        stem = [_conv(3, BASE // 2, stride=2), _conv(BASE // 2, BASE // 2), _conv(BASE // 2, BASE)]
        self.stem = nn.Sequential(*(nn.Sequential(conv, nn.ReLU()) for conv in stem), nn.MaxPool2d(2, 2))
        self.stages = nn.ModuleList()
        into = BASE
        for stage, (out, blocks) in enumerate(zip(PLANES, BLOCKS, strict=True)):
            rest = [_Block(out, out, 1) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(_Block(into, out, 1 if stage == 0 else 2), *rest))
            into = out
        self.laterals = nn.ModuleList(nn.Conv2d(planes, NECK, 1) for planes in PLANES[1:])
        self.tops = nn.ModuleList(nn.Conv2d(NECK, NECK, 3, padding=1) for _ in PLANES[1:])
        self.downs = nn.ModuleList(nn.Conv2d(NECK, NECK, 3, 2, 1) for _ in PLANES[2:])
        self.bottoms = nn.ModuleList(nn.Conv2d(NECK, NECK, 3, padding=1) for _ in PLANES[2:])
        self.heads = nn.ModuleList(_Head() for _ in PLANES[1:])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, seen = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            seen.append(x)
        levels = [lateral(x) for lateral, x in zip(self.laterals, seen[1:], strict=True)]
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], scale_factor=2.0, mode="nearest")
        levels = [top(level) for top, level in zip(self.tops, levels, strict=True)]
        for i, down in enumerate(self.downs):
            levels[i + 1] = levels[i + 1] + down(levels[i])
        levels[1:] = [bottom(level) for bottom, level in zip(self.bottoms, levels[1:], strict=True)]
        answers = [head(level) for head, level in zip(self.heads, levels, strict=True)]
        return [answer for kind in zip(*answers, strict=True) for answer in kind]


class Landmarks(nn.Module):
    """MobileNet at half width, a convolution and a linear layer: (1, 3, 192, 192) → (1, 212)."""

    STEPS = (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *((512, 1),) * 5,
        (1024, 2),
        (1024, 1),
    )

    def __init__(self) -> None:
        super().__init__()

        def active(into: int, out: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
            return nn.Sequential(_conv(into, out, kernel, stride, groups), nn.PReLU(out))

        layers, into = [active(3, 16, 3, 2)], 16
        for full, stride in self.STEPS:
            layers += [active(into, into, 3, stride, into), active(into, full // 2, 1, 1)]
            into = full // 2
        self.body = nn.Sequential(*layers, active(into, 64, 3, 2), nn.Flatten(), nn.Linear(64 * 3 * 3, 212))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The published graph begins with these two, by which insightface knows it from others.
        found: torch.Tensor = self.body((x - 127.5) * 0.0078125)
        return found


def cost(net: nn.Module, height: int, width: int) -> dict[str, float]:
    """Millions of parameters, and milliards of multiply-adds for one picture."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net(torch.zeros(1, 3, height, width))
    params = sum(tensor.numel() for tensor in net.parameters())
    return {"params_m": round(params / 1e6, 2), "gmacs": round(counter.get_total_flops() / 2e9, 2)}


def check_cost(counts: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare the counted cost with the published one.

    Raises:
        ValueError: the graphs are not those of the published detector.
    """
    detector, landmarks = counts["detector"], counts["landmarks"]
    shares = {
        "the detector's parameters": detector["params_m"] / PUBLISHED["detector"]["params_m"],
        "the detector's operations": detector["gmacs"] / PUBLISHED["detector"]["gflops"],
        "the landmarks' parameters": landmarks["params_m"] / PUBLISHED["landmarks"]["params_m"],
    }
    for name, share in shares.items():
        if abs(share - 1) > 0.02:
            raise ValueError(f"{name} are {share:.3f} times the published figure, which must be within 2 %")


class ReferenceDetector:
    """The reference's calls for one picture on one thread.

    Args:
        folder: takes the two graphs.
    """

    def __init__(self, folder: Path) -> None:
        from insightface.app import FaceAnalysis

        torch.manual_seed(0)
        nets = {"det_10g": (Detector(), DETECT_SIDE), "2d106det": (Landmarks(), LANDMARK_SIDE)}
        for name, (net, side) in nets.items():
            picture = torch.zeros(1, 3, side, side)
            torch.onnx.export(net.eval(), (picture,), folder / f"{name}.onnx", dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._app = FaceAnalysis(
            str(folder),
            allowed_modules=["detection", "landmark_2d_106"],
            providers=["CPUExecutionProvider"],
            sess_options=options,
        )
        self._app.prepare(ctx_id=-1, det_size=(DETECT_SIDE, DETECT_SIDE))
        self.cost = {
            "detector": cost(nets["det_10g"][0], 480, 640) | {"published": PUBLISHED["detector"]},
            "landmarks": cost(nets["2d106det"][0], LANDMARK_SIDE, LANDMARK_SIDE)
            | {"published": PUBLISHED["landmarks"]},
        }
        check_cost(self.cost)

    def __call__(self, image: NDArray[np.uint8], box: NDArray[np.float32]) -> Any:
        """106 landmarks in `image`, uint8 (H, W, 3), of the face in `box`, float32 (4,): x0, y0, x1, y1."""
        from insightface.app.common import Face

        self._app.det_model.detect(image)
        return self._app.models["landmark_2d_106"].get(image, Face(bbox=box))
