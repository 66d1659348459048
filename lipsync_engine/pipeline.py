"""The story of a job: a video and a voice in, a lip-synced video out.

`LipSyncPipeline` holds a loaded model and a face detector. Its `run` is a generator that yields progress, so
that the caller owns progress bars and cancellation (closing the generator stops between frames and leaves no
child and no half file). Work lies in a private folder named by everything that decides the result; a run that
finds finished segments there goes on after them. It knows neither terminals nor HTTP.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

from lipsync_engine import faces, media
from lipsync_engine.cache import default_cache_dir
from lipsync_engine.device import choose_compile, choose_device, choose_fp8
from lipsync_engine.errors import FaceError
from lipsync_engine.faces.registry import load_detector
from lipsync_engine.models import LipSyncModel, load_model
from lipsync_engine.params import Motion, Provenance, Speaker, SyncParams
from lipsync_engine.planning.plan import Plan, analyse
from lipsync_engine.planning.speakers import Cast
from lipsync_engine.portrait.source import Clips, animate
from lipsync_engine.progress import Meter, Progress, Stage
from lipsync_engine.provenance import Facts, Marker, Policy, require_consent
from lipsync_engine.provenance.content_filter import ContentFinding, ContentGuard, ContentPolicy
from lipsync_engine.rendering.segment_renderer import Helpers, Segments
from lipsync_engine.rendering.work_dir import resource_errors, take_over, unpublished, work_folder
from lipsync_engine.result import StageSeconds, SyncResult
from lipsync_engine.sync_score import SyncScore, SyncScorer, installed_scorer, score_job
from lipsync_engine.weights import WeightsStore

log = logging.getLogger(__name__)


class LipSyncPipeline:
    """A loaded model and a detector, ready for any number of jobs, one at a time.

    Pipelines with the same model may work at once, each in a thread of its own with a detector of its own.

    Args:
        model: from `lipsync_engine.models.load_model`.
        detector: finds faces in single pictures.
        cache_dir: for analyses, generated motion and unfinished work; None: LIPSYNC_CACHE_DIR, else the
            user's cache folder.
        weights: where models of generated motion come from; None: as `from_pretrained` takes them.
        marker: signs results; None: as the environment says.
        scorer: measures every result; None: none is measured.
        guard: looks at every source; None: nobody does.
    """

    def __init__(
        self,
        model: LipSyncModel,
        detector: faces.FaceDetector,
        *,
        cache_dir: Path | None = None,
        weights: WeightsStore | None = None,
        marker: Marker | None = None,
        scorer: SyncScorer | None = None,
        guard: ContentGuard | None = None,
    ) -> None:
        self.model = model
        self.detector = detector
        self._cache_dir = cache_dir or default_cache_dir()
        self._weights = weights or WeightsStore()
        self.marker = marker or Marker.from_environment()
        self._scorer = scorer
        self._guard = guard or ContentGuard(ContentPolicy.OFF, None)

    @classmethod
    def from_pretrained(
        cls,
        name: str = "tiny",
        *,
        device: str | None = None,
        dtype: str | None = None,
        detector: str | None = None,
        weights_dir: Path | None = None,
        cache_dir: Path | None = None,
        marking: str | None = None,
        sync_score: bool = True,
        compiled: bool | None = None,
        fp8: bool | None = None,
    ) -> Self:
        """Load a model of the manifest.

        Args:
            name: as `lipsync weights list` shows it.
            device: cuda, mps or cpu; None takes the best there is.
            dtype: fp32, fp16 or bf16; None takes what suits the device.
            detector: see `detectors.load_detector`; None takes the model's own.
            weights_dir: where downloaded weights lie; None: LIPSYNC_WEIGHTS_DIR, else the user's cache
                folder.
            cache_dir: see the class.
            marking: what happens to a result that cannot be signed: required, best_effort, or off, where none
                is to be; None: LIPSYNC_MARKING, else required.
            sync_score: measure how well lips and voice of every result belong together, where the weights of
                such a score are here for the faces that the detector finds.
            compiled: run the networks as compiled code; None: LIPSYNC_COMPILE, else not. The first start
                takes minutes, later ones seconds, by what lies in the cache folder.
            fp8: compute large layers in eight-bit floating point, which needs a GPU of capability 8.9; None:
                LIPSYNC_FP8, else not.

        Raises:
            WeightsError: files are missing or do not fit; the message names the command that helps.
            ResourceError: the device is not there. ParameterError: marking, content check.
        """
        marker = Marker.from_environment(marking)
        if marker.policy is Policy.OFF:
            log.warning("marking is off: results carry no content credentials")
        store = WeightsStore(weights_dir)
        chosen = choose_device(device, dtype)
        model = load_model(name, device=chosen.device, dtype=chosen.dtype, store=store)
        if choose_fp8(fp8, chosen.device):
            model.to_float8()
        if choose_compile(compiled):
            model.compile((cache_dir or default_cache_dir()) / "compiled")
        found_by = detector or store.entry(name).detector
        finder = load_detector(found_by, store)
        scorer = installed_scorer(found_by, store, chosen.device) if sync_score else None
        guard = ContentGuard.from_environment(store, chosen.device)
        return cls(
            model, finder, cache_dir=cache_dir, weights=store, marker=marker, scorer=scorer, guard=guard
        )

    def beside(self, detector: faces.FaceDetector) -> Self:
        """Another one, for another thread: all but the detector, which has a state, is shared."""
        return type(self)(
            self.model,
            detector,
            cache_dir=self._cache_dir,
            weights=self._weights,
            marker=self.marker,
            scorer=self._scorer,
            guard=self._guard,
        )

    def __call__(
        self,
        video: Path | str,
        audio: Path | str | Sequence[Speaker],
        output: Path | str,
        params: SyncParams | None = None,
        *,
        output_audio: Path | str | None = None,
        provenance: Provenance | None = None,
    ) -> SyncResult:
        """`run` without looking at its progress."""
        return _finished(
            self.run(video, audio, output, params, output_audio=output_audio, provenance=provenance)
        )

    def run(
        self,
        video: Path | str,
        audio: Path | str | Sequence[Speaker],
        output: Path | str,
        params: SyncParams | None = None,
        *,
        output_audio: Path | str | None = None,
        provenance: Provenance | None = None,
        helpers: Helpers | None = None,
    ) -> Generator[Progress, None, SyncResult]:
        """Make the video.

        Args:
            video: file with the person, or the persons; its own sound is not used.
            audio: file with the voice that drives the lips, any container with sound; or the voices of
                several speakers, each of whom keeps a resting mouth while silent (`params.face` is not used).
            output: .mp4, .mov or .mkv to write; replaced only when the new one is complete.
            params: options; None: the default preset.
            output_audio: what is heard, where that is not `audio` (a mix with music, say). Several voices are
                mixed.
            provenance: what is signed with the result besides its making.
            helpers: who renders segments of it besides this process; None: nobody.

        Yields:
            Progress of each stage.

        Returns:
            What was made.

        Raises:
            LipSyncError: with the code of what went wrong; nothing half-made is left behind.
        """
        self._prepare(Path(output), provenance)
        inner = self._run(video, audio, output, params, output_audio, provenance, helpers, Path(video))
        return (yield from inner)

    def _run(
        self,
        video: Path | str,
        audio: Path | str | Sequence[Speaker],
        output: Path | str,
        params: SyncParams | None,
        output_audio: Path | str | None,
        provenance: Provenance | None,
        helpers: Helpers | None,
        source: Path,
    ) -> Generator[Progress, None, SyncResult]:
        """`run`, of a video that was made from `source`."""
        params = params or SyncParams()
        # 1. Look at the inputs and the output's place before any heavy work.
        video_info = media.probe_video(Path(video))
        content = self._guard.look(video_info)
        cast = None if isinstance(audio, (str, Path)) else Cast.of(audio)
        voices = [Path(audio)] if isinstance(audio, (str, Path)) else [speaker.audio for speaker in audio]
        probed = [media.probe_audio(path) for path in voices]
        heard = media.probe_audio(Path(output_audio)) if output_audio is not None else None
        video_hash = media.content_hash(video_info.path)
        inputs = (video_info.path, *voices, *([] if heard is None else [heard.path]))
        key = self._job_key(video_hash, voices, cast, params)
        with (
            resource_errors(),
            unpublished(Path(output), inputs, key) as part,
            work_folder(self._cache_dir / "jobs", key) as folder,
        ):
            seconds = dict.fromkeys(Stage, 0.0)
            sound = heard.path if heard is not None else voices[0] if cast is None else cast.mix(folder)
            segments = Segments(self.model, folder, sound, key, helpers)

            # 2. Analyse, or take the plan that an interrupted run has left. Of a long clip the first segments
            #    are rendered before the rest is read.
            speakers = [(params.face, probed[0])] if cast is None else cast.record(folder)
            if helpers is not None and not (folder / "plan.json").exists():
                take_over(helpers.left(key), folder)
            plan = Plan.load(folder, video_info, params)
            if plan is None:
                analysis = analyse(
                    video_info,
                    speakers,
                    params,
                    model=self.model,
                    detector=self.detector,
                    cache=faces.AnalysisCache(self._cache_dir / "analysis"),
                    video_hash=video_hash,
                    folder=folder,
                )
                plan = yield from _timed(analysis, seconds, segments)

            # 3. Render the segments that are not there yet; each that is can be watched from now on.
            yield from segments.render(plan)
            seconds[Stage.RENDER] = segments.seconds

            # 4. Measure the lips; join the segments with the sound, sign, and publish.
            meter = Meter(Stage.ASSEMBLE, 1)
            yield meter.at(0)
            sync = self._measure(plan, segments.files, [voice.path for _, voice in speakers])
            media.assemble(segments.files, part, video_info, plan.header.fps, params.quality, audio=sound)
            facts = self._facts(plan, provenance or Provenance(), key)
            unmarked = self.marker.mark(part, source, facts)
            part.replace(output)
            yield meter.at(1)
            seconds[Stage.ASSEMBLE] = meter.elapsed_s
            shutil.rmtree(folder)
        return self._result(plan, Path(output), segments.resumed, seconds, facts.job, unmarked, sync, content)

    def portrait(
        self,
        picture: Path | str,
        audio: Path | str | Sequence[Speaker],
        output: Path | str,
        params: SyncParams | None = None,
        *,
        motion: Motion = Motion.NATURAL,
        prompt: str | None = None,
        motion_model: str | None = None,
        output_audio: Path | str | None = None,
        provenance: Provenance | None = None,
    ) -> SyncResult:
        """`run_portrait` without looking at its progress."""
        return _finished(
            self.run_portrait(
                picture,
                audio,
                output,
                params,
                motion=motion,
                prompt=prompt,
                motion_model=motion_model,
                output_audio=output_audio,
                provenance=provenance,
            )
        )

    def run_portrait(
        self,
        picture: Path | str,
        audio: Path | str | Sequence[Speaker],
        output: Path | str,
        params: SyncParams | None = None,
        *,
        motion: Motion = Motion.NATURAL,
        prompt: str | None = None,
        motion_model: str | None = None,
        output_audio: Path | str | None = None,
        provenance: Provenance | None = None,
        helpers: Helpers | None = None,
    ) -> Generator[Progress, None, SyncResult]:
        """Make a still picture speak, as long as the voice lasts, at 25 fps.

        Args:
            picture: PNG, JPEG, WebP or BMP with one or more faces.
            motion: what the head does.
            prompt: for generated motion, what happens in the picture besides speaking; None: the person
                idles. That lips are closed and the camera stands still is always added.
            motion_model: for generated motion, a model of the manifest; None: the first that can do it.
            audio, output, params, output_audio, provenance, helpers: as for `run`.

        Yields, Returns, Raises:
            As `run`. WeightsError where files for generated motion are missing, before any work.
        """
        params = params or SyncParams()
        media.check_output(Path(output), (Path(picture),))
        self._prepare(Path(output), provenance)
        still = media.read_image(Path(picture), params.max_short_side)
        how, warnings = self._motion(motion, prompt, motion_model)
        alone = isinstance(audio, (str, Path))
        cast = Cast.of([Speaker(params.face, Path(audio))] if isinstance(audio, (str, Path)) else audio)
        voices = [speaker.audio for speaker in cast.speakers]
        origin = motion if isinstance(how, Motion) else f"{motion} {how.path(still, params).stem}"
        key = self._job_key(f"{origin} {media.content_hash(Path(picture))}", voices, cast, params)
        with resource_errors(), work_folder(self._cache_dir / "jobs", key) as folder:
            film = folder / "portrait.mp4"
            people = [(face, voice.path) for face, voice in cast.record(folder)]
            began = time.monotonic()
            yield from animate(still, people, film, self.detector, params, how)
            motion_s = time.monotonic() - began
            moving = dataclasses.replace(params, max_short_side=None)
            spoken = voices[0] if alone else cast.speakers
            try:
                result = yield from self._run(
                    film, spoken, output, moving, output_audio, provenance, helpers, Path(picture)
                )
            except FaceError as error:
                if motion is not Motion.GENERATED:
                    raise
                raise FaceError(  # the picture had the face
                    error.code,
                    "The face is lost in the generated motion: use another seed or prompt, or "
                    "motion=natural.",
                ) from error
            seconds = dataclasses.replace(result.seconds, motion=motion_s)
            return dataclasses.replace(result, seconds=seconds, warnings=result.warnings + warnings)

    def _motion(
        self, motion: Motion, prompt: str | None, model: str | None
    ) -> tuple[Motion | Clips, tuple[str, ...]]:
        """How a portrait is moved, and what was asked for that has no part in it."""
        if motion is Motion.GENERATED:
            clips = Clips.find(model, prompt, self._weights, self._cache_dir / "motion", self.model.device)
            return clips, ()
        unused = [name for name, given in (("prompt", prompt), ("motion model", model)) if given]
        return motion, tuple(
            f"The {name} was not used: motion={motion} needs none, only motion=generated does."
            for name in unused
        )

    def compare(
        self, video: Path, result: SyncResult, output: Path, provenance: Provenance | None = None
    ) -> str | None:
        """Source and result side by side, signed like the result.

        Returns:
            A sentence where it is left unmarked.

        Raises:
            As `media.write_comparison`, and SigningError.
        """
        self.marker.prepare(output)
        with resource_errors(), unpublished(output, (video, result.output), "compare") as part:
            media.write_comparison(video, result.output, part, result.frames)
            facts = Facts(
                model=result.model,
                weights_sha256=result.weights_sha256,
                seed=result.seed,
                num_inference_steps=result.num_inference_steps,
                job=result.job,
                consent=None if provenance is None else provenance.consent,
            )
            unmarked = self.marker.mark(part, video, facts)
            part.replace(output)
        return unmarked

    def _prepare(self, output: Path, provenance: Provenance | None) -> None:
        """Whether this job may run and its result can be signed."""
        require_consent((provenance or Provenance()).consent)
        self.marker.prepare(output)

    def _measure(self, plan: Plan, files: Sequence[Path], voices: Sequence[Path]) -> SyncScore | None:
        return None if self._scorer is None else score_job(plan, files, voices, self._scorer)

    def _facts(self, plan: Plan, provenance: Provenance, key: str) -> Facts:
        info, params = self.model.info, plan.header.params
        return Facts(
            model=info.name,
            weights_sha256=info.weights_sha256,
            seed=params.seed,
            num_inference_steps=params.num_inference_steps or info.num_inference_steps,
            job=provenance.job or key,
            consent=provenance.consent,
        )

    def _result(
        self,
        plan: Plan,
        output: Path,
        segments_resumed: int,
        seconds: dict[Stage, float],
        job: str,
        unmarked: str | None,
        sync: SyncScore | None,
        content: ContentFinding,
    ) -> SyncResult:
        info, params = self.model.info, plan.header.params
        guidance = info.guidance_scale if params.guidance_scale is None else params.guidance_scale
        width, height = media.output_size(plan.header.video.format, params.max_short_side)
        silent = None if plan.arrays.gate.any() else "Nobody speaks in the voice: the lips rest throughout."
        return SyncResult(
            output=output,
            width=width,
            height=height,
            fps=plan.header.fps,
            frames=plan.n_frames,
            frames_without_face=plan.frames_without_face,
            segments=len(plan.segments),
            segments_resumed=segments_resumed,
            analysis_cached=plan.header.analysis_cached,
            seed=params.seed,
            num_inference_steps=params.num_inference_steps or info.num_inference_steps,
            guidance_scale=guidance,
            model=info.name,
            weights_sha256=info.weights_sha256,
            device=str(self.model.device),
            dtype=self.model.precision,
            seconds=StageSeconds(**{stage.value: seconds[stage] for stage in Stage}),
            job=job,
            is_marked=unmarked is None,
            sync=sync,
            is_nsfw=content.is_nsfw,
            warnings=tuple(said for said in (unmarked, content.warning, silent) if said is not None),
        )

    def _job_key(self, video_hash: str, voices: Sequence[Path], cast: Cast | None, params: SyncParams) -> str:
        """Names everything that decides a job's pixels; equal keys may share finished segments."""
        digest = hashlib.sha256()
        names = ("faces_file", "face_mask", "mask_image", "matte")
        given = {name: path for name in names if (path := getattr(params, name)) is not None}
        names_alone: dict[str, Any] = {name: Path(name) for name in given}  # what is in the files counts
        placeless = dataclasses.replace(params, **names_alone)
        for part in (
            video_hash,
            *map(media.content_hash, voices),
            "" if cast is None else str([(s.face, s.start_s, s.length_s) for s in cast.speakers]),
            *(media.content_hash(path) for path in given.values()),
            TypeAdapter(SyncParams).dump_json(placeless).decode(),
            self.model.info.name,
            self.model.info.weights_sha256,
            f"{self.model.device.type} {self.model.precision}",
            self.detector.name,
            version("lipsync-engine"),
        ):
            digest.update(part.encode() + b"\0")
        return digest.hexdigest()[:32]


def _finished(steps: Generator[Progress, None, SyncResult]) -> SyncResult:
    """Run to the end."""
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            result: SyncResult = finished.value
            return result


def _timed(
    steps: Generator[Progress | Plan, None, Plan], seconds: dict[Stage, float], segments: Segments
) -> Generator[Progress, None, Plan]:
    """Pass progress on, note how long each stage took, and render what can be rendered in between."""
    began = time.monotonic()
    with closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as finished:
                plan: Plan = finished.value
                return plan
            if isinstance(step, Plan):
                yield from segments.render(step)
            else:
                seconds[step.stage] += time.monotonic() - began
                yield step
            began = time.monotonic()
