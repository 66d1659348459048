"""`render`: one segment of a plan, from source frames to an encoded file.

Three stages run at the same time, each in order: decode and crop (a thread), the model (the caller's thread),
paste and encode (a thread). What a frame becomes depends on the plan alone: windows are denoised whole,
blended in index order and decoded with a fixed group of frames, whichever segment or process asks for them.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from lipsync_engine import media
from lipsync_engine.audio import features as audio_features
from lipsync_engine.faces.compositor import Compositor, Crop, compositor_for
from lipsync_engine.media.yuv import Frame
from lipsync_engine.models import LipSyncModel
from lipsync_engine.planning.plan import Plan
from lipsync_engine.planning.timeline import Segment, Window
from lipsync_engine.provenance.label import Label
from lipsync_engine.provenance.watermark import marked
from lipsync_engine.rendering.output_check import MouthCheck

T = TypeVar("T")
FloatArray = npt.NDArray[np.float32]

DECODE_AHEAD = 8
"""Cropped frames that may wait for the model."""

PASTE_BEHIND = 32
"""Painted frames that may wait for the encoder."""


def render(plan: Plan, segment: Segment, model: LipSyncModel, path: Path) -> Generator[int, None, None]:
    """Make one segment file.

    Args:
        plan: of the job.
        segment: one of `plan.segments`.
        model: the one that the plan was made for.
        path: of the finished file; it appears only when complete.

    Yields:
        Frames of this segment finished so far.

    Raises:
        OutputError: the generated mouths are not fit to be shown.
        MediaError, ResourceError: decoding or encoding failed.
    """
    header, params = plan.header, plan.header.params
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    with (
        media.SegmentWriter(part, header.video, header.fps, params.quality, params.max_short_side) as writer,
        closing(rendered_frames(plan, segment, model)) as frames,
    ):
        for done, frame in enumerate(frames, start=1):
            writer.write(frame)
            yield done
    part.replace(path)


def rendered_frames(plan: Plan, segment: Segment, model: LipSyncModel) -> Generator[Frame, None, None]:
    """The segment's finished pictures in output order, before any encoding."""
    compositor = compositor_for(plan.header.params, model.keep_mask, plan.header.video)
    label = _label(plan)
    speakers = [_Windows(plan, segment, model, number) for number in range(len(plan.windows))]
    checks = [MouthCheck(model.keep_mask) for _ in speakers]
    with (
        closing(_Painter(plan, compositor, checks)) as painter,
        closing(_prefetch(_sources(plan, segment, compositor), DECODE_AHEAD)) as sources,
    ):
        for source in sources:
            if segment.start <= source.number < segment.stop:
                painter.expect(source)
            for speaker, windows in enumerate(speakers):
                for number, face in windows.add(source):
                    painter.paint(number, speaker, face)
            yield from map(label, painter.finished(wait=False))
        for speaker, windows in enumerate(speakers):
            for number, face in windows.last():
                painter.paint(number, speaker, face)
        yield from map(label, painter.finished(wait=True))
        for check in checks:
            check.raise_if_unfit()


def _label(plan: Plan) -> Callable[[Frame], Frame]:
    """What is done to every finished picture."""
    if not plan.header.params.label:
        return lambda frame: frame
    video = plan.header.video
    return Label(video.format, float(video.sample_aspect_ratio)).put


# --- decode and crop ---


@dataclass(frozen=True, slots=True)
class _Source:
    """One output frame before mouths are generated; by speaker the crops of those that will be."""

    number: int
    frame: Frame
    crops: dict[int, Crop]
    matte: FloatArray | None


