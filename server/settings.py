"""Every setting of the server, in one table; environment over file over default.

`LIPSYNC_<NAME>` in the environment, or `name = value` in the TOML file that `LIPSYNC_CONFIG` names. A name
that does not exist or a value that cannot be used stops the start and is named. Secrets are not settings:
keys lie in the database, the signing secret in the data folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import Field, HttpUrl, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

PREFIX = "LIPSYNC_"
ENGINE_VARIABLES = {"CACHE_DIR", "WEIGHTS_DIR", "FFMPEG", "DEVICE", "CREDENTIALS_DIR", "CONFIG"}
"""LIPSYNC_ variables that belong to the engine, and the one that names the file."""

LogFormat = Literal["text", "json"]
ContentCheck = Literal["off", "flag", "refuse"]
Marking = Literal["required", "best_effort", "off"]
PortraitMotion = Literal["still", "natural", "generated"]
Preset = Literal["default", "fast", "fastest"]
Names = Annotated[tuple[str, ...], NoDecode]
"""Comma-separated in the environment, a list in the file."""


class SettingsError(Exception):
    """A setting is wrong; the message names it."""


class Settings(BaseSettings):
    """See the module; each field's description is its line in the documentation."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    public_url: HttpUrl | None = Field(
        None, description="How clients reach the server; unset: taken from each request's Host header."
    )
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("lipsync")),
        description="Database, uploads, results, signing secret.",
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL; unset: SQLite in the data folder, opened by this process alone."
    )
    link_secret: Path | None = Field(
        None,
        description="File with the secret that signs links, the same for all processes of one database; "
        "unset: in the data folder. Made when missing.",
    )
    blobs: str | None = Field(
        None,
        description="Where uploads and results lie: `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`, all but "
        "the bucket optional, credentials in AWS' variables; unset: in the data folder.",
    )
    model: str = Field("tiny", description="Model that the workers load, as `lipsync weights list` names it.")
    compile: bool = Field(
        False,
        description="Workers compile the lip-sync model: minutes at the first start, seconds at later ones, "
        "by what lies in the data folder.",
    )
    fp8: bool = Field(
        False,
        description="Workers compute the lip-sync model's large layers in eight-bit floating point: for GPUs "
        "of capability 8.9 or above, together with `compile`.",
    )
    preset: Preset = Field(
        "default",
        description="What jobs leave out for speed where the request does not say: default (nothing), "
        "fast or fastest.",
    )
    portrait_motion: PortraitMotion = Field(
        "natural",
        description="What a portrait's head does where the request does not say: still, natural, or "
        "generated, which alone uses prompts and needs an image-to-video model.",
    )
    devices: Names = Field(
        (),
        description="One worker per entry (cuda:0, cpu, …); `none`: only answer, others work; unset: every "
        "CUDA device, else one CPU worker.",
    )
    jobs_per_worker: int = Field(
        1,
        ge=1,
        le=16,
        description="Jobs that each worker makes at once, with one loaded model: for short clips on a GPU.",
    )
    max_waiting: int = Field(1000, ge=1, description="Jobs that may wait; one more is answered with 429.")
    max_attempts: int = Field(3, ge=1, le=10, description="Tries of a job whose worker is lost.")
    max_wait_s: float = Field(86400, gt=0, description="A job that waited longer fails.")
    max_run_s: float = Field(21600, gt=0, description="A job that ran longer fails.")
    stall_s: float = Field(300, gt=0, description="A worker silent for longer is replaced.")
    max_upload_bytes: int = Field(2 * 1024**3, ge=1, description="Largest upload or fetched input.")
    max_body_bytes: int = Field(
        96 * 1024**2, ge=1024, description="Largest JSON body (inputs may be in it as base64)."
    )
    min_free_bytes: int = Field(
        1024**3, ge=0, description="Uploads and jobs are refused while the disk has less than that free."
    )
    enforce_vendor_limits: bool = Field(
        True, description="Hold each model id to the limits that its vendor documents."
    )
    allow_hosts: Names = Field(
        (), description="Host names and networks that inputs and webhooks may use although not public."
    )
    sync_timeout_s: float = Field(90, gt=0, le=290, description="How long a sync-mode request waits.")
    retention_s: float = Field(
        7 * 86400, gt=0, description="Jobs, uploads and results older than this are deleted."
    )
    requests_per_minute: int = Field(
        1200, ge=1, description="Requests of one key; more are answered with 429."
    )
    recycle_after_jobs: int = Field(
        200, ge=1, description="A worker process is replaced after that many jobs."
    )
    recycle_growth_bytes: int = Field(
        4 * 1024**3,
        ge=1,
        description="A worker that holds that much more memory than when fresh, and as much again for each "
        "job that it is still making, is replaced.",
    )
    sync_score: bool = Field(
        True,
        description="Measure how well lips and voice of every result belong together, where the weights of "
        "such a score are here for the model's faces.",
    )
    content_check: ContentCheck = Field(
        "off",
        description="Look at the source's content: `flag` (the answer says what was found), `refuse` (such a "
        "job fails; no worker starts without the classifier's weights) or `off`.",
    )
    content_threshold: float = Field(
        0.5, ge=0, le=1, description="Probability above which a frame counts as not safe for work."
    )
    marking: Marking = Field(
        "required",
        description="Results are signed as generated: `required` (a job that cannot be signed fails), "
        "`best_effort` (it is done, unmarked, with a warning) or `off`.",
    )
    signing_chain: Path | None = Field(
        None,
        description="PEM file: the signer's certificate, then those up to the root; unset: a "
        "development certificate is made in the data folder.",
    )
    signing_key: Path | None = Field(None, description="PEM file with the private key of that certificate.")
    signing_command: str | None = Field(
        None,
        description="Instead of a key: a command that reads bytes and writes their raw signature.",
    )
    trust_anchors: Path | None = Field(
        None, description="PEM file of further roots whose signatures count as known."
    )
    label: bool = Field(
        False, description="Show in a corner of every result that it is generated, for everybody to see."
    )
    watermark: bool = Field(
        False, description="Put an unseen mark into every generated face that `lipsync verify` finds again."
    )
    require_consent: bool = Field(
        False,
        description="Refuse jobs that give no `consent`, a reference to the consent of the person shown.",
    )
    job_hook: str | None = Field(
        None, description="URL or command that is asked before every job and may refuse it."
    )
    job_hook_timeout_s: float = Field(
        10, gt=0, description="A hook that has not answered by then counts as broken, and the job is refused."
    )
    audit_retention_s: float | None = Field(
        None, gt=0, description="Entries of the audit log older than this are deleted; unset: none is."
    )
    cluster_min: int = Field(1, ge=0, description="Workers that `lipsync cluster` always keeps.")
    cluster_max: int = Field(16, ge=1, description="Workers that it starts at most.")
    cluster_backlog_s: float = Field(
        60, gt=0, description="It starts workers until what waits takes each of them no longer than that."
    )
    cluster_idle_s: float = Field(
        300,
        gt=0,
        description="A worker idle for that long is stopped, where there are more than the least.",
    )
    log_format: LogFormat = Field("text", description="`text` or `json`: one object per line.")
    drain_s: float = Field(30, ge=0, description="How long a stopping server lets running jobs finish.")

    @field_validator("devices", "allow_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        named = os.environ.get(f"{PREFIX}CONFIG")
        file = (TomlConfigSettingsSource(settings_cls, Path(named)),) if named else ()
        return (init_settings, env_settings, *file)

    @property
    def of_workers(self) -> dict[str, str]:
        """The environment in which workers load the engine."""
        given = {
            "COMPILE": str(self.compile).lower(),
            "FP8": str(self.fp8).lower(),
            "CONTENT_CHECK": self.content_check,
            "CONTENT_THRESHOLD": str(self.content_threshold),
        }
        return {**self.signing, **{f"{PREFIX}{name}": value for name, value in given.items()}}

    @property
    def signing(self) -> dict[str, str]:
        """The environment in which the engine signs and verifies."""
        given = {
            "MARKING": self.marking,
            "SIGNING_CHAIN": self.signing_chain,
            "SIGNING_KEY": self.signing_key,
            "SIGNING_COMMAND": self.signing_command,
            "TRUST_ANCHORS": self.trust_anchors,
            "CREDENTIALS_DIR": os.environ.get(f"{PREFIX}CREDENTIALS_DIR", self.data_dir / "credentials"),
        }
        return {f"{PREFIX}{name}": str(value) for name, value in given.items() if value is not None}

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'lipsync.sqlite'}"

    @property
    def blobs_place(self) -> Path | str:
        return self.blobs or self.data_dir / "blobs"

    @property
    def link_secret_file(self) -> Path:
        return self.link_secret or self.data_dir / "signing.key"


def load_settings(**given: object) -> Settings:
    """Read environment and file; `given` overrides both.

    Raises:
        SettingsError: a name that does not exist, a value that cannot be used, a file that cannot be read.
    """
    named = os.environ.get(f"{PREFIX}CONFIG")
    if named and not Path(named).is_file():
        raise SettingsError(f"{PREFIX}CONFIG names {named}, which is not a file.")
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    known |= {f"{PREFIX}{name}" for name in ENGINE_VARIABLES}
    if unknown := sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
        raise SettingsError(f"{unknown[0]} is not a setting; `lipsync serve --help` names the list.")
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise SettingsError(f"{name} is not a setting.") from error
        raise SettingsError(f"{name} = {problem['input']!r} cannot be used: {problem['msg']}.") from error
    except ValueError as error:  # the TOML itself
        raise SettingsError(f"{named} cannot be read: {error}.") from error


def documented() -> str:
    """The settings as a Markdown table."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "the user's data folder" if name == "data_dir" else field.default
        shown = "" if default in (None, ()) else f"`{default}`"
        lines.append(f"| `{name}` | {shown} | {field.description} |")
    return "\n".join(lines)
