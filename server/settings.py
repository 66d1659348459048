"""All settings of the server: environment over file over default.

A setting is `LIPSYNC_<NAME>` in the environment, or `name = value` in the TOML file in `LIPSYNC_CONFIG`. An
unknown name or an invalid value stops the start with a message that names it. `LIPSYNC_<NAME>_FILE` names a
file with the value, so that secrets need not be in the environment.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, HttpUrl, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from server.hosts import HostPattern

PREFIX = "LIPSYNC_"
FILE_SUFFIX = "_FILE"
ENGINE_VARIABLES = {"CACHE_DIR", "WEIGHTS_DIR", "FFMPEG", "DEVICE", "CREDENTIALS_DIR", "CONFIG"}
"""LIPSYNC_ variables of the engine, and the one with the path of the settings file."""

PLACEHOLDER = re.compile(
    r"(choose|change|replace|insert|enter)([\W_]*(me|one|this|it|a|your|with|here|openssl)([\W_].*)?)?"
    r"|(your[\W_].*|<.*>|passwor[dt]|secret|placeholder|todo|x+|…|\.+)",
    re.IGNORECASE | re.DOTALL,
)
"""Texts that stand for a secret which nobody has chosen yet."""

SECRETS = {"database_url", "s3_secret_key", "first_key", "job_hook_secret"}
"""Settings whose values no message contains."""

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

LogFormat = Literal["text", "json"]
ContentCheck = Literal["off", "flag", "refuse"]
Marking = Literal["required", "best_effort", "off"]
Metrics = Literal["open", "key", "off"]
PortraitMotion = Literal["still", "natural", "generated"]
Preset = Literal["default", "fast", "fastest"]
Hdr = Literal["tonemap", "refuse"]
Ports = Annotated[tuple[Annotated[int, Field(gt=0, lt=65536)], ...], NoDecode]
Names = Annotated[tuple[str, ...], NoDecode]
"""Comma-separated in the environment, a list in the file."""


def is_placeholder(text: str) -> bool:
    """Return whether a text stands for a secret that nobody has chosen yet."""
    return PLACEHOLDER.fullmatch(text.strip()) is not None


class SettingsError(Exception):
    """A setting is unknown or invalid; the message names it."""


class Settings(BaseSettings):
    """The settings; each description is a line of the table in docs/operations.md."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 chooses a free one.")
    public_url: HttpUrl | None = Field(
        None, description="URL by which clients reach the server; unset: from each request's Host header."
    )
    trusted_proxies: Names = Field(
        ("127.0.0.0/8", "::1"),
        description="Addresses and networks of proxies whose Forwarded and X-Forwarded headers are believed.",
    )
    cors_origins: Names = Field(
        (),
        description="Origins whose pages may use API and files in a browser, such as "
        "`https://app.example`; `*`: any. The server's own page needs none.",
    )
    first_key: str | None = Field(
        None,
        description="The first API key, with all scopes: at least 32 letters, digits, - or _. Unset: the "
        "first start prints one, which expires after a day unless it is printed to a terminal.",
    )
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("lipsync")),
        description="Folder of database, uploads, results and link secret.",
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy URL; unset: SQLite in the data folder, which one process can open."
    )
    link_secret: Path | None = Field(
        None,
        description="File with the secret that signs links, the same for all processes of one database; "
        "unset: in the data folder. Created when missing.",
    )
    blobs: str | None = Field(
        None,
        description="Storage of uploads and results: `s3://BUCKET/PREFIX?endpoint=URL&region=NAME` (only the "
        "bucket is required). Unset: the data folder.",
    )
    s3_access_key: str | None = Field(
        None, description="Access key of `blobs`; unset: AWS' variables, files and machine roles."
    )
    s3_secret_key: str | None = Field(None, description="Secret of that access key.")
    model: str = Field("tiny", description="Model that the workers load, from `lipsync weights list`.")
    compile: bool = Field(
        False,
        description="Workers compile the lip-sync model: minutes at the first start, seconds at later ones "
        "from the cache in the data folder.",
    )
    fp8: bool = Field(
        False,
        description="Workers compute the lip-sync model's large layers in FP8: for GPUs of compute "
        "capability 8.9 or above, together with `compile`.",
    )
    preset: Preset = Field(
        "default",
        description="Preset of requests without one: default, fast or fastest, which trade fidelity for "
        "speed.",
    )
    portrait_motion: PortraitMotion = Field(
        "natural",
        description="Head motion of portraits in requests without one: still, natural, or generated, which "
        "alone uses prompts and needs an image-to-video model.",
    )
    hdr: Hdr = Field(
        "tonemap",
        description="HDR video (PQ, HLG) in requests without `hdr`: `tonemap` to SDR, with a warning, or "
        "`refuse`.",
    )
    devices: Names = Field(
        (),
        description="One worker per entry (cuda:0, cpu, …); `none`: serve the API only; unset: every CUDA "
        "device, else one CPU worker.",
    )
    jobs_per_worker: int = Field(
        1,
        ge=1,
        le=16,
        description="Jobs that each worker runs at once on one loaded model: for short clips on a GPU.",
    )
    max_waiting: int = Field(4000, ge=1, description="Most waiting jobs; one more is answered with 429.")
    max_waiting_per_tenant: int = Field(
        1000, ge=1, description="Most waiting jobs of one tenant; one more is answered with 429."
    )
    max_attempts: int = Field(3, ge=1, le=10, description="Attempts of a job whose worker is lost.")
    max_wait_s: float = Field(86400, gt=0, description="A job that waits longer fails.")
    max_run_s: float = Field(21600, gt=0, description="A job that runs longer fails.")
    stall_s: float = Field(300, gt=0, description="A worker that reports nothing for longer is replaced.")
    max_upload_bytes: int = Field(2 * 1024**3, ge=1, description="Largest upload or downloaded input.")
    max_body_bytes: int = Field(
        96 * 1024**2, ge=1024, description="Largest JSON body, which may contain inputs as base64."
    )
    max_bodies_bytes: int = Field(
        384 * 1024**2,
        ge=1024,
        description="Most memory for JSON bodies that are received and stored; more are answered with 503.",
    )
    max_tenant_bodies_bytes: int = Field(
        128 * 1024**2, ge=1024, description="The same of one tenant; more are answered with 429."
    )
    max_base64_output_bytes: int = Field(
        64 * 1024**2, ge=1, description="Larger results are answered as a link, also in base64 output mode."
    )
    min_free_bytes: int = Field(
        1024**3, ge=0, description="Uploads and jobs are rejected while less disk space is free."
    )
    download_timeout_s: float = Field(
        1800, gt=0, description="Time to download all inputs of a job, before it can start."
    )
    download_min_bytes_per_s: int = Field(
        10_000, ge=0, description="Inputs that are sent more slowly for 30 s fail."
    )
    enforce_vendor_limits: bool = Field(
        True, description="Apply the limits that the vendor of each model id documents."
    )
    allow_hosts: Names = Field(
        (),
        description="Private hosts and networks that inputs and webhooks may use ([grammar](#hosts)).",
    )
    media_hosts: Names = Field(
        (),
        description="The only hosts that inputs may come from ([grammar](#hosts)); unset: any public one.",
    )
    media_ports: Ports = Field(
        (), description="The only ports that inputs may come from, such as 80, 443; unset: any."
    )
    webhook_ports: Ports = Field((), description="The only ports of webhooks, such as 443; unset: any.")
    sync_timeout_s: float = Field(
        90, gt=0, le=290, description="How long a sync-mode request waits for the result."
    )
    retention_s: float = Field(
        7 * 86400, gt=0, description="Jobs, uploads and results older than this are deleted."
    )
    requests_per_minute: int = Field(
        1200,
        ge=1,
        description="Most requests of one key that change something, such as submissions; more are "
        "answered with 429.",
    )
    reads_per_minute: int = Field(
        60_000, ge=1, description="Most GET requests of one key, such as polls; more are answered with 429."
    )
    recycle_after_jobs: int = Field(200, ge=1, description="A worker process is replaced after so many jobs.")
    recycle_growth_bytes: int = Field(
        4 * 1024**3,
        ge=1,
        description="A worker is replaced when its memory has grown by this much since its start, plus the "
        "same for each running job.",
    )
    sync_score: bool = Field(
        True,
        description="Measure the lip-sync confidence of every result, where the weights of a score are "
        "installed for the model's kind of faces.",
    )
    content_check: ContentCheck = Field(
        "off",
        description="Classify the source's content: `flag` (the answer has the result), `refuse` (unsafe "
        "jobs fail; no worker starts without the classifier's weights) or `off`.",
    )
    content_threshold: float = Field(
        0.5, ge=0, le=1, description="Probability above which a frame counts as not safe for work."
    )
    marking: Marking = Field(
        "required",
        description="Sign results as generated: `required` (a job fails if its result cannot be signed), "
        "`best_effort` (the result is published unsigned, with a warning) or `off`.",
    )
    signing_chain: Path | None = Field(
        None,
        description="PEM file: the signer's certificate, then those up to the root; unset: a "
        "development certificate is created in the data folder.",
    )
    signing_key: Path | None = Field(None, description="PEM file with the private key of that certificate.")
    signing_command: str | None = Field(
        None,
        description="Instead of a key: a command that reads bytes on stdin and writes their raw signature.",
    )
    trust_anchors: Path | None = Field(None, description="PEM file of further root certificates to trust.")
    label: bool = Field(False, description="Draw a visible “AI-generated” label in a corner of every result.")
    watermark: bool = Field(
        False, description="Add an invisible watermark to every generated face; `lipsync verify` detects it."
    )
    require_sandbox: bool = Field(
        False,
        description="Do not start where the kernel cannot keep FFmpeg from the network and from other files.",
    )
    require_consent: bool = Field(
        False,
        description="Reject jobs without `consent`, a reference to the consent of the person shown.",
    )
    job_hook: str | None = Field(
        None, description="URL or command that is called before every job and may reject it."
    )
    job_hook_secret: str | None = Field(
        None, description="Secret that signs requests to a hook's URL, as webhooks are signed."
    )
    job_hook_timeout_s: float = Field(
        10, gt=0, description="Time for the hook's answer; without one the job is rejected."
    )
    audit_retention_s: float | None = Field(
        None, gt=0, description="Entries of the audit log older than this are deleted; unset: none."
    )
    audit_export: str | None = Field(
        None,
        description="Where entries of the audit log are also written as they happen: a file, `syslog`, or "
        "`syslog://HOST:PORT` (UDP).",
    )
    cluster_min: int = Field(1, ge=0, description="Least workers of `lipsync cluster`.")
    cluster_max: int = Field(16, ge=1, description="Most workers of `lipsync cluster`.")
    cluster_backlog_s: float = Field(
        60, gt=0, description="The cluster starts workers until each has at most this much waiting work."
    )
    cluster_idle_s: float = Field(
        300,
        gt=0,
        description="A cluster worker idle for this long is stopped, down to `cluster_min`.",
    )
    metrics: Metrics = Field(
        "open",
        description="`/metrics`: `open`, `key` (a key with the scope metrics) or `off`.",
    )
    log_format: LogFormat = Field("text", description="`text` or `json`: one object per line.")
    drain_s: float = Field(30, ge=0, description="How long a stopping server waits for running jobs.")

    @field_validator(
        "devices",
        "allow_hosts",
        "media_hosts",
        "media_ports",
        "webhook_ports",
        "trusted_proxies",
        "cors_origins",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            ipaddress.ip_network(entry)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not re.fullmatch(r"\*|https?://[^/\s?#]+", entry):
                raise ValueError(f"{entry!r} is not an origin such as https://app.example")
        return value

    @field_validator("allow_hosts", "media_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            HostPattern.parse(entry)
        return value

    @field_validator("s3_secret_key", "job_hook_secret", "first_key")
    @classmethod
    def _check_secret(cls, value: str | None) -> str | None:
        if value is not None and is_placeholder(value):
            raise ValueError("it is a placeholder: choose a secret")
        return value

    @field_validator("first_key")
    @classmethod
    def _check_key(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_-]{32,200}", value):
            raise ValueError(
                "it needs 32 to 200 of the characters a-z, A-Z, 0-9, - and _: use openssl rand -hex 32"
            )
        return value

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if (self.s3_access_key is None) != (self.s3_secret_key is None):
            raise ValueError("s3_access_key and s3_secret_key belong together: set both or neither")
        return self

    @field_validator("database_url")
    @classmethod
    def _check_password(cls, value: str | None) -> str | None:
        if value is not None and is_placeholder(urlsplit(value).password or ""):
            raise ValueError("its password is a placeholder: choose a password")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = os.environ.get(f"{PREFIX}CONFIG")
        file = (TomlConfigSettingsSource(settings_cls, Path(path)),) if path else ()
        files = InitSettingsSource(settings_cls, _read_value_files())
        return (init_settings, env_settings, files, *file)

    @property
    def worker_environment(self) -> dict[str, str]:
        """Environment variables of the worker processes."""
        engine = {
            "COMPILE": str(self.compile).lower(),
            "FP8": str(self.fp8).lower(),
            "CONTENT_CHECK": self.content_check,
            "CONTENT_THRESHOLD": str(self.content_threshold),
        }
        return {**self.signing_environment, **{f"{PREFIX}{name}": value for name, value in engine.items()}}

    @property
    def signing_environment(self) -> dict[str, str]:
        """Environment variables with which the engine signs and verifies."""
        values = {
            "MARKING": self.marking,
            "SIGNING_CHAIN": self.signing_chain,
            "SIGNING_KEY": self.signing_key,
            "SIGNING_COMMAND": self.signing_command,
            "TRUST_ANCHORS": self.trust_anchors,
            "CREDENTIALS_DIR": os.environ.get(f"{PREFIX}CREDENTIALS_DIR", self.data_dir / "credentials"),
        }
        return {f"{PREFIX}{name}": str(value) for name, value in values.items() if value is not None}

    @property
    def trusted_root_files(self) -> list[Path]:
        """Files from which verification takes its trusted roots; none is a key."""
        folder = Path(self.signing_environment[f"{PREFIX}CREDENTIALS_DIR"])
        own = [path for path in (self.signing_chain, self.trust_anchors) if path is not None]
        return [folder / "root.pem", *own]

    @property
    def effective_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'lipsync.sqlite'}"

    @property
    def engine_dir(self) -> Path:
        """Folder of the workers' caches and unfinished work."""
        return self.data_dir / "work" / "engine"

    @property
    def blob_location(self) -> Path | str:
        return self.blobs or self.data_dir / "blobs"

    @property
    def s3_credentials(self) -> tuple[str, str] | None:
        return (self.s3_access_key, self.s3_secret_key) if self.s3_access_key and self.s3_secret_key else None

    @property
    def link_secret_path(self) -> Path:
        return self.link_secret or self.data_dir / "signing.key"


def _read_value_files() -> dict[str, str]:
    """Read the values whose files the environment names.

    Raises:
        SettingsError: a file cannot be read, or the value is in the environment as well.
    """
    values = {}
    for name in Settings.model_fields:
        variable = f"{PREFIX}{name.upper()}"
        if (path := os.environ.get(f"{variable}{FILE_SUFFIX}")) is None:
            continue
        if variable in os.environ:
            raise SettingsError(f"{variable} and {variable}{FILE_SUFFIX} are both set: remove one.")
        try:
            values[name] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{variable}{FILE_SUFFIX} = {path} cannot be read: {error}.") from error
        if not values[name]:
            raise SettingsError(f"{variable}{FILE_SUFFIX} = {path} is empty: write the value into it.")
    return values


def load_settings(**overrides: object) -> Settings:
    """Read environment and file; `overrides` come before both.

    Raises:
        SettingsError: an unknown name, an invalid value, or an unreadable file.
    """
    path = os.environ.get(f"{PREFIX}CONFIG")
    if path and not Path(path).is_file():
        raise SettingsError(f"{PREFIX}CONFIG = {path} is not a file.")
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    known |= {f"{name}{FILE_SUFFIX}" for name in known}
    known |= {f"{PREFIX}{name}" for name in ENGINE_VARIABLES}
    if unknown := sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
        raise SettingsError(f"{unknown[0]} is not a setting; `lipsync serve --help` lists them.")
    for name in CREDENTIALS:
        if is_placeholder(os.environ.get(name, "")):
            raise SettingsError(f"{name} is a placeholder: set the storage's credentials.")
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"][:1])
        if not name:
            raise SettingsError(problem["msg"].removeprefix("Value error, ") + ".") from error
        if problem["type"] == "extra_forbidden":
            raise SettingsError(f"{name} is not a setting; `lipsync serve --help` lists them.") from error
        value = "" if name in SECRETS else f" = {problem['input']!r}"
        message = problem["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{name}{value} is invalid: {message}.") from error
    except ValueError as error:  # the TOML itself
        raise SettingsError(f"{path} cannot be read: {error}.") from error


def settings_table() -> str:
    """Return the settings as a Markdown table."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "the user's data folder" if name == "data_dir" else field.default
        if isinstance(default, tuple):
            default = ", ".join(default)
        cell = "" if default in (None, "") else f"`{default}`"
        lines.append(f"| `{name}` | {cell} | {field.description} |")
    return "\n".join(lines)
