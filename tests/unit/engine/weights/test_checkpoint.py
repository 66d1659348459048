"""Tests of checkpoints: every format is read safely, and loading into modules is strict."""

import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lipsync_engine.errors import ErrorCode, WeightsError
from lipsync_engine.weights import load_strict, read_checkpoint


@pytest.fixture
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        "first.weight": torch.randn(6, 4, generator=generator),
        "first.bias": torch.randn(6, generator=generator),
        "table": torch.randn(3, 4, generator=generator),
    }


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.register_buffer("table", torch.zeros(3, 4))


def meta_net() -> Net:
    with torch.device("meta"):
        return Net()


# --- reading ---


def write(folder: Path, form: str, state: dict[str, Tensor]) -> Path:
    if form == "safetensors":
        path = folder / "weights.safetensors"
        save_file(state, path)
        return path
    path = folder / f"{form}.pt"
    checkpoint = {"state_dict": state, "global_step": 9}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_read_checkpoint_reads_every_format(tmp_path: Path, form: str, state: dict[str, Tensor]) -> None:
    loaded = read_checkpoint(write(tmp_path, form, state))
    if form != "safetensors":
        assert loaded["global_step"] == 9
        loaded = loaded["state_dict"]
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_large_checkpoints_are_memory_mapped(tmp_path: Path, form: str) -> None:
    """A child process opens 200 MB and uses one row; its anonymous memory must not grow by the file size."""
    path = write(tmp_path, form, {"big": torch.zeros(50, 1_000_000)})
    code = f"""
from pathlib import Path
from lipsync_engine.weights import read_checkpoint
def anonymous_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024
before = anonymous_mib()
loaded = read_checkpoint(Path({str(path)!r}))
loaded.get("state_dict", loaded)["big"][3].sum()
print(anonymous_mib() - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    grown_mib = float(result.stdout)
    assert grown_mib < 60, f"{grown_mib:.0f} MiB for one row of a 191 MiB file"


class Bomb:
    """Creates a file when the ordinary unpickler opens it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_rejected_and_not_run(tmp_path: Path, form: str) -> None:
    path, marker = tmp_path / "bomb.pt", tmp_path / "executed"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Bomb(marker)}))
    else:
        torch.save({"state_dict": Bomb(marker)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match=r"program code.*safetensors") as error:
        read_checkpoint(path)
    assert error.value.code is ErrorCode.WEIGHTS_UNSAFE
    assert not marker.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()  # the ordinary unpickler runs the code


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_truncated_checkpoint_is_reported(tmp_path: Path, form: str, state: dict[str, Tensor]) -> None:
    path = write(tmp_path, form, state)
    whole = path.read_bytes()
    draw = random.Random(1)
    for length in [
        0,
        1,
        9,
        len(whole) // 2,
        len(whole) - 1,
        *(draw.randrange(len(whole)) for _ in range(25)),
    ]:
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError) as error:
            read_checkpoint(path)
        # Half a class name in a legacy pickle is refused as the unknown class that it then names.
        allowed = {ErrorCode.WEIGHTS_TRUNCATED} | ({ErrorCode.WEIGHTS_UNSAFE} if form == "legacy" else set())
        assert error.value.code in allowed, f"cut at {length}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"truncated or damaged.*lipsync weights pull"):
        read_checkpoint(path)


def test_web_page_is_not_a_checkpoint(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for text in ["<html>404 not found</html>", "version https://git-lfs.github.com/spec/v1\n", "hello " * 40]:
        for name in ["a.pt", "a.safetensors"]:
            with subtests.test(text=text, name=name):
                path = tmp_path / name
                path.write_text(text)
                with pytest.raises(WeightsError) as error:
                    read_checkpoint(path)
                assert error.value.code is ErrorCode.WEIGHTS_TRUNCATED


def test_missing_file_and_bare_tensor_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="weights pull") as error:
        read_checkpoint(tmp_path / "absent.pt")
    assert error.value.code is ErrorCode.WEIGHTS_MISSING
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(WeightsError, match="contains a Tensor") as error:
        read_checkpoint(tmp_path / "tensor.pt")
    assert error.value.code is ErrorCode.WEIGHTS_ARCHITECTURE


# --- loading ---


def test_load_strict_assigns_tensors_without_copying(state: dict[str, Tensor]) -> None:
    net = meta_net()
    load_strict(net, state)
    assert all(value.data_ptr() == state[name].data_ptr() for name, value in net.state_dict().items())
    assert torch.isfinite(net.first(torch.ones(1, 4))).all()
    assert not any(t.is_meta for t in net.state_dict().values())


def test_load_strict_accepts_an_initialised_module(state: dict[str, Tensor]) -> None:
    net = Net()
    load_strict(net, state)
    assert torch.equal(net.table, state["table"])


def test_load_strict_prefers_the_file_to_recomputed_tables(state: dict[str, Tensor]) -> None:
    ours, theirs = torch.ones(3, 4), state["table"]
    net = meta_net()
    load_strict(net, {k: v for k, v in state.items() if k != "table"}, recomputable={"table": ours})
    assert torch.equal(net.table, ours)
    net = meta_net()
    load_strict(net, state, recomputable={"table": ours})
    assert torch.equal(net.table, theirs)


def break_state(state: dict[str, Tensor], fault: str) -> dict[str, Tensor]:
    state = dict(state)
    if fault == "missing":
        del state["first.bias"]
    elif fault == "unexpected":
        state["second.weight"] = torch.zeros(1)
    else:
        state["first.weight"] = torch.zeros(6, 5)
    return state


@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        ("missing", r"1 missing \(first\.bias\)"),
        ("unexpected", r"1 unexpected \(second\.weight\)"),
        ("misshapen", r"1 of another shape \(first\.weight has 6×5 instead of 6×4\)"),
    ],
)
def test_load_strict_names_misfits_and_changes_nothing(
    state: dict[str, Tensor], fault: str, pattern: str
) -> None:
    net = meta_net()
    with pytest.raises(WeightsError, match=rf"do not fit Net: {pattern}.*another model or version") as error:
        load_strict(net, break_state(state, fault))
    assert error.value.code is ErrorCode.WEIGHTS_ARCHITECTURE
    assert all(t.is_meta for t in net.state_dict().values())


def test_load_strict_counts_misfits_and_names_the_first() -> None:
    with torch.device("meta"):
        net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    pattern = r"10 missing \(0\.weight, 0\.bias, 1\.weight, …\); 1 unexpected \(x\)"
    with pytest.raises(WeightsError, match=pattern):
        load_strict(net, {"x": torch.zeros(1)})


def test_load_strict_rejects_unfilled_buffers() -> None:
    with torch.device("meta"):
        net = nn.Linear(2, 2)
        net.register_buffer("scale", torch.ones(1), persistent=False)
    with pytest.raises(WeightsError, match="no file contains: scale"):
        load_strict(net, nn.Linear(2, 2).state_dict())
