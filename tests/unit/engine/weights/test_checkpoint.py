"""Checkpoint files to tensors to modules: strict both ways, nothing run, nothing copied."""

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
def test_every_format_is_read(tmp_path: Path, form: str, state: dict[str, Tensor]) -> None:
    found = read_checkpoint(write(tmp_path, form, state))
    if form != "safetensors":
        assert found["global_step"] == 9
        found = found["state_dict"]
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_big_files_are_mapped_not_read(tmp_path: Path, form: str) -> None:
    """A child opens 200 MB and uses one row: its own memory, file pages aside, must not grow by the file."""
    path = write(tmp_path, form, {"big": torch.zeros(50, 1_000_000)})
    code = f"""
from pathlib import Path
from lipsync_engine.weights import read_checkpoint
def anonymous_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024
before = anonymous_mib()
found = read_checkpoint(Path({str(path)!r}))
found.get("state_dict", found)["big"][3].sum()
print(anonymous_mib() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    grown_mib = float(done.stdout)
    assert grown_mib < 60, f"{grown_mib:.0f} MiB for one row of a 191 MiB file"


class Bomb:
    """Opened by the ordinary unpickler, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    path, mark = tmp_path / "bomb.pt", tmp_path / "exploded"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Bomb(mark)}))
    else:
        torch.save({"state_dict": Bomb(mark)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match=r"program code.*safetensors") as caught:
        read_checkpoint(path)
    assert caught.value.code is ErrorCode.WEIGHTS_UNSAFE
    assert not mark.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert mark.exists()  # the bomb was live


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_a_file_cut_anywhere_is_said_to_be_cut(tmp_path: Path, form: str, state: dict[str, Tensor]) -> None:
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
        with pytest.raises(WeightsError) as caught:
            read_checkpoint(path)
        # Half a class name in a legacy pickle is refused as the unknown class that it then names.
        allowed = {ErrorCode.WEIGHTS_TRUNCATED} | ({ErrorCode.WEIGHTS_UNSAFE} if form == "legacy" else set())
        assert caught.value.code in allowed, f"cut at {length}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"cut off or damaged.*lipsync weights pull"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "text", ["<html>404 not found</html>", "version https://git-lfs.github.com/spec/v1\n", "hello " * 40]
)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_web_page_is_no_checkpoint(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert caught.value.code is ErrorCode.WEIGHTS_TRUNCATED


def test_other_faults_of_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="weights pull") as caught:
        read_checkpoint(tmp_path / "absent.pt")
    assert caught.value.code is ErrorCode.WEIGHTS_MISSING
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(WeightsError, match="holds a Tensor") as caught:
        read_checkpoint(tmp_path / "tensor.pt")
    assert caught.value.code is ErrorCode.WEIGHTS_ARCHITECTURE


# --- loading ---


def test_tensors_are_assigned_not_copied(state: dict[str, Tensor]) -> None:
    net = meta_net()
    load_strict(net, state)
    assert all(value.data_ptr() == state[name].data_ptr() for name, value in net.state_dict().items())
    assert torch.isfinite(net.first(torch.ones(1, 4))).all()
    assert not any(t.is_meta for t in net.state_dict().values())


def test_a_module_with_values_of_its_own_loads_too(state: dict[str, Tensor]) -> None:
    net = Net()
    load_strict(net, state)
    assert torch.equal(net.table, state["table"])


def test_a_recomputable_table_may_be_absent_and_the_file_wins(state: dict[str, Tensor]) -> None:
    ours, theirs = torch.ones(3, 4), state["table"]
    net = meta_net()
    load_strict(net, {k: v for k, v in state.items() if k != "table"}, recomputable={"table": ours})
    assert torch.equal(net.table, ours)
    net = meta_net()
    load_strict(net, state, recomputable={"table": ours})
    assert torch.equal(net.table, theirs)


def broken(state: dict[str, Tensor], fault: str) -> dict[str, Tensor]:
    state = dict(state)
    if fault == "missing":
        del state["first.bias"]
    elif fault == "unexpected":
        state["second.weight"] = torch.zeros(1)
    else:
        state["first.weight"] = torch.zeros(6, 5)
    return state


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("missing", r"1 missing \(first\.bias\)"),
        ("unexpected", r"1 unexpected \(second\.weight\)"),
        ("misshapen", r"1 of another shape \(first\.weight has 6×5 instead of 6×4\)"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_touched(
    state: dict[str, Tensor], fault: str, told: str
) -> None:
    net = meta_net()
    with pytest.raises(WeightsError, match=rf"do not fit Net: {told}.*another model or version") as caught:
        load_strict(net, broken(state, fault))
    assert caught.value.code is ErrorCode.WEIGHTS_ARCHITECTURE
    assert all(t.is_meta for t in net.state_dict().values())


def test_many_faults_are_counted_and_the_first_named() -> None:
    with torch.device("meta"):
        net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))
    told = r"10 missing \(0\.weight, 0\.bias, 1\.weight, …\); 1 unexpected \(x\)"
    with pytest.raises(WeightsError, match=told):
        load_strict(net, {"x": torch.zeros(1)})


def test_a_buffer_that_no_file_holds_is_refused() -> None:
    with torch.device("meta"):
        net = nn.Linear(2, 2)
        net.register_buffer("scale", torch.ones(1), persistent=False)
    with pytest.raises(WeightsError, match="no file holds and nothing computes: scale"):
        load_strict(net, nn.Linear(2, 2).state_dict())
