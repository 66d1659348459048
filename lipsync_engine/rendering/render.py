"""`render_segment`: one segment of a plan, from source frames to an encoded file.

Three stages run at the same time, each in frame order: decode and crop (a thread), the model (the caller's
thread), paste and encode (a thread). The pixels of a frame depend on the plan alone: windows are denoised
whole, blended in index order and decoded with a fixed group of frames, whichever segment or process needs
them.
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
import torch

from lipsync_engine import media
from lipsync_engine.audio import features as audio_features
from lipsync_engine.faces.compositor import Compositor, Crop, compositor_for
from lipsync_engine.media.yuv import Frame
from lipsync_engine.models import LipSyncModel
from lipsync_engine.planning.plan import Plan
from lipsync_engine.planning.timeline import Segment, Window
from lipsync_engine.provenance.label import Label
from lipsync_engine.provenance.watermark import embed_watermark
from lipsync_engine.rendering.host_copy import HostCopy, TensorCopy
from lipsync_engine.rendering.output_check import OutputCheck
from lipsync_engine.utils import FloatArray

T = TypeVar("T")

MAX_CROPS_AHEAD = 24
"""Cropped frames that may wait for the model: two windows' new frames."""

MAX_PASTES_PENDING = 32
"""Frames that may wait for pasting or for the encoder."""


LatentCache = dict[tuple[int, int], torch.Tensor]
"""Latents of the windows at a segment's end by (speaker, window index), for the segment that follows in the
same process: its first windows blend with them."""

CACHED_WINDOWS = 2
"""Per speaker. With the usual overlap a segment needs one window of the segment before."""


def render_segment(
    plan: Plan, segment: Segment, model: LipSyncModel, path: Path, latents: LatentCache | None = None
) -> Generator[int, None, None]:
    """Render one segment into a file.

    Args:
        plan: of the job.
        segment: one of `plan.segments`.
        model: the one that the plan was made for.
        path: of the finished file; it appears only when complete.
        latents: of the job's segments that this process has rendered; updated. The pixels are the same
            without.

    Yields:
        Number of frames of this segment that are finished.

    Raises:
        OutputError: the generated faces fail the output check.
        MediaError, ResourceError: decoding or encoding failed.
    """
    header, params = plan.header, plan.header.params
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    with (
        media.SegmentWriter(
            part,
            header.video,
            header.fps,
            params.quality,
            codec=params.video_codec,
            max_short_side=params.max_short_side,
        ) as writer,
        closing(render_frames(plan, segment, model, latents)) as frames,
    ):
        for done, frame in enumerate(frames, start=1):
            writer.write(frame)
            yield done
    part.replace(path)


def render_frames(
    plan: Plan,
    segment: Segment,
    model: LipSyncModel,
    latents: LatentCache | None = None,
    copy_to_host: Callable[[torch.Tensor], HostCopy] = TensorCopy,
) -> Generator[Frame, None, None]:
    """Yield the segment's finished frames in output order, before encoding.

    Args:
        latents: see `render_segment`.
        copy_to_host: starts the copy of a window's faces from the device.
    """
    compositor = compositor_for(plan.header.params, model.keep_mask, plan.header.video)
    add_label = _label_function(plan)
    denoisers = [
        _WindowDenoiser(plan, segment, model, speaker, {} if latents is None else latents, copy_to_host)
        for speaker in range(len(plan.windows))
    ]
    in_windows = [denoiser.missing_frames() for denoiser in denoisers]
    checks = [OutputCheck(model.keep_mask) for _ in denoisers]
    with (
        closing(_FrameCompositor(plan, compositor, checks)) as frame_compositor,
        closing(
            _prefetch_items(_read_source_frames(plan, segment, compositor, in_windows), MAX_CROPS_AHEAD)
        ) as sources,
    ):
        for source in sources:
            if segment.start <= source.number < segment.stop:
                frame_compositor.expect_frame(source)
            for speaker, denoiser in enumerate(denoisers):
                for number, face in denoiser.add_frame(source):
                    frame_compositor.add_face(number, speaker, face)
            yield from map(add_label, frame_compositor.pop_finished(wait=False))
        for speaker, denoiser in enumerate(denoisers):
            for number, face in denoiser.flush():
                frame_compositor.add_face(number, speaker, face)
        yield from map(add_label, frame_compositor.pop_finished(wait=True))
        for check in checks:
            check.raise_if_unfit()


def _label_function(plan: Plan) -> Callable[[Frame], Frame]:
    """Return the function that draws the visible label into a frame, if the job has one."""
    if not plan.header.params.label:
        return lambda frame: frame
    video = plan.header.video
    return Label(video.format, float(video.sample_aspect_ratio)).draw


# --- decode and crop ---


