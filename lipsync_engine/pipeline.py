"""A job from inputs to output: video and audio in, lip-synced video out.

`LipSyncPipeline` holds a loaded model and a face detector. Its `run` is a generator that yields progress, so
the caller owns progress bars and cancellation: closing the generator stops between frames and leaves neither
child processes nor partial files. Intermediate files are in a private folder whose name is a hash of all that
decides the result; a run that finds finished segments there resumes after them. The module knows neither
terminals nor HTTP.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

from lipsync_engine import faces, media
from lipsync_engine.audio.vad import GATE_VERSION
from lipsync_engine.device import choose_compile, choose_device, choose_fp8
from lipsync_engine.errors import FaceError
from lipsync_engine.faces.registry import check_detector, load_detector
from lipsync_engine.models import LipSyncModel, load_model
from lipsync_engine.params import Motion, Provenance, Speaker, SyncParams
from lipsync_engine.planning.plan import Plan
from lipsync_engine.planning.planner import plan_job
from lipsync_engine.planning.speakers import SpeakerMix
from lipsync_engine.portrait.source import ClipCache, write_source_video
from lipsync_engine.progress import Meter, Progress, Stage
from lipsync_engine.provenance import ManifestFacts, ManifestSigner, SigningPolicy, require_consent
from lipsync_engine.provenance.content_filter import ContentFilter, ContentPolicy, ContentResult
from lipsync_engine.rendering.segment_renderer import RemoteRenderers, SegmentRenderer
from lipsync_engine.rendering.work_dir import (
    adopt_segments,
    atomic_output,
    translate_resource_errors,
    work_dir,
)
from lipsync_engine.result import JobWarning, StageSeconds, SyncResult, WarningCode
from lipsync_engine.sync_score import SyncScore, SyncScorer, find_installed_scorer, score_job
from lipsync_engine.utils import default_cache_dir, drain, package_version
from lipsync_engine.weights import WeightsStore

log = logging.getLogger(__name__)

MAX_MOMENTS = 5
"""A warning names this many moments and counts the others."""


class LipSyncPipeline:
    """A loaded model and a face detector, ready for any number of jobs, one at a time.

    Pipelines that share a model may run at once, each in a thread of its own; see `clone_for_thread`.

    Args:
        model: from `lipsync_engine.models.load_model`.
        detector: detects faces in single frames.
        cache_dir: for face tracks, generated motion and unfinished work; None: LIPSYNC_CACHE_DIR, else the
            user's cache folder.
        weights: where models of generated motion come from; None: the default store.
        signer: signs results; None: as the environment sets it up.
        scorer: measures the lip-sync of every result; None: not measured.
        content_filter: classifies every source; None: not classified.
    """

    def __init__(
        self,
        model: LipSyncModel,
        detector: faces.FaceDetector,
        *,
        cache_dir: Path | None = None,
        weights: WeightsStore | None = None,
        signer: ManifestSigner | None = None,
        scorer: SyncScorer | None = None,
        content_filter: ContentFilter | None = None,
    ) -> None:
        self.model = model
        self.detector = detector
        self.cache_dir = cache_dir or default_cache_dir()
        self._weights = weights or WeightsStore()
        self.signer = signer or ManifestSigner.from_environment()
        self._scorer = scorer
        self._content_filter = content_filter or ContentFilter(ContentPolicy.OFF, None)

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
        force: bool = False,
    ) -> Self:
        """Load a model of the manifest.

        Args:
            name: from `lipsync weights list`.
            device: cuda, mps or cpu; None: the best available.
            dtype: fp32, fp16 or bf16; None: the device's best.
            detector: see `faces.registry.load_detector`; None: the model's own.
            weights_dir: folder of downloaded weights; None: LIPSYNC_WEIGHTS_DIR, else the user's cache
                folder.
            cache_dir: see the class.
            marking: what to do with a result that cannot be signed: required (fail), best_effort (warn), or
                off (never sign); None: LIPSYNC_MARKING, else required.
            sync_score: measure the lip-sync of every result, if weights of a score are installed for the
                detector's kind of faces.
            compiled: run the networks as compiled code; None: LIPSYNC_COMPILE, else no. The first start
                compiles for minutes, later ones load from the cache folder in seconds.
            fp8: compute large layers in eight-bit floating point, which needs a GPU of compute capability
                8.9; None: LIPSYNC_FP8, else no.
            force: use a detector whose faces the model was not trained on.

        Raises:
            WeightsError: files are missing or do not match; the message names the command that helps.
            ResourceError: the device is not available.
            ParameterError: marking or the content policy is invalid.
        """
        signer = ManifestSigner.from_environment(marking)
        if signer.policy is SigningPolicy.OFF:
            log.warning("marking is off: results have no content credentials")
        store = WeightsStore(weights_dir)
        detector_name = detector or store.entry(name).detector
        if not force:
            check_detector(name, detector_name, store)
        target = choose_device(device, dtype)
        model = load_model(name, device=target.device, dtype=target.dtype, store=store)
        if choose_fp8(fp8, target.device):
            model.to_float8()
        if choose_compile(compiled):
            model.compile((cache_dir or default_cache_dir()) / "compiled")
        return cls(
            model,
            load_detector(detector_name, store),
            cache_dir=cache_dir,
            weights=store,
            signer=signer,
            scorer=find_installed_scorer(detector_name, store, target.device) if sync_score else None,
            content_filter=ContentFilter.from_environment(store, target.device),
        )

    def clone_for_thread(self, detector: faces.FaceDetector) -> Self:
        """Return a pipeline for another thread that shares everything but the detector, which has state."""
        return self._copy(detector, self.cache_dir)

    def with_cache_dir(self, cache_dir: Path) -> Self:
        """Return a pipeline that shares everything with this one but its caches and unfinished work."""
        return self._copy(self.detector, cache_dir)

    def _copy(self, detector: faces.FaceDetector, cache_dir: Path) -> Self:
        return type(self)(
            self.model,
            detector,
            cache_dir=cache_dir,
            weights=self._weights,
            signer=self.signer,
            scorer=self._scorer,
            content_filter=self._content_filter,
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
        """Run a job without progress reports; see `run`."""
        return drain(self.run(video, audio, output, params, output_audio=output_audio, provenance=provenance))

    def run(
        self,
        video: Path | str,
        audio: Path | str | Sequence[Speaker],
        output: Path | str,
        params: SyncParams | None = None,
        *,
        output_audio: Path | str | None = None,
        provenance: Provenance | None = None,
        remote: RemoteRenderers | None = None,
    ) -> Generator[Progress, None, SyncResult]:
        """Lip-sync a video.

        Args:
            video: file with one or more people; its own audio is not used.
            audio: file with the voice that drives the lips, in any container with audio; or several speakers,
                whose mouths rest while they are silent (`params.face` is not used then).
            output: .mp4, .mov or .mkv to write; it appears or is replaced only when the result is complete.
            params: options; None: the default preset.
            output_audio: audio of the result if it is not `audio`, such as a mix with music. None: `audio`,
                or the mix of all speakers.
            provenance: what is signed with the result besides the facts of its making.
            remote: other processes that render segments of the job; None: none.

        Yields:
            Progress of each stage.

        Returns:
            The result's properties.

        Raises:
            LipSyncError: with its code; no partial output is left.
        """
        self._require_permitted(Path(output), provenance)
        inner = self._run(video, audio, output, params, output_audio, provenance, remote, Path(video))
        return (yield from inner)

    def _run(
        self,
        video: Path | str,
        audio: Path | str | Sequence[Speaker],
        output: Path | str,
        params: SyncParams | None,
        output_audio: Path | str | None,
        provenance: Provenance | None,
        remote: RemoteRenderers | None,
        source: Path,
    ) -> Generator[Progress, None, SyncResult]:
        """Lip-sync a video that was derived from `source`, the file that content credentials name."""
        params = params or SyncParams()
        # 1. Probe inputs and output before any expensive work.
        video_info = media.probe_video(Path(video))
        media.check_hdr(video_info, params.hdr)
        content = self._content_filter.check(video_info)
        mix = None if isinstance(audio, (str, Path)) else SpeakerMix.from_speakers(audio)
        voices = [Path(audio)] if isinstance(audio, (str, Path)) else [speaker.audio for speaker in audio]
        voice_infos = [media.probe_audio(path) for path in voices]
        result_audio = None if output_audio is None else media.probe_audio(Path(output_audio)).path
        video_hash = media.content_hash(video_info.path)
        inputs = (video_info.path, *voices, *([] if result_audio is None else [result_audio]))
        key = self._job_key(video_hash, voices, mix, params)
        with (
            translate_resource_errors(),
            atomic_output(Path(output), inputs, key) as part,
            work_dir(self.cache_dir / "jobs", key) as folder,
        ):
            seconds = dict.fromkeys(Stage, 0.0)
            if result_audio is None:
                result_audio = voices[0] if mix is None else mix.write_mix(folder)
            renderer = SegmentRenderer(self.model, folder, result_audio, key, remote)

            # 2. Plan, or load the plan of an interrupted run. The first segments of a long clip are rendered
            #    before the rest is read.
            speakers = [(params.face, voice_infos[0])] if mix is None else mix.write_tracks(folder)
            if remote is not None and not (folder / "plan.json").exists():
                adopt_segments(remote.previous_segments(key), folder)
            plan = Plan.load(folder, video_info, params)
            if plan is None:
                planning = plan_job(
                    video_info,
                    speakers,
                    params,
                    model=self.model,
                    detector=self.detector,
                    cache=faces.AnalysisCache(self.cache_dir / "analysis"),
                    video_hash=video_hash,
                    folder=folder,
                )
                plan = yield from _plan_and_render(planning, seconds, renderer)

            # 3. Render the segments that are not there yet; each one can be previewed once it is finished.
            yield from renderer.render_ready(plan)
            seconds[Stage.RENDER] = renderer.elapsed_s

            # 4. Measure the lip-sync, join the segments with the audio, sign, publish.
            meter = Meter(Stage.ASSEMBLE, 1)
            yield meter.at(0)
            sync = self._score_sync(plan, renderer.files, [voice.path for _, voice in speakers])
            media.assemble(
                renderer.files,
                part,
                video_info,
                plan.header.fps,
                params.quality,
                audio=result_audio,
                copies_audio=mix is None or output_audio is not None,
                codec=params.video_codec,
            )
            facts = self._manifest_facts(plan, provenance or Provenance(), key)
            signing_warning = self.signer.sign(part, source, facts)
            part.replace(output)
            yield meter.at(1)
            seconds[Stage.ASSEMBLE] = meter.elapsed_s
            shutil.rmtree(folder)
        return self._build_result(
            plan, Path(output), renderer.n_resumed, seconds, facts.job, signing_warning, sync, content
        )

    def portrait(
        self,
        image: Path | str,
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
        """Animate and lip-sync a still portrait without progress reports; see `run_portrait`."""
        return drain(
            self.run_portrait(
                image,
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
        image: Path | str,
        audio: Path | str | Sequence[Speaker],
        output: Path | str,
        params: SyncParams | None = None,
        *,
        motion: Motion = Motion.NATURAL,
        prompt: str | None = None,
        motion_model: str | None = None,
        output_audio: Path | str | None = None,
        provenance: Provenance | None = None,
        remote: RemoteRenderers | None = None,
    ) -> Generator[Progress, None, SyncResult]:
        """Animate a still portrait and lip-sync it; the result is as long as the audio, at 25 fps.

        Args:
            image: PNG, JPEG, WebP or BMP with one or more faces.
            motion: how the head moves.
            prompt: for generated motion, what happens besides speaking; None: the person idles. Closed lips
                and a still camera are always added to it.
            motion_model: for generated motion, a model of the manifest; None: the first image-to-video model.
            audio, output, params, output_audio, provenance, remote: as for `run`.

        Yields, Returns, Raises:
            As `run`. WeightsError before any work if files for generated motion are missing.
        """
        params = params or SyncParams()
        media.check_output(Path(output), (Path(image),))
        self._require_permitted(Path(output), provenance)
        still = media.read_image(Path(image), params.max_short_side)
        motion_source, warnings = self._choose_motion(motion, prompt, motion_model)
        is_one_voice = isinstance(audio, (str, Path))
        mix = SpeakerMix.from_speakers(
            [Speaker(params.face, Path(audio))] if isinstance(audio, (str, Path)) else audio
        )
        voices = [speaker.audio for speaker in mix.speakers]
        if isinstance(motion_source, ClipCache):
            motion_id = f"{motion} {motion_source.clip_path(still, params).stem}"
        else:
            motion_id = str(motion)
        key = self._job_key(f"{motion_id} {media.content_hash(Path(image))}", voices, mix, params)
        with translate_resource_errors(), work_dir(self.cache_dir / "jobs", key) as folder:
            video = folder / "portrait.mp4"
            people = [(face, voice.path) for face, voice in mix.write_tracks(folder)]
            start_s = time.monotonic()
            yield from write_source_video(still, people, video, self.detector, params, motion_source)
            motion_s = time.monotonic() - start_s
            video_params = dataclasses.replace(params, max_short_side=None)
            speakers = voices[0] if is_one_voice else mix.speakers
            try:
                result = yield from self._run(
                    video, speakers, output, video_params, output_audio, provenance, remote, Path(image)
                )
            except FaceError as error:
                if motion is not Motion.GENERATED:
                    raise
                raise FaceError(  # the image had the face
                    error.code,
                    "The face is lost in the generated motion: use another seed or prompt, or "
                    "motion=natural.",
                ) from error
            seconds = dataclasses.replace(result.seconds, motion=motion_s)
            return dataclasses.replace(result, seconds=seconds, warnings=result.warnings + warnings)

    def _choose_motion(
        self, motion: Motion, prompt: str | None, model: str | None
    ) -> tuple[Motion | ClipCache, tuple[JobWarning, ...]]:
        """Return the source of a portrait's motion, and a warning for each option that it does not use."""
        if motion is Motion.GENERATED:
            clips = ClipCache.from_manifest(
                model, prompt, self._weights, self.cache_dir / "motion", self.model.device
            )
            return clips, ()
        unused_options = [name for name, value in (("prompt", prompt), ("motion model", model)) if value]
        return motion, tuple(
            JobWarning(
                WarningCode.NOT_DONE,
                f"The {name} was not used: motion={motion} needs none, only motion=generated does.",
            )
            for name in unused_options
        )

    def write_comparison(
        self, video: Path, result: SyncResult, output: Path, provenance: Provenance | None = None
    ) -> str | None:
        """Write source and result side by side, signed like the result.

        Returns:
            A warning if the file could not be signed.

        Raises:
            As `media.write_comparison`, and SigningError.
        """
        self.signer.check_can_sign(output)
        with translate_resource_errors(), atomic_output(output, (video, result.output), "compare") as part:
            media.write_comparison(video, result.output, part, result.frames)
            facts = ManifestFacts(
                model=result.model,
                weights_sha256=result.weights_sha256,
                seed=result.seed,
                num_inference_steps=result.num_inference_steps,
                job=result.job,
                consent=None if provenance is None else provenance.consent,
            )
            signing_warning = self.signer.sign(part, video, facts)
            part.replace(output)
        return signing_warning

    def _require_permitted(self, output: Path, provenance: Provenance | None) -> None:
        """Raise unless the job has the consent that it needs and its result can be signed."""
        require_consent((provenance or Provenance()).consent)
        self.signer.check_can_sign(output)

    def _score_sync(self, plan: Plan, files: Sequence[Path], voices: Sequence[Path]) -> SyncScore | None:
        return None if self._scorer is None else score_job(plan, files, voices, self._scorer)

    def _manifest_facts(self, plan: Plan, provenance: Provenance, key: str) -> ManifestFacts:
        info, params = self.model.info, plan.header.params
        return ManifestFacts(
            model=info.name,
            weights_sha256=info.weights_sha256,
            seed=params.seed,
            num_inference_steps=params.num_inference_steps or info.num_inference_steps,
            job=provenance.job or key,
            consent=provenance.consent,
        )

    def _build_result(
        self,
        plan: Plan,
        output: Path,
        segments_resumed: int,
        seconds: dict[Stage, float],
        job: str,
        signing_warning: str | None,
        sync: SyncScore | None,
        content: ContentResult,
    ) -> SyncResult:
        info, params = self.model.info, plan.header.params
        guidance_scale = info.guidance_scale if params.guidance_scale is None else params.guidance_scale
        width, height = media.output_size(plan.header.video.format, params.max_short_side)
        return SyncResult(
            output=output,
            width=width,
            height=height,
            fps=plan.header.fps,
            frames=plan.n_frames,
            frames_without_face=plan.frames_without_face,
            untouched=plan.untouched,
            segments=len(plan.segments),
            segments_resumed=segments_resumed,
            analysis_cached=plan.header.analysis_cached,
            seed=params.seed,
            num_inference_steps=params.num_inference_steps or info.num_inference_steps,
            guidance_scale=guidance_scale,
            model=info.name,
            weights_sha256=info.weights_sha256,
            device=str(self.model.device),
            dtype=self.model.precision,
            seconds=StageSeconds(**{stage.value: seconds[stage] for stage in Stage}),
            job=job,
            is_signed=signing_warning is None,
            sync=sync,
            is_nsfw=content.is_nsfw,
            warnings=tuple(_warnings(plan, signing_warning, content.warning)),
            pauses_s=plan.pauses_s,
        )

    def _job_key(
        self, video_hash: str, voices: Sequence[Path], mix: SpeakerMix | None, params: SyncParams
    ) -> str:
        """Return a hash of everything that decides a job's pixels; jobs of equal keys may share segments."""
        digest = hashlib.sha256()
        options = ("faces_file", "face_mask", "mask_image", "matte")
        files = {name: path for name in options if (path := getattr(params, name)) is not None}
        placeholders: dict[str, Any] = {name: Path(name) for name in files}  # contents count, paths do not
        params_without_paths = dataclasses.replace(params, **placeholders)
        for part in (
            video_hash,
            *map(media.content_hash, voices),
            "" if mix is None else str([(s.face, s.start_s, s.length_s) for s in mix.speakers]),
            *(media.content_hash(path) for path in files.values()),
            TypeAdapter(SyncParams).dump_json(params_without_paths).decode(),
            self.model.info.name,
            self.model.info.weights_sha256,
            f"{self.model.device.type} {self.model.precision}",
            self.detector.name,
            GATE_VERSION if params.voice_gate else "",
            package_version(),
        ):
            digest.update(part.encode() + b"\0")
        return digest.hexdigest()[:32]


