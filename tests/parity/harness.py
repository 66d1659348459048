"""A parity pack: a folder whose `pack.json` lists checks; nothing here knows file names, shapes or counts."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.paths import SHARED

KINDS = Path(__file__).parent / "kinds"


@dataclass(frozen=True, slots=True)
class Measure:
    """A worst difference and the most that it may be."""

    name: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.value <= self.limit  # False for NaN


Check = Callable[[Path, Mapping[str, Any]], list[Measure]]


def pack_dir() -> Path:
    """PARITY_DIR, else the folder that lies beside a development checkout; it need not exist."""
    given = os.environ.get("PARITY_DIR")
    return Path(given) if given else SHARED / "parity"


def load_kind(kind: str) -> ModuleType:
    """The module `kinds/<kind>.py`; an unknown kind is an error, not a skipped check."""
    path = KINDS / f"{kind}.py"
    if not kind.isidentifier() or not path.exists():
        raise LookupError(f"pack.json names the kind {kind!r}, for which there is no check")
    spec = importlib.util.spec_from_file_location(f"parity_kind_{kind}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def checks(pack: Path) -> list[dict[str, Any]]:
    """What the pack asks for; a pack that asks for nothing proves nothing."""
    listed: list[dict[str, Any]] = json.loads((pack / "pack.json").read_text())["checks"]
    if not listed:
        raise ValueError(f"{pack / 'pack.json'} lists no checks")
    return listed


def run(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    check: Check = load_kind(spec["kind"]).check
    return check(pack, spec)


def tensors(pack: Path, name: str) -> dict[str, Tensor]:
    """A safetensors file; half precision becomes float32, as the pack asks."""
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in load_file(pack / name).items()}


def difference(ours: Tensor | np.ndarray, stored: Tensor | np.ndarray) -> np.ndarray:
    """Absolute differences in float64; shapes must agree."""
    a, b = (np.asarray(value).astype(np.float64) for value in (ours, stored))
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: ours {a.shape}, stored {b.shape}")
    return np.abs(a - b)
