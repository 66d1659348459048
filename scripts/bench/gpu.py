"""LatentSync on this device: times per stage, end to end, memory, and how near the chip's limit it runs.

    python -m scripts.bench gpu                               # CUDA, full size, benchmarks/gpu.json and .png
    python -m scripts.bench gpu --device cpu --small --out X  # a miniature, to see that the script works
    python -m scripts.bench gpu --reference FOLDER            # the public implementation too
    python -m scripts.bench gpu --parts compiled --models latentsync-1.6   # adds to the report that is there

The report is written after every number, so that whatever ends a run early, what was measured stays. An error
ends one part of one model and is written in its place. FOLDER
is a checkout of the public LatentSync repository; it is run as it is (`reference_job.py`), on the same clip,
with and without its step cache, its detector's time left out.

Speed depends on shapes and not on values: weights are random, made on the device, and nothing is downloaded.
`ceiling_tflops` is a large matrix product in the same run and number format; utilisation is FLOP counted on
the same network (`flops.py`) over time and ceiling. Each fast path is held against exact on the same window.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from whisper.model import AudioEncoder

from lipsync_engine.device import choose_fp8
from lipsync_engine.errors import ResourceError
from lipsync_engine.faces import FaceDetector
from lipsync_engine.faces.drawn import DrawnFaceDetector
from lipsync_engine.models import ModelInfo
from lipsync_engine.models.latentsync.config import RunConfig, UNetConfig
from lipsync_engine.models.latentsync.fp8 import MIN_FLOP_PER_BYTE, to_float8
from lipsync_engine.models.latentsync.memory import DEFAULT_PLAN, PLANS, MemoryMode, MemoryPlan, plan_memory
from lipsync_engine.models.latentsync.model import LatentSync, estimate_memory
from lipsync_engine.models.latentsync.offload import enable_cpu_offload
from lipsync_engine.models.latentsync.unet import LatentSyncUNet
from lipsync_engine.params import EXACT_SAMPLING, PRESETS, FastSampling
from lipsync_engine.weights import WeightsStore
from scripts.bench.common import BENCHMARKS, Report, new_plot, save_plot, write_report
from scripts.bench.gpu_jobs import FPS, Media, job_report, reference_report
from scripts.bench.gpu_micro import micro_report
from tests.support import flops

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
OVERLAP = 4
CARDS_GB = (24, 16, 12, 8, 6, 4)
GIGA = 10**9
CONTEXT_BYTES = GIGA // 2


@dataclass(frozen=True)
class Size:
    """What is measured: the published networks, or a miniature of them."""

    unet: UNetConfig
    vae: dict[str, Any]
    resolutions: dict[str, int]
    frame: tuple[int, int]
    clip_s: float
    matmul: int
    min_flop_per_byte: float
    """See `to_float8`."""


FULL = Size(
    UNetConfig(),
    flops.VAE,
    {"latentsync-1.5": 256, "latentsync-1.6": 512},
    (1920, 1080),
    6,
    8192,
    MIN_FLOP_PER_BYTE,
)
SMALL = Size(
    UNetConfig(block_out_channels=(32, 64, 64, 64), layers_per_block=1),
    {**flops.VAE, "block_out_channels": [32, 32, 32, 32], "layers_per_block": 1, "norm_num_groups": 8},
    {"latentsync-1.5": 64},
    (320, 240),
    1,
    256,
    0,
)


class Bench:
    """One device and number format."""

    def __init__(self, device: torch.device, dtype: torch.dtype, size: Size, repeats: int) -> None:
        self.device, self.dtype, self.size, self.repeats = device, dtype, size, repeats

    def seconds(self, work: Callable[[], Any], repeats: int | None = None) -> float:
        """Median wall-clock time, the device idle before and after; one run first that does not count."""
        work()
        times = []
        for _ in range(repeats or self.repeats):
            self._wait()
            began = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_bytes(self, work: Callable[[], Any]) -> int | None:
        """Most memory held during `work`; None where the device does not tell."""
        if self.device.type != "cuda":
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self._wait()
        return torch.cuda.max_memory_allocated(self.device)

    def ceiling_tflops(self) -> float:
        side = self.size.matmul
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * side**3 / self.seconds(lambda: a @ b, 10) / 1e12

    def model(self, name: str, resolution: int) -> LatentSync:
        torch.manual_seed(0)
        with torch.device(self.device):
            unet = LatentSyncUNet(self.size.unet).to(self.dtype)
            vae: Any = AutoencoderKL(**self.size.vae).to(self.dtype)
            encoder = AudioEncoder(80, 1500, 384, 6, 4)
        for parameter in (p for n, p in unet.named_parameters() if "temporal_transformer.proj_out" in n):
            torch.nn.init.normal_(
                parameter, std=0.02
            )  # a fresh motion module is silent: let it say something
        networks: tuple[Any, ...] = (unet, vae)
        for network in networks:
            network.to(memory_format=torch.channels_last)
        for network in (*networks, encoder):
            network.eval().requires_grad_(False)
        info = ModelInfo(name, "latentsync", resolution, flops.FRAMES, (2, 2), 20, 1.5, "")
        return LatentSync(info, unet, vae, encoder, RunConfig(), self._plan(info, unet, vae))

    def _plan(self, info: ModelInfo, unet: LatentSyncUNet, vae: AutoencoderKL) -> MemoryPlan:
        if self.device.type != "cuda":
            return DEFAULT_PLAN
        need = estimate_memory(info, unet, vae, self.dtype)
        free = torch.cuda.mem_get_info(self.device)[0] + need.weights_bytes  # the weights are there already
        return plan_memory(free, need) or PLANS[-1]


@dataclass(frozen=True)
class Window:
    faces: torch.Tensor
    audio: torch.Tensor
    noise: torch.Tensor

    @classmethod
    def random(cls, model: LatentSync, seed: int = 1) -> Window:
        side, frames = model.info.resolution, model.info.window_frames
        draw = torch.Generator().manual_seed(seed)
        audio = torch.randn(frames, flops.TOKENS, model.unet.config.cross_attention_dim, generator=draw)
        faces = torch.rand(frames, 3, side, side, generator=draw) * 2 - 1
        return cls(faces, audio, model.initial_noise(seed))

    def denoised(
        self, model: LatentSync, steps: int, fast_sampling: FastSampling = EXACT_SAMPLING
    ) -> torch.Tensor:
        return model.denoise(
            self.faces,
            self.audio,
            noise=self.noise,
            num_inference_steps=steps,
            guidance_scale=1.5,
            fast_sampling=fast_sampling,
        )


# --- the model ---


def network_report(bench: Bench, model: LatentSync, ceiling: float) -> Report:
    """Seconds per frame of each stage, and utilisation of the U-Net and the VAE."""
    window, frames = Window.random(model), model.info.window_frames
    latents = window.denoised(model, 1)
    encode_s = bench.seconds(lambda: model.encode(window.faces, None)) / frames
    one, three = (bench.seconds(lambda n=n: window.denoised(model, n)) for n in (1, 3))
    step_s = (three - one) / 2 / frames
    decode_s = bench.seconds(lambda: model.decode(latents)) / frames
    with torch.device("meta"):
        unet, vae = LatentSyncUNet(bench.size.unet), AutoencoderKL(**bench.size.vae)
    side = model.info.resolution
    cost = {
        "step": flops.denoising(unet, side, 1, 1.5),
        "encode": flops.vae_encode(vae, side),
        "decode": flops.vae_decode(vae, side),
    }
    took = {"step": step_s, "encode": encode_s, "decode": decode_s}
    return {
        "plan": str(model.memory),
        "seconds_per_frame": {name: round(value, 7) for name, value in took.items()},
        "utilisation": {name: round(cost[name] / took[name] / ceiling, 4) for name in cost},
    }


def chosen_modes() -> dict[str, tuple[int, FastSampling]]:
    """Steps and shortcuts of exact and of every fast preset."""
    quick = {
        name: (preset["num_inference_steps"], preset["fast_sampling"])
        for name, preset in PRESETS.items()
        if "fast_sampling" in preset
    }
    return {"exact": (20, EXACT_SAMPLING), **quick}


def mode_report(bench: Bench, model: LatentSync) -> Iterator[Report]:
    """Exact and every fast preset: frames per second of the model alone, memory, distance to exact."""
    window = Window.random(model)
    new_frames = model.info.window_frames - OVERLAP
    exact: torch.Tensor | None = None
    report = {}
    for name, (steps, fast_sampling) in chosen_modes().items():
        found = window.denoised(model, steps, fast_sampling)
        exact = found if exact is None else exact
        took = bench.seconds(lambda s=steps, c=fast_sampling: model.decode(window.denoised(model, s, c)))
        report[name] = {
            "fps": round(new_frames / took, 3),
            "peak_bytes": bench.peak_bytes(
                lambda s=steps, c=fast_sampling: model.decode(window.denoised(model, s, c))
            ),
            "relative_distance_to_exact": distance(found, exact),
        }
        yield report


def lean_distance(model: LatentSync) -> float:
    """How far the leanest plan that cuts no tiles is from the one in use; rounding alone."""
    window = Window.random(model)
    wanted = window.denoised(model, 2)
    plan, model.memory = model.memory, MemoryPlan(MemoryMode.SEQUENTIAL, 1)
    found = window.denoised(model, 2)
    model.memory = plan
    return distance(found, wanted)


def card_report(bench: Bench, model: LatentSync) -> Iterator[Report]:
    """Plans of smaller cards, each under the allocator's limit: speed, peak, distance to this card's plan."""
    window, total = Window.random(model), torch.cuda.get_device_properties(bench.device).total_memory
    wanted, steps = window.denoised(model, 2), 2
    need = estimate_memory(model.info, model.unet, model.vae, bench.dtype)
    report: Report = {}
    for card_gb in CARDS_GB:  # from the largest, for weights that wait on the host stay there
        limit = int(card_gb * GIGA) - CONTEXT_BYTES
        chosen = plan_memory(limit, need)
        if chosen is None or limit >= total:
            continue
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(limit / total, bench.device)
        if chosen.mode is MemoryMode.OFFLOAD:
            enable_cpu_offload(model.unet, bench.device)
        model.memory = chosen
        found = window.denoised(model, steps)
        took = bench.seconds(lambda: window.denoised(model, steps), 1)
        report[f"{card_gb} GB"] = {
            "plan": chosen.describe(),
            "kept_plan": model.memory == chosen,
            "computed_peak_bytes": need.peak_bytes(chosen),
            "peak_bytes": bench.peak_bytes(lambda: model.decode(window.denoised(model, steps))),
            "step_seconds_per_frame": round(took / steps / model.info.window_frames, 6),
            "relative_distance": distance(found, wanted),
        }
        yield report
        if model.memory != chosen:  # memory ran out after all, and what it changed would change the rest
            break
    torch.cuda.set_per_process_memory_fraction(1.0, bench.device)


def precision_report(bench: Bench, model_name: str, resolution: int) -> Iterator[Report]:
    """Yield the distance of each half precision to float32, on equal weights."""
    exact: torch.Tensor | None = None
    report = {}
    for name in ("fp32", "fp16", "bf16"):
        of_dtype = Bench(bench.device, DTYPES[name], bench.size, bench.repeats)
        model = of_dtype.model(model_name, resolution)
        found = Window.random(model).denoised(model, 2).float()
        if exact is None:
            exact = found
        else:
            report[name] = distance(found, exact)
            yield report


def compiled_report(bench: Bench, model: LatentSync, cache_dir: Path) -> Iterator[Report]:
    """`LatentSync.compile`: how long it takes, then speed and distance to eager of exact and every preset."""
    torch.compiler.reset()  # an earlier model's pieces of code count against the same limit
    window = Window.random(model)
    wanted = {name: window.denoised(model, steps, cuts) for name, (steps, cuts) in chosen_modes().items()}
    began = time.perf_counter()
    model.compile(cache_dir)
    compile_s = round(time.perf_counter() - began, 1)
    for modes in changed_modes(bench, model, wanted):
        yield {"compile_s": compile_s, "modes": modes}


def fp8_report(bench: Bench, model: LatentSync, cache_dir: Path) -> Iterator[Report]:
    """Layers in FP8, eager, then compiled: speed and distance to exact half precision of the same mode."""
    if bench.device.type == "cuda":
        try:
            choose_fp8(True, bench.device)
        except ResourceError as error:
            yield {"left_out": str(error)}
            return
    window = Window.random(model)
    wanted = {name: window.denoised(model, steps, cuts) for name, (steps, cuts) in chosen_modes().items()}
    report: Report = {"layers": len(to_float8(model.unet, bench.size.min_flop_per_byte))}
    for report["eager"] in changed_modes(bench, model, wanted):
        yield report
    if bench.device.type == "cuda":
        for report["compiled"] in compiled_report(bench, model, cache_dir):
            yield report


def changed_modes(bench: Bench, model: LatentSync, wanted: dict[str, torch.Tensor]) -> Iterator[Report]:
    """Of a model that computes otherwise now: frames per second, distance to what it said before."""
    window, new_frames = Window.random(model), model.info.window_frames - OVERLAP
    modes: Report = {}
    for name, (steps, cuts) in chosen_modes().items():
        found = window.denoised(model, steps, cuts)
        took = bench.seconds(lambda s=steps, c=cuts: model.decode(window.denoised(model, s, c)))
        modes[name] = {
            "fps": round(new_frames / took, 3),
            "relative_distance": distance(found, wanted[name]),
        }
        yield modes


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return round(float((found.float() - wanted.float()).norm() / wanted.float().norm()), 6)


# --- all together ---

PARTS = ("micro", "stages", "jobs", "modes", "precision", "reference", "cards", "compiled", "fp8")
"""What matters most comes first: time may run out."""

USUAL = PARTS[:-2]


@dataclass
class Session:
    """What the parts of a run share.

    Attributes:
        detector: for whole jobs.
        folder: of temporary files.
        reference, reference_python: see `reference_report`; None: nobody asked.
    """

    bench: Bench
    ceiling: float
    detector: FaceDetector
    folder: Path
    reference: Path | None
    reference_python: str

    @functools.cached_property
    def clip(self) -> Media:
        """For whole jobs; made at the first use."""
        return Media.make(self.folder, self.bench.size.frame, self.bench.size.clip_s, self.detector)

    def part(self, name: str, model_name: str, resolution: int, known: Report) -> Iterator[Report]:
        """What a part found so far, again and again.

        Args:
            known: of the same model, by part.
        """
        bench, detector = self.bench, self.detector
        if name == "reference":
            if self.reference is not None:
                order = reference_order(bench, resolution, self.clip, self.reference)
                yield reference_report(order, known["jobs"]["default"]["frames"], self.reference_python)
            return
        model = bench.model(model_name, resolution)
        if name == "stages":
            yield network_report(bench, model, self.ceiling) | {"lean_distance": lean_distance(model)}
        elif name == "jobs":
            jobs: Report = {}
            for preset in ("default", "fastest"):
                jobs[preset] = job_report(model, self.clip, detector, preset)
                yield jobs
        elif name == "modes":
            yield from mode_report(bench, model)
        elif name == "precision":
            yield from precision_report(bench, model_name, resolution)
        elif name == "cards" and bench.device.type == "cuda":
            yield from card_report(bench, model)
        elif name == "compiled":
            yield from compiled_report(bench, model, self.folder / "compiled")
        elif name == "fp8":
            yield from fp8_report(bench, model, self.folder / "compiled")


def reference_order(bench: Bench, resolution: int, clip: Media, checkout: Path) -> Report:
    """What the public implementation is to do: exact's settings, on networks of the same size."""
    unet = bench.size.unet
    return {
        "checkout": str(checkout.resolve()), "device": bench.device.type, "resolution": resolution,
        "dtype": str(bench.dtype).removeprefix("torch."), "vae": bench.size.vae, "steps": 20,
        "unet": {"block_out_channels": unet.block_out_channels, "layers_per_block": unet.layers_per_block},
        "video": str(clip.video), "audio": str(clip.voice), "points": clip.points,
        "warm": bench.device.type == "cuda",
    }  # fmt: skip


