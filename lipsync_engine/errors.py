"""Every error that this package raises on purpose, each with a stable code and exit status.

    LipSyncError                      base; has `code`, a message for the user, and `exit_status`
    ├── InputError                    an input of the caller is unusable
    │   ├── ParameterError            an option or a value
    │   ├── MediaError                a video, audio or image file
    │   └── FaceError                 no face to lip-sync
    ├── WeightsError                  model files: missing, damaged, of another architecture
    ├── ResourceError                 disk, memory, device, a child process over its limits, signer, cluster
    ├── OutputError                   the result failed the output check
    └── Cancelled                     the caller cancelled the job

The module does not know how a command line or an HTTP dialect shows errors.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """Stable names of errors; clients branch on them, so they are never renamed or reused."""

    PARAMETER_INVALID = "parameter_invalid"
    MANIFEST_INVALID = "manifest_invalid"
    CONSENT_REQUIRED = "consent_required"
    CONTENT_REFUSED = "content_refused"

    INPUT_NOT_FOUND = "input_not_found"
    INPUT_IS_DIRECTORY = "input_is_directory"
    INPUT_EMPTY = "input_empty"
    INPUT_UNREADABLE = "input_unreadable"
    MEDIA_NOT_RECOGNISED = "media_not_recognised"
    MEDIA_TRUNCATED = "media_truncated"
    MEDIA_NO_VIDEO = "media_no_video"
    MEDIA_NO_AUDIO = "media_no_audio"
    MEDIA_TOO_LARGE = "media_too_large"
    MEDIA_FORMAT_REFUSED = "media_format_refused"
    MEDIA_UNSUPPORTED_PIXELS = "media_unsupported_pixels"
    MEDIA_TIMEOUT = "media_timeout"
    MEDIA_FAILED = "media_failed"

    FACE_NOT_FOUND = "face_not_found"
    FACE_CHOICE_UNMATCHED = "face_choice_unmatched"

    MODEL_UNKNOWN = "model_unknown"
    WEIGHTS_MISSING = "weights_missing"
    WEIGHTS_HASH_MISMATCH = "weights_hash_mismatch"
    WEIGHTS_TRUNCATED = "weights_truncated"
    WEIGHTS_UNSAFE = "weights_unsafe"
    WEIGHTS_ARCHITECTURE = "weights_architecture"
    WEIGHTS_DOWNLOAD_FAILED = "weights_download_failed"

    DISK_FULL = "disk_full"
    OUTPUT_NOT_WRITABLE = "output_not_writable"
    OUT_OF_MEMORY = "out_of_memory"
    DEVICE_UNAVAILABLE = "device_unavailable"
    FFMPEG_MISSING = "ffmpeg_missing"
    JOB_BUSY = "job_busy"
    WORKER_LOST = "worker_lost"
    SIGNING_FAILED = "signing_failed"
    CLUSTER_AWAY = "cluster_away"

    OUTPUT_NOT_FINITE = "output_not_finite"
    OUTPUT_FLAT = "output_flat"
    OUTPUT_NOISE = "output_noise"
    OUTPUT_MASK_COLOURED = "output_mask_coloured"
    OUTPUT_MISCOLOURED = "output_miscoloured"

    BATCH_INCOMPLETE = "batch_incomplete"
    CANCELLED = "cancelled"


EXIT_STATUS: dict[ErrorCode, int] = {
    ErrorCode.PARAMETER_INVALID: 2,
    ErrorCode.MANIFEST_INVALID: 3,
    ErrorCode.CONSENT_REQUIRED: 6,
    ErrorCode.CONTENT_REFUSED: 7,
    ErrorCode.INPUT_NOT_FOUND: 10,
    ErrorCode.INPUT_IS_DIRECTORY: 11,
    ErrorCode.INPUT_EMPTY: 12,
    ErrorCode.INPUT_UNREADABLE: 13,
    ErrorCode.MEDIA_NOT_RECOGNISED: 14,
    ErrorCode.MEDIA_TRUNCATED: 15,
    ErrorCode.MEDIA_NO_VIDEO: 16,
    ErrorCode.MEDIA_NO_AUDIO: 17,
    ErrorCode.MEDIA_TOO_LARGE: 18,
    ErrorCode.MEDIA_FORMAT_REFUSED: 19,
    ErrorCode.MEDIA_UNSUPPORTED_PIXELS: 20,
    ErrorCode.MEDIA_TIMEOUT: 21,
    ErrorCode.MEDIA_FAILED: 22,
    ErrorCode.FACE_NOT_FOUND: 30,
    ErrorCode.FACE_CHOICE_UNMATCHED: 31,
    ErrorCode.MODEL_UNKNOWN: 40,
    ErrorCode.WEIGHTS_MISSING: 41,
    ErrorCode.WEIGHTS_HASH_MISMATCH: 42,
    ErrorCode.WEIGHTS_TRUNCATED: 43,
    ErrorCode.WEIGHTS_UNSAFE: 44,
    ErrorCode.WEIGHTS_ARCHITECTURE: 45,
    ErrorCode.WEIGHTS_DOWNLOAD_FAILED: 46,
    ErrorCode.DISK_FULL: 50,
    ErrorCode.OUTPUT_NOT_WRITABLE: 51,
    ErrorCode.OUT_OF_MEMORY: 52,
    ErrorCode.DEVICE_UNAVAILABLE: 53,
    ErrorCode.FFMPEG_MISSING: 54,
    ErrorCode.JOB_BUSY: 55,
    ErrorCode.WORKER_LOST: 56,
    ErrorCode.SIGNING_FAILED: 57,
    ErrorCode.CLUSTER_AWAY: 58,
    ErrorCode.OUTPUT_NOT_FINITE: 60,
    ErrorCode.OUTPUT_FLAT: 61,
    ErrorCode.OUTPUT_NOISE: 62,
    ErrorCode.OUTPUT_MASK_COLOURED: 63,
    ErrorCode.OUTPUT_MISCOLOURED: 64,
    ErrorCode.BATCH_INCOMPLETE: 70,
    ErrorCode.CANCELLED: 130,
}
"""Exit status of the command line for each code."""


class LipSyncError(Exception):
    """Base of all errors that are raised on purpose.

    Args:
        code: stable machine-readable name.
        message: one or two sentences for the user: the problem and its remedy.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def exit_status(self) -> int:
        """Exit status of the command line."""
        return EXIT_STATUS[self.code]


class InputError(LipSyncError):
    """An input of the caller is unusable."""


class ParameterError(InputError):
    """An option or a value is invalid."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.PARAMETER_INVALID, message)


class MediaError(InputError):
    """A video, audio or image file is unusable."""


class FaceError(InputError):
    """No face to lip-sync is visible, or not the one that was chosen."""


class WeightsError(LipSyncError):
    """Model files are missing, damaged, unsafe or of another architecture."""


class ResourceError(LipSyncError):
    """Disk, memory, device or a required program is not available."""


class OutputError(LipSyncError):
    """The result failed the output check and was not published."""


class Cancelled(LipSyncError):  # noqa: N818  (not a failure)
    """The caller cancelled the job."""

    def __init__(self) -> None:
        super().__init__(
            ErrorCode.CANCELLED, "Cancelled: run the same job again to resume it after its finished segments."
        )
