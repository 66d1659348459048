"""Kind `job`: a whole small job with the functions that the `reference` preset uses.

The audio gives the number and order of output frames and their audio features. The landmarks give the
matrices. The stored faces, matrices and noise give windows, denoised and restored faces, and pasted frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from lipsync_engine.audio import features as audio_features
from lipsync_engine.faces import align
from lipsync_engine.faces.compositor import ReferenceCompositor, reference_paste
from lipsync_engine.models import ModelInfo
from lipsync_engine.models.latentsync.model import LatentSync, RunConfig
from lipsync_engine.params import LoopMode, SyncParams, Tail
from lipsync_engine.planning import timeline
from tests.parity.harness import Measure, difference, load_kind


def check(pack: Path, spec: Mapping[str, Any]) -> list[Measure]:
    limits = spec["limits"]
    with np.load(pack / spec["io"]) as arrays:
        io = {name: arrays[name] for name in arrays.files}
    whisper = load_kind("whisper")
    encoder = whisper.load(pack, spec["whisper"])
    resolution, window, fps = int(io["resolution"]), int(io["num_frames"]), float(io["fps"])
    info = ModelInfo(
        "pack", "latentsync", resolution, window, (2, 2), int(io["steps"]), float(io["guidance"]), ""
    )
    model = LatentSync(
        info,
        load_kind("unet").load(pack, spec["unet"]),
        load_kind("vae").load(pack, spec["vae"]),
        encoder,
        RunConfig(window_frames=window),
    )
    params = SyncParams.preset("reference")
    compositor = ReferenceCompositor(model.keep_mask)
    measures = []

    # 1. Audio features, and the number of frames.
    with TemporaryDirectory() as folder:
        _, features = whisper.extract_features(pack, spec["wav"], encoder, Path(folder))
        n_frames = timeline.count_reference_audio_frames(features.length)
        audio_windows = audio_features.frame_windows(features, np.arange(n_frames) / fps)
    measures.append(Measure("frames", abs(n_frames - len(io["out_frames"])), 0))
    measures.append(
        Measure("audio windows", difference(audio_windows, io["audio_windows"]).max(), limits["latents_max"])
    )

    # 2. Order of the source frames, and matrices.
    order = timeline.source_order(
        len(io["frames"]), n_frames, LoopMode.PINGPONG, Tail.CUT, repeat_ends=params.reference_numerics
    )
    matrices = compositor.matrices(align.reference_points(io["landmarks106"]))[order]
    measures.append(Measure("matrices", difference(matrices, io["matrices"]).max(), 2e-3))

    # 3. Windows, denoising, decoding, from the stored faces and noise.
    faces = torch.from_numpy(io["faces"].astype(np.float32) / 127.5 - 1.0)
    latents, pasted = [], []
    for w in timeline.plan_windows([(0, n_frames)], 1, window, params.window_overlap):
        rows = slice(w.frames[0], w.frames[-1] + 1)
        final = model.denoise(
            faces[rows],
            torch.from_numpy(io["audio_windows"][rows]),
            noise=torch.from_numpy(io["init_noise"]),
            num_inference_steps=info.num_inference_steps,
            guidance_scale=info.guidance_scale,
            posterior_noise=tuple(
                torch.from_numpy(io[f"{kind}_noise_{w.index}"]) for kind in ("masked", "ref")
            ),
        )
        latents.append(final)
        decoded = ((model.decode(final) + 1.0) * 127.5).permute(0, 2, 3, 1).numpy()
        source = io["faces"][rows].transpose(0, 2, 3, 1).astype(np.float32)
        pasted += [compositor.restore(s, d) for s, d in zip(source, decoded, strict=True)]
    stored = io["final_latents"][0].transpose(1, 0, 2, 3)
    measures.append(
        Measure("final latents", difference(torch.cat(latents), stored).max(), limits["latents_max"])
    )
    chw = (np.stack(pasted) / 127.5 - 1.0).transpose(0, 3, 1, 2).astype(np.float32)
    measures.append(Measure("pasted", difference(chw, io["pasted"]).max(), limits["pasted_max"]))

    # 4. Back into the frames, with the stored matrices.
    rows = zip(order, chw, io["matrices"], strict=True)
    frames = np.stack([reference_paste(io["frames"][s], face, m) for s, face, m in rows])
    worst = difference(frames, io["out_frames"])
    measures.append(Measure("frames max", worst.max(), limits["frames_max"]))
    measures.append(Measure("frames differing", np.mean(worst > 0), limits["frames_fraction_differing"]))
    return measures