def _warnings(
    plan: Plan, signing_warning: str | None, content_warning: str | None
) -> Generator[JobWarning, None, None]:
    if signing_warning is not None:
        yield JobWarning(WarningCode.NOT_DONE, signing_warning)
    if content_warning is not None:
        yield JobWarning(WarningCode.NOT_DONE, content_warning)
    if untouched := plan.untouched:
        yield JobWarning(
            WarningCode.FRAMES_UNTOUCHED,
            f"{sum(untouched.values())} of {plan.n_frames} frames are left as they are: "
            f"{faces.describe_untouched(untouched)}.",
        )
    if plan.header.people:
        yield JobWarning(
            WarningCode.SEVERAL_PEOPLE,
            f"The video shows several people, and the largest face speaks: {plan.header.people}. Choose "
            "another face by its number, left, right or position.",
        )
    hdr = plan.header.video.hdr
    if hdr is not None:
        yield JobWarning(
            WarningCode.HDR_TONE_MAPPED, f"The HDR video ({hdr.name}) was tone-mapped to SDR (BT.709)."
        )
    covered_s = plan.header.covered_s
    if covered_s and plan.header.params.matte is None:
        moments = ", ".join(f"{start_s:g}-{stop_s:g} s" for start_s, stop_s in covered_s[:MAX_MOMENTS])
        if len(covered_s) > MAX_MOMENTS:
            moments += f" and {len(covered_s) - MAX_MOMENTS} more"
        yield JobWarning(
            WarningCode.MOUTH_COVERED,
            f"Something seems to cover the face at {moments} of the video: check these moments. If the mouth "
            "is hidden, give a matte of what covers it (--matte).",
        )
    if plan.header.is_gate_bypassed:
        yield JobWarning(
            WarningCode.VOICE_GATE_OPEN,
            "Most of the loud audio contains no detectable speech: the voice gate stays open, so the lips "
            "also move in pauses. Give the voice without music and noise.",
        )
    elif not plan.arrays.gate.any():
        yield JobWarning(WarningCode.NOT_DONE, "The audio contains no speech: the lips rest throughout.")


def _plan_and_render(
    planning: Generator[Progress | Plan, None, Plan], seconds: dict[Stage, float], renderer: SegmentRenderer
) -> Generator[Progress, None, Plan]:
    """Pass the planner's progress on, render what its drafts make ready, and add up the time per stage."""
    start_s = time.monotonic()
    with closing(planning):
        while True:
            try:
                step = next(planning)
            except StopIteration as end:
                plan: Plan = end.value
                return plan
            if isinstance(step, Plan):
                yield from renderer.render_ready(step)
            else:
                seconds[step.stage] += time.monotonic() - start_s
                yield step
            start_s = time.monotonic()