def plot(report: Report, path: Path) -> None:
    figure, axes = new_plot(figsize=(7, 4))
    for offset, (name, found) in enumerate(report["models"].items()):
        modes = found.get("modes", {})
        places = np.arange(len(modes)) + offset * 0.4
        axes.bar(places, [row["fps"] for row in modes.values()], 0.38, label=name)
        if modes:
            axes.set_xticks(np.arange(len(modes)), list(modes))
    axes.axhline(FPS, color="0.7", linewidth=1)
    axes.set_ylabel("frames per second, model alone")
    axes.set_title(report["device"])
    axes.legend()
    save_plot(figure, path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--small", action="store_true", help="a miniature instead of the published networks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=USUAL, help="[all but the last two]")
    parser.add_argument("--models", nargs="+", choices=FULL.resolutions, help="[all]")
    parser.add_argument("--reference", type=Path, help="a checkout of the public LatentSync, to be timed too")
    parser.add_argument(
        "--reference-python", default=sys.executable, help="an interpreter with that checkout's requirements"
    )
    parser.add_argument("--out", type=Path, default=BENCHMARKS, help="folder")


def run(arguments: argparse.Namespace) -> int:
    """Return 1 if a part ended with an error."""
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    bench = Bench(device, DTYPES[arguments.dtype], SMALL if arguments.small else FULL, arguments.repeats)
    ceiling = bench.ceiling_tflops()
    report: Report = {
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        "torch": torch.__version__,
        "dtype": arguments.dtype,
        "small": arguments.small,
        "ceiling_tflops": round(ceiling, 3),
        "models": {},
    }
    report |= read_earlier(arguments.out, report)
    detector = DrawnFaceDetector(WeightsStore().verified_files("tiny")["detector"])
    with tempfile.TemporaryDirectory() as folder:
        session = Session(
            bench, ceiling, detector, Path(folder), arguments.reference, arguments.reference_python
        )
        write = functools.partial(write_report, report, arguments.out / "gpu.json")
        failures = 0
        for part in arguments.parts:
            if part == "micro":
                small = arguments.small
                failures += keep_results(
                    report, part, micro_report(device, bench.dtype, bench.seconds, small=small), write
                )
                continue
            for name, resolution in bench.size.resolutions.items():
                if name in (arguments.models or bench.size.resolutions):
                    known = report["models"].setdefault(name, {})
                    results = session.part(part, name, resolution, known)
                    failures += keep_results(known, part, results, write)
            plot(report, arguments.out / "gpu.png")
    return min(failures, 1)


def keep_results(known: Report, part: str, results: Iterator[Report], write: Callable[[], None]) -> bool:
    """Write every result of a part; an error ends this part alone. Return whether there was one."""
    error_line = None
    try:
        for known[part] in results:
            write()
    except Exception as error:  # noqa: BLE001  (whatever a new device throws; the other parts go on)
        traceback.print_exc()
        error_line = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        known.setdefault(part, {})["error"] = error_line
        write()
    print(part, json.dumps(known.get(part)), flush=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return error_line is not None


def read_earlier(folder: Path, report: Report) -> Report:
    """Return the parts that an earlier run measured on the same device; empty where there are none."""
    try:
        found: Report = json.loads((folder / "gpu.json").read_text())
    except FileNotFoundError:
        return {}
    same = all(found[name] == report[name] for name in ("device", "torch", "dtype", "small"))
    return {name: found[name] for name in ("micro", "models") if name in found} if same else {}