def _sources(plan: Plan, segment: Segment, compositor: Compositor) -> Generator[_Source, None, None]:
    """Every frame that the segment shows or whose face its windows see, in order."""
    arrays, video = plan.arrays, plan.header.video
    seen = [
        {n for k in (*share.lead, *share.windows) for n in windows[k].frames}
        for share, windows in zip(segment.shares, plan.windows, strict=True)
    ]
    numbers = sorted({*range(segment.start, segment.stop), *itertools.chain.from_iterable(seen)})
    order = arrays.order[numbers]
    with (
        media.FrameReader(video, arrays.pts_s) as reader,
        closing(plan.mattes(order)) as mattes,
        closing(reader.read(order.tolist())) as frames,
    ):
        for number, frame, matte in zip(numbers, frames, mattes, strict=True):
            crops = {
                speaker: compositor.crop(frame, arrays.matrices[speaker, arrays.order[number]])
                for speaker, wanted in enumerate(seen)
                if number in wanted
            }
            yield _Source(number, frame, crops, matte)


def _prefetch(items: Generator[T, None, None], ahead: int) -> Generator[T, None, None]:
    """The same items, made by a thread that runs at most `ahead` items in front."""
    done: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                done.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        with closing(items):
            try:
                for item in items:
                    if not put((item, None)):
                        return
                put((None, None))
            except BaseException as error:  # noqa: BLE001  (a thread boundary: raised again by the reader)
                put((None, error))

    thread = threading.Thread(target=work, name="decode-and-crop", daemon=True)
    thread.start()
    try:
        while True:
            item, error = done.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()


# --- the model ---


class _Windows:
    """One speaker's: collects crops, denoises a window once all its frames are there, blends, decodes.

    A window's faces are read back only after the next one has been ordered: a GPU then has work while the
    host reads, pastes and makes the next inputs.
    """

    def __init__(self, plan: Plan, segment: Segment, model: LipSyncModel, speaker: int) -> None:
        self._plan, self._model, self._segment, self._speaker = plan, model, segment, speaker
        self._windows, share = plan.windows[speaker], segment.shares[speaker]
        self._inside = set(share.windows)
        self._pending = deque(self._windows[k] for k in sorted((*share.lead, *share.windows)))
        self._crops: dict[int, FloatArray] = {}
        self._latents: dict[int, torch.Tensor] = {}
        self._features = plan.features(speaker)
        self._noise = model.initial_noise(plan.header.params.seed)
        self._ordered: tuple[Window, torch.Tensor] | None = None

    def add(self, source: _Source) -> Iterator[tuple[int, FloatArray]]:
        """Take one more frame; give (number, float32 (R, R, 3) 0..255) of faces that are complete."""
        if self._speaker in source.crops:
            self._crops[source.number] = source.crops[self._speaker].face
        while self._pending and self._pending[0].frames[-1] <= source.number:
            window = self._pending.popleft()
            self._latents[window.index] = self._denoise(window)
            if window.index in self._inside:
                ordered = window, self._decode(window)
                yield from self.last()
                self._ordered = ordered
            self._forget()

    def last(self) -> Iterator[tuple[int, FloatArray]]:
        """The faces of the window that was ordered last."""
        if self._ordered is None:
            return
        (window, pictures), self._ordered = self._ordered, None
        for number, face in zip(window.own, pictures.cpu().numpy(), strict=True):
            if self._segment.start <= number < self._segment.stop:
                yield number, face

    def _denoise(self, window: Window) -> torch.Tensor:
        header, model = self._plan.header, self._model
        stacked = np.stack([self._crops[n] for n in window.frames]).transpose(0, 3, 1, 2)
        frames = np.asarray(window.frames)
        heard = audio_features.gated_windows(
            self._features,
            frames / float(header.fps),
            self._plan.arrays.gate[self._speaker, frames] if header.params.voice_gate else None,
            model.info.audio_context,
        )
        return model.denoise(
            torch.from_numpy(stacked / np.float32(127.5) - np.float32(1.0)),
            heard,
            noise=self._noise,
            num_inference_steps=header.params.num_inference_steps or model.info.num_inference_steps,
            guidance_scale=(
                model.info.guidance_scale
                if header.params.guidance_scale is None
                else header.params.guidance_scale
            ),
            posterior_noise=self._posterior_noise(window),
            shortcuts=header.params.shortcuts,
        )

    def _posterior_noise(self, window: Window) -> tuple[torch.Tensor, torch.Tensor] | None:
        params = self._plan.header.params
        if not params.sample_posterior:
            return None
        entropy = [params.seed, window.index, *([self._speaker] if self._speaker else [])]
        state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        generator = torch.Generator(self._noise.device).manual_seed(int(state) >> 1)
        shape = (len(window.frames), self._noise.shape[1], *self._noise.shape[-2:])

        def draw() -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=self._noise.device, dtype=self._noise.dtype)

        return draw(), draw()

    def _decode(self, window: Window) -> torch.Tensor:
        """Float32 (N, R, R, 3) 0..255 on the device: the window's own frames, each blended from every window
        that saw it, in index order."""
        mixed = []
        for number in window.own:
            total: torch.Tensor | None = None
            for index, latents in self._latents.items():
                other = self._windows[index]
                if other.frames[0] <= number <= other.frames[-1] and number in other.frames:
                    position = other.frames.index(number)
                    part = latents[position] * other.weights[position]
                    total = part if total is None else total + part
            if total is None:
                raise AssertionError("a window always covers its own frames")
            mixed.append(total)
        decoded = self._model.decode(torch.stack(mixed))
        return ((decoded.float() + 1.0) * 127.5).permute(0, 2, 3, 1)

    def _forget(self) -> None:
        """Drop what no later window needs."""
        first_own = min((w.own[0] for w in self._pending), default=None)
        first_seen = min((w.frames[0] for w in self._pending), default=None)
        self._latents = {
            k: v
            for k, v in self._latents.items()
            if first_own is not None and self._windows[k].frames[-1] >= first_own
        }
        self._crops = {k: v for k, v in self._crops.items() if first_seen is not None and k >= first_seen}