@dataclass(frozen=True, slots=True)
class _SourceFrame:
    """An output frame before faces are generated, with the crop of each speaker who needs one."""

    number: int
    frame: Frame
    crops: dict[int, Crop]
    matte: FloatArray | None


def _read_source_frames(
    plan: Plan, segment: Segment, compositor: Compositor, in_windows: Sequence[set[int]]
) -> Generator[_SourceFrame, None, None]:
    """Yield in order every frame that the segment outputs or that is in one of `in_windows`, by speaker."""
    arrays, video = plan.arrays, plan.header.video
    numbers = sorted({*range(segment.start, segment.stop), *itertools.chain.from_iterable(in_windows)})
    order = arrays.order[numbers]
    with (
        media.FrameReader(video, arrays.pts_s) as reader,
        closing(plan.read_mattes(order)) as mattes,
        closing(reader.read(order.tolist())) as frames,
    ):
        for number, frame, matte in zip(numbers, frames, mattes, strict=True):
            crops = {
                speaker: compositor.crop(frame, arrays.matrices[speaker, arrays.order[number]])
                for speaker, window_frames in enumerate(in_windows)
                if number in window_frames
            }
            yield _SourceFrame(number, frame, crops, matte)


def _prefetch_items(items: Generator[T, None, None], ahead: int) -> Generator[T, None, None]:
    """Yield the same items, produced by a thread that is at most `ahead` items in front."""
    results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put_entry(entry: tuple[T | None, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                results.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce_items() -> None:
        with closing(items):
            try:
                for item in items:
                    if not put_entry((item, None)):
                        return
                put_entry((None, None))
            except BaseException as error:  # noqa: BLE001  (a thread boundary: raised again by the reader)
                put_entry((None, error))

    thread = threading.Thread(target=produce_items, name="decode-and-crop", daemon=True)
    thread.start()
    try:
        while True:
            item, error = results.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()


# --- the model ---


class _WindowDenoiser:
    """One speaker's faces: collects crops, denoises a window once it has all its frames, blends and decodes.

    The copy of a window's faces to the host is submitted before the next window, and awaited after it. A GPU
    then has work while the host waits, pastes and prepares the next inputs.
    """

    def __init__(
        self,
        plan: Plan,
        segment: Segment,
        model: LipSyncModel,
        speaker: int,
        latents: LatentCache,
        copy_to_host: Callable[[torch.Tensor], HostCopy],
    ) -> None:
        self._plan, self._model, self._segment, self._speaker = plan, model, segment, speaker
        self._copy_to_host = copy_to_host
        self._windows, of_segment = plan.windows[speaker], segment.speaker_windows[speaker]
        self._output_windows = set(of_segment.windows)
        order = sorted((*of_segment.context_windows, *of_segment.windows))
        self._latents = {
            k: latents[speaker, k] for k in order if (speaker, k) in latents and k not in self._output_windows
        }
        self._pending = deque(self._windows[k] for k in order if k not in self._latents)
        self._last_windows = set(order[-CACHED_WINDOWS:])
        self._cache = latents
        for key in [key for key in latents if key[0] == speaker]:
            del latents[key]
        self._crops: dict[int, FloatArray] = {}
        self._features = plan.open_audio_features(speaker)
        self._noise = model.initial_noise(plan.header.params.seed)
        self._in_flight: tuple[Window, HostCopy] | None = None

    def missing_frames(self) -> set[int]:
        """Return the numbers of the frames whose crops are needed."""
        return {number for window in self._pending for number in window.frames}

    def add_frame(self, source: _SourceFrame) -> Iterator[tuple[int, FloatArray]]:
        """Take the next frame and yield (number, float32 (R, R, 3) 0..255) of faces that are complete."""
        if self._speaker in source.crops:
            self._crops[source.number] = source.crops[self._speaker].face
        while self._pending and self._pending[0].frames[-1] <= source.number:
            window = self._pending.popleft()
            self._latents[window.index] = self._denoise_window(window)
            if window.index in self._last_windows:
                self._cache[self._speaker, window.index] = self._latents[window.index]
            if window.index in self._output_windows:
                in_flight = window, self._copy_to_host(self._decode_window(window))
                yield from self.flush()
                self._in_flight = in_flight
            self._drop_old_frames()

    def flush(self) -> Iterator[tuple[int, FloatArray]]:
        """Yield the faces of the window that was submitted last."""
        if self._in_flight is None:
            return
        (window, faces), self._in_flight = self._in_flight, None
        for number, face in zip(window.output_frames, faces.wait(), strict=True):
            if self._segment.start <= number < self._segment.stop:
                yield number, face

    def _denoise_window(self, window: Window) -> torch.Tensor:
        header, model = self._plan.header, self._model
        crops = np.stack([self._crops[number] for number in window.frames]).transpose(0, 3, 1, 2)
        frames = np.asarray(window.frames)
        audio_windows = audio_features.gated_windows(
            self._features,
            frames / float(header.fps),
            self._plan.arrays.gate[self._speaker, frames] if header.params.voice_gate else None,
            model.info.audio_context,
        )
        return model.denoise(
            torch.from_numpy(crops / np.float32(127.5) - np.float32(1.0)),
            audio_windows,
            noise=self._noise,
            num_inference_steps=header.params.num_inference_steps or model.info.num_inference_steps,
            guidance_scale=(
                model.info.guidance_scale
                if header.params.guidance_scale is None
                else header.params.guidance_scale
            ),
            posterior_noise=self._posterior_noise(window),
            fast_sampling=header.params.fast_sampling,
        )

    def _posterior_noise(self, window: Window) -> tuple[torch.Tensor, torch.Tensor] | None:
        params = self._plan.header.params
        if not params.sample_posterior:
            return None
        entropy = [params.seed, window.index, *([self._speaker] if self._speaker else [])]
        state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        generator = torch.Generator(self._noise.device).manual_seed(int(state) >> 1)
        shape = (len(window.frames), self._noise.shape[1], *self._noise.shape[-2:])

        def draw_noise() -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=self._noise.device, dtype=self._noise.dtype)

        return draw_noise(), draw_noise()

    def _decode_window(self, window: Window) -> torch.Tensor:
        """Decode a window's output frames: float32 (N, R, R, 3) 0..255 on the device.

        The latents of each frame are blended from every window that contains it, in index order.
        """
        frame_latents = []
        for number in window.output_frames:
            total: torch.Tensor | None = None
            for index, latents in self._latents.items():
                other = self._windows[index]
                if other.frames[0] <= number <= other.frames[-1] and number in other.frames:
                    position = other.frames.index(number)
                    part = latents[position] * other.weights[position]
                    total = part if total is None else total + part
            if total is None:
                raise AssertionError("a window always contains its output frames")
            frame_latents.append(total)
        faces = self._model.decode(torch.stack(frame_latents))
        return ((faces.float() + 1.0) * 127.5).permute(0, 2, 3, 1)

    def _drop_old_frames(self) -> None:
        """Drop latents and crops that no later window needs."""
        first_output = min((w.output_frames[0] for w in self._pending), default=None)
        first_frame = min((w.frames[0] for w in self._pending), default=None)
        self._latents = {
            k: v
            for k, v in self._latents.items()
            if first_output is not None and self._windows[k].frames[-1] >= first_output
        }
        self._crops = {k: v for k, v in self._crops.items() if first_frame is not None and k >= first_frame}


# --- paste ---


class _FrameCompositor:
    """Pastes faces into frames in a thread of its own and returns the frames in order."""

    def __init__(self, plan: Plan, compositor: Compositor, checks: Sequence[OutputCheck]) -> None:
        self._weight = plan.arrays.weight
        self._has_watermark = plan.header.params.watermark
        self._compositor, self._checks = compositor, checks
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="paste")
        self._sources: dict[int, _SourceFrame] = {}  # frames that wait for faces
        self._faces: dict[int, dict[int, FloatArray]] = {}
        self._order: deque[int] = deque()
        self._results: dict[int, Future[Frame] | Frame] = {}

    def expect_frame(self, source: _SourceFrame) -> None:
        """Announce the next output frame."""
        self._order.append(source.number)
        if source.crops:
            self._sources[source.number], self._faces[source.number] = source, {}
        else:
            self._results[source.number] = source.frame

    def add_face(self, number: int, speaker: int, face: FloatArray) -> None:
        """Take a generated face of an announced frame; paste once the frame has all its faces."""
        faces = self._faces[number]
        faces[speaker] = face
        if faces.keys() == self._sources[number].crops.keys():
            source = self._sources.pop(number)
            self._results[number] = self._thread.submit(self._paste_faces, source, self._faces.pop(number))

    def _paste_faces(self, source: _SourceFrame, faces: dict[int, FloatArray]) -> Frame:
        frame = source.frame
        for speaker, crop in source.crops.items():
            self._checks[speaker].add(source.number, faces[speaker], crop.face)
            face = embed_watermark(faces[speaker]) if self._has_watermark else faces[speaker]
            weight = float(self._weight[speaker, source.number])
            frame = self._compositor.paste(frame, crop, face, weight, source.matte)
        return frame

    def pop_finished(self, *, wait: bool) -> Iterator[Frame]:
        """Yield finished frames in order; with `wait` all announced frames."""
        while self._order and self._order[0] in self._results:
            result = self._results[self._order[0]]
            if isinstance(result, Future):
                if not (wait or result.done() or len(self._results) > MAX_PASTES_PENDING):
                    return
                result = result.result()
            del self._results[self._order.popleft()]
            yield result

    def close(self) -> None:
        """Cancel what is not pasted yet and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
