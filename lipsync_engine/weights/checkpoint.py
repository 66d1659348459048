"""Checkpoint files to tensors, and tensors into a module, strict in both directions.

This module knows file formats and key names as strings, not what the tensors mean. Model families convert the
keys of published checkpoints.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lipsync_engine.errors import ErrorCode, WeightsError

MAX_NAMES = 3


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file to the CPU.

    `.safetensors` files and zip-based `.pt`, `.pth`, `.bin` files are memory mapped, so tensors are read on
    first use. Legacy pickles cannot be mapped and are read completely. Pickles are opened with the
    weights-only unpickler, which runs no code from the file.

    Returns:
        Name → tensor for `.safetensors`; otherwise the file's own dict, which may be nested (`state_dict`,
        `dims` …).

    Raises:
        WeightsError: WEIGHTS_MISSING, WEIGHTS_TRUNCATED (truncated or damaged), WEIGHTS_UNSAFE (contains
            code), or WEIGHTS_ARCHITECTURE (valid, but not a checkpoint).
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise WeightsError(
            ErrorCode.WEIGHTS_MISSING,
            f"{path} does not exist: get it with `lipsync weights pull` or `lipsync weights import`.",
        ) from None
    except PermissionError as error:
        raise WeightsError(
            ErrorCode.WEIGHTS_MISSING, f"{path} cannot be read ({error.strerror}): change its permissions."
        ) from error
    except pickle.UnpicklingError as error:
        if _is_code_refusal(path, str(error)):
            raise WeightsError(
                ErrorCode.WEIGHTS_UNSAFE,
                f"{path.name} may contain program code and was not opened: get the weights from their "
                "publisher, or as .safetensors.",
            ) from error
        raise _damaged_error(path) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, *_UNPICKLE_ERRORS) as error:
        raise _damaged_error(path) from error
    if not isinstance(loaded, dict):
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"{path.name} contains a {type(loaded).__name__} instead of a dict: get the file that "
            "`lipsync weights list` names.",
        )
    return loaded


_UNPICKLE_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error, AssertionError)
"""Raised by torch's unpickler, besides UnpicklingError, on bytes that are not a complete pickle."""


def _is_code_refusal(path: Path, message: str) -> bool:
    """Return whether the weights-only unpickler refused the content, rather than failed on damaged bytes.

    It names what is neither a tensor nor a plain value. It also rejects newer pickle protocols, which
    torch never writes.
    """
    if any(text in message for text in ("Unsupported global", "Unsupported class", "blocklisted")):
        return True
    with path.open("rb") as file:
        head = file.read(2)
    return head[:1] == b"\x80" and head[1:] in (b"\x03", b"\x04", b"\x05")


def _damaged_error(path: Path) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_TRUNCATED,
        f"{path} is truncated or damaged: delete it, then run `lipsync weights pull` or `lipsync weights "
        "import` again.",
    )


def load_strict(
    module: nn.Module, state: Mapping[str, Tensor], *, recomputable: Mapping[str, Tensor] | None = None
) -> None:
    """Assign tensors to a module without copying them; every key and shape must match in both directions.

    Build the module under `torch.device("meta")`, so that its initial values take no memory. Its parameters
    take the dtype of the state's tensors.

    Args:
        module: parameters and buffers are replaced.
        state: name → tensor.
        recomputable: tensors for keys of the module that the state may lack.

    Raises:
        WeightsError: WEIGHTS_ARCHITECTURE, with the number of missing, unexpected and misshapen keys and the
            first of each; the module is unchanged.
    """
    expected = module.state_dict()
    full = {**{name: t for name, t in (recomputable or {}).items() if name in expected}, **state}
    missing = [name for name in expected if name not in full]
    unexpected = [name for name in full if name not in expected]
    misshapen = [
        f"{name} has {_format_shape(full[name])} instead of {_format_shape(tensor)}"
        for name, tensor in expected.items()
        if name in full and full[name].shape != tensor.shape
    ]
    if missing or unexpected or misshapen:
        faults = "; ".join(
            f"{len(names)} {fault} ({_format_names(names)})"
            for fault, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", misshapen),
            )
            if names
        )
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"The weights do not fit {type(module).__name__}: {faults}. They belong to another model or "
            "version: get the files that `lipsync weights list` names, or check their configuration file.",
        )
    # Non-persistent buffers are not in the state dict, so no file can fill them: check before assigning.
    if unfilled := [
        name for name, buffer in module.named_buffers() if buffer.is_meta and name not in expected
    ]:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"{type(module).__name__} has buffers that no file contains: {_format_names(unfilled)}. Make "
            "them persistent, or build the module on a real device.",
        )
    module.load_state_dict({name: full[name] for name in expected}, strict=True, assign=True)


def _format_shape(tensor: Tensor) -> str:
    return "×".join(str(side) for side in tensor.shape) or "one number"


def _format_names(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (", …" if len(names) > MAX_NAMES else "")