# --- paste ---


class _Painter:
    """Pastes faces in a thread of its own and hands the frames back in order."""

    def __init__(self, plan: Plan, compositor: Compositor, checks: Sequence[MouthCheck]) -> None:
        self._weight = plan.arrays.weight
        self._is_marked = plan.header.params.watermark
        self._compositor, self._checks = compositor, checks
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="paste")
        self._expected: dict[int, _Source] = {}
        self._faces: dict[int, dict[int, FloatArray]] = {}
        self._order: deque[int] = deque()
        self._ready: dict[int, Future[Frame] | Frame] = {}

    def expect(self, source: _Source) -> None:
        """Announce the next output frame."""
        self._order.append(source.number)
        if source.crops:
            self._expected[source.number], self._faces[source.number] = source, {}
        else:
            self._ready[source.number] = source.frame

    def paint(self, number: int, speaker: int, face: FloatArray) -> None:
        """One face of an announced frame; once all are there, start pasting them."""
        faces = self._faces[number]
        faces[speaker] = face
        if faces.keys() == self._expected[number].crops.keys():
            source = self._expected.pop(number)
            self._ready[number] = self._thread.submit(self._paste, source, self._faces.pop(number))

    def _paste(self, source: _Source, faces: dict[int, FloatArray]) -> Frame:
        frame = source.frame
        for speaker, crop in source.crops.items():
            self._checks[speaker].add(source.number, faces[speaker], crop.face)
            face = marked(faces[speaker]) if self._is_marked else faces[speaker]
            weight = float(self._weight[speaker, source.number])
            frame = self._compositor.paste(frame, crop, face, weight, source.matte)
        return frame

    def finished(self, *, wait: bool) -> Iterator[Frame]:
        """Frames that are done, in order; with `wait` all of them."""
        while self._order and self._order[0] in self._ready:
            entry = self._ready[self._order[0]]
            if isinstance(entry, Future):
                if not (wait or entry.done() or len(self._ready) > PASTE_BEHIND):
                    return
                entry = entry.result()
            del self._ready[self._order.popleft()]
            yield entry

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
