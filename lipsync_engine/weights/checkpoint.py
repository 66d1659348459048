"""From a checkpoint file to tensors, and from tensors into a module, with nothing left open on either side.

It knows file formats and key names as strings, not what the tensors mean; renaming foreign keys is the
family's work.
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

NAMES_SHOWN = 3


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, on the CPU.

    `.safetensors` files and zip-based `.pt`, `.pth`, `.bin` files are memory mapped: nothing is read until
    it is used. Legacy pickles have no such layout and are read whole. Pickles are opened by the weights-only
    unpickler, which runs no code of the file.

    Returns:
        name → tensor for `.safetensors`; otherwise the file's own dict, which may nest (`state_dict`,
        `dims` …).

    Raises:
        WeightsError: WEIGHTS_MISSING, WEIGHTS_TRUNCATED (cut off or damaged), WEIGHTS_UNSAFE (code inside),
            or WEIGHTS_ARCHITECTURE (a sound file that is no checkpoint).
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise WeightsError(
            ErrorCode.WEIGHTS_MISSING,
            f"{path} is not there: get it with `lipsync weights pull` or `lipsync weights import`.",
        ) from None
    except PermissionError as error:
        raise WeightsError(
            ErrorCode.WEIGHTS_MISSING, f"{path} cannot be read ({error.strerror}): change its permissions."
        ) from error
    except pickle.UnpicklingError as error:
        if _refused(path, str(error)):
            raise WeightsError(
                ErrorCode.WEIGHTS_UNSAFE,
                f"{path.name} may run program code when opened, so it was not: get the weights from their "
                "publisher, or as .safetensors.",
            ) from error
        raise _damaged(path) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, *_GARBAGE) as error:
        raise _damaged(path) from error
    if not isinstance(loaded, dict):
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"{path.name} holds a {type(loaded).__name__}, not a checkpoint's dict: it is another kind of "
            "file.",
        )
    return loaded


_GARBAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error, AssertionError)
"""What torch's unpickler raises besides UnpicklingError on bytes that are no pickle, or half of one."""


def _refused(path: Path, message: str) -> bool:
    """Whether the weights-only unpickler refused what the file asks for, rather than stumbled over broken
    bytes.

    It refuses by name what is neither tensor nor plain value. Python's newer pickle protocols, which torch
    never writes, it does not read at all.
    """
    if any(sign in message for sign in ("Unsupported global", "Unsupported class", "blocklisted")):
        return True
    with path.open("rb") as file:
        head = file.read(2)
    return head[:1] == b"\x80" and head[1:] in (b"\x03", b"\x04", b"\x05")


def _damaged(path: Path) -> WeightsError:
    return WeightsError(
        ErrorCode.WEIGHTS_TRUNCATED,
        f"{path} is cut off or damaged: delete it, then `lipsync weights pull` or `lipsync weights import` "
        "the model again.",
    )


def load_strict(
    module: nn.Module, state: Mapping[str, Tensor], *, recomputable: Mapping[str, Tensor] | None = None
) -> None:
    """Give a module its tensors without copying them; every key and shape must match, both ways.

    Build the module under `torch.device("meta")`, so that its own values never take memory. Its parameters
    take the dtype of the state's tensors.

    Args:
        module: parameters and buffers are replaced.
        state: name → tensor.
        recomputable: tensors for keys of the module that the state may lack.

    Raises:
        WeightsError: WEIGHTS_ARCHITECTURE, naming the first missing, unexpected and misshapen keys and how
            many there are; the module is left as it was.
    """
    wanted = module.state_dict()
    full = {**{name: t for name, t in (recomputable or {}).items() if name in wanted}, **state}
    missing = [name for name in wanted if name not in full]
    unexpected = [name for name in full if name not in wanted]
    misshapen = [
        f"{name} has {_shape(full[name])} instead of {_shape(tensor)}"
        for name, tensor in wanted.items()
        if name in full and full[name].shape != tensor.shape
    ]
    if missing or unexpected or misshapen:
        told = "; ".join(
            f"{len(names)} {what} ({_first(names)})"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", misshapen),
            )
            if names
        )
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"The weights do not fit {type(module).__name__}: {told}. They belong to another model or "
            "version: get the files that `lipsync weights list` names, or check the configuration beside "
            "them.",
        )
    # The state dict lacks non-persistent buffers, so no file can fill them: refuse before anything is
    # assigned.
    if homeless := [name for name, buffer in module.named_buffers() if buffer.is_meta and name not in wanted]:
        raise WeightsError(
            ErrorCode.WEIGHTS_ARCHITECTURE,
            f"{type(module).__name__} has buffers that no file holds and nothing computes: "
            f"{_first(homeless)}.",
        )
    module.load_state_dict({name: full[name] for name in wanted}, strict=True, assign=True)


def _shape(tensor: Tensor) -> str:
    return "×".join(str(side) for side in tensor.shape) or "one number"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
