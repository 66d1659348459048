"""Runs the checks of parity packs: folders whose `pack.json` lists checks, without fixed names or shapes."""

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
PACK_SMALL = Path(__file__).parent / "pack_small"


@dataclass(frozen=True, slots=True)
class Measure:
    """A worst difference and its limit."""

    name: str
    value: float
    limit: float

    @property
    def holds(self) -> bool:
        return self.value <= self.limit  # False for NaN


Check = Callable[[Path, Mapping[str, Any]], list[Measure]]


def find_packs() -> list[Path]:
    """Return the pack of the repository and the packs of PARITY_DIR.

    Without PARITY_DIR the full pack beside a development checkout is used if it exists.
    """
    if setting := os.environ.get("PARITY_DIR"):
        return [PACK_SMALL, *(Path(folder) for folder in setting.split(os.pathsep))]
    full = SHARED / "parity"
    return [PACK_SMALL, full] if (full / "pack.json").exists() else [PACK_SMALL]


def load_kind(kind: str) -> ModuleType:
    """Load the module `kinds/<kind>.py`; an unknown kind is an error, not a skipped check."""
    path = KINDS / f"{kind}.py"
    if not kind.isidentifier() or not path.exists():
        raise LookupError(f"pack.json names the unknown kind {kind!r}: add tests/parity/kinds/{kind}.py")
    spec = importlib.util.spec_from_file_location(f"parity_kind_{kind}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def read_checks(pack: Path) -> list[dict[str, Any]]:
    """Read the checks of a pack; an empty list is an error."""
    checks: list[dict[str, Any]] = json.loads((pack / "pack.json").read_text())["checks"]
    if not checks:
        raise ValueError(f"{pack / 'pack.json'} lists no checks")
    return checks


def run_check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    check: Check = load_kind(spec["kind"]).check
    return check(pack, spec)


def tensors(pack: Path, name: str) -> dict[str, Tensor]:
    """Load a safetensors file; half precision becomes float32, as the pack requires."""
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in load_file(pack / name).items()}


def difference(ours: Tensor | np.ndarray, stored: Tensor | np.ndarray) -> np.ndarray:
    """Return the absolute differences in float64; the shapes must be equal."""
    a, b = (np.asarray(value).astype(np.float64) for value in (ours, stored))
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: ours {a.shape}, stored {b.shape}")
    return np.abs(a - b)
