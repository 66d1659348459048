"""Signs results, as the operator says."""

from __future__ import annotations

import binascii
import hashlib
import io
import logging
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeGuard

import c2pa
import platformdirs
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from lipsync_engine.errors import ErrorCode, InputError, ParameterError, ResourceError
from lipsync_engine.provenance.development import make_development, pem

log = logging.getLogger(__name__)

MEDIA_TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime"}
"""Results that can hold credentials."""

COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
OWN_ASSERTION = "org.lipsync-engine.generation"
COMMAND_TIMEOUT_S = 30.0
UNKNOWN_KIND = "application/octet-stream"
"""c2pa looks for no credentials in it."""

DOT = binascii.a2b_base64(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
"""A PNG of one pixel, to try the signer with."""

UNMARKED = "The result carries no content credentials: marking is off."


class Policy(StrEnum):
    """What happens to a result that cannot be signed; or that none is to be."""

    REQUIRED = "required"  # the job fails, nothing is published
    BEST_EFFORT = "best_effort"  # it is published unmarked, with a warning
    OFF = "off"  # nothing is signed


@dataclass(frozen=True, slots=True)
class Facts:
    """What a result says of its making.

    Attributes:
        job: any name of the job; only its SHA-256 is written.
        consent: reference to the consent of the person shown; only its SHA-256 is written.
    """

    model: str
    weights_sha256: str
    seed: int
    num_inference_steps: int
    job: str
    consent: str | None = None

    def assertion(self) -> dict[str, Any]:
        said = {
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "seed": self.seed,
            "num_inference_steps": self.num_inference_steps,
            "job_sha256": _sha256(self.job),
        }
        return said if self.consent is None else said | {"consent_sha256": _sha256(self.consent)}


class SigningError(ResourceError):
    """A result could not be signed."""

    def __init__(self, reason: str) -> None:
        sentence = f"The result could not be signed ({reason}): correct the signer, see docs/trust.md."
        super().__init__(ErrorCode.SIGNING_FAILED, sentence)


@dataclass(frozen=True, slots=True)
class Marker:
    """Signs results.

    Attributes:
        policy: see there.
        folder: of the development certificate, made on first use.
        chain: PEM file, the signer's certificate first, then those between it and the root.
        key: PEM file with the private key (PKCS #8, unencrypted) that belongs to it.
        command: instead of a key: reads bytes on standard input, writes their raw signature to standard
            output.
        anchors: PEM file of further roots whose signatures count as known.
    """

    policy: Policy
    folder: Path
    chain: Path | None = None
    key: Path | None = None
    command: tuple[str, ...] = ()
    anchors: Path | None = None

    def __post_init__(self) -> None:
        keys = (self.key is not None) + bool(self.command)
        if keys > 1 or keys != (self.chain is not None):
            raise ParameterError(
                "To sign with your own certificate set LIPSYNC_SIGNING_CHAIN and either LIPSYNC_SIGNING_KEY "
                "or LIPSYNC_SIGNING_COMMAND; set none of them for the development certificate."
            )

    @classmethod
    def from_environment(cls, policy: str | None = None) -> Self:
        """As LIPSYNC_MARKING, LIPSYNC_SIGNING_… and LIPSYNC_TRUST_ANCHORS say.

        Args:
            policy: instead of LIPSYNC_MARKING.

        Raises:
            ParameterError: a value that cannot be used.
        """
        chosen = policy or os.environ.get("LIPSYNC_MARKING") or Policy.REQUIRED
        if chosen not in list(Policy):
            raise ParameterError(f"marking={chosen!r} does not exist: use {', '.join(Policy)}.")
        folder = os.environ.get("LIPSYNC_CREDENTIALS_DIR")
        return cls(
            Policy(chosen),
            Path(folder) if folder else Path(platformdirs.user_data_dir("lipsync")) / "credentials",
            chain=_path("LIPSYNC_SIGNING_CHAIN"),
            key=_path("LIPSYNC_SIGNING_KEY"),
            command=tuple(shlex.split(os.environ.get("LIPSYNC_SIGNING_COMMAND", ""))),
            anchors=_path("LIPSYNC_TRUST_ANCHORS"),
        )

    def prepare(self, output: Path) -> None:
        """Find out before any work whether a result can be signed.

        Raises:
            ParameterError: its container cannot hold credentials. SigningError: certificate or key cannot be
                used. Both only where marking is required.
        """
        self.check_container(output)
        if self.policy is Policy.REQUIRED:
            nothing = Facts("", "", 0, 0, "")
            self._sign(io.BytesIO(DOT), "image/png", io.BytesIO(), io.BytesIO(DOT), nothing)

    def check_container(self, output: Path) -> None:
        """Refuse a container that cannot hold credentials where marking is required.

        Raises:
            ParameterError.
        """
        if self.policy is Policy.REQUIRED and output.suffix.lower() not in MEDIA_TYPES:
            raise ParameterError(
                _no_place(output) + " Name an .mp4 or .mov file, or use marking=best_effort."
            )

    def mark(self, file: Path, source: Path, facts: Facts) -> str | None:
        """Sign a finished video in its place.

        Args:
            file: the video; while this runs it needs its size once more beside it.
            source: the video or picture that it was made from; credentials that it has are kept.

        Returns:
            A sentence where the file is left unmarked.

        Raises:
            SigningError, ParameterError: it cannot be signed and must be. OSError: the disk is full.
        """
        if self.policy is Policy.OFF:
            return UNMARKED
        self.check_container(file)
        if (media_type := MEDIA_TYPES.get(file.suffix.lower())) is None:
            return f"The result carries no content credentials: {_no_place(file)}"
        signed = signed_beside(file)
        try:
            with file.open("rb") as plain, _Written(signed) as target, source.open("rb") as origin:
                try:
                    self._sign(plain, media_type, target, origin, facts)
                except SigningError as error:
                    raise target.error or error from None
            signed.replace(file)
        except SigningError as error:
            if self.policy is Policy.REQUIRED:
                raise
            log.warning("%s", error)
            return f"The result carries no content credentials: {error.message}"
        finally:
            signed.unlink(missing_ok=True)
        return None

    def describe(self) -> str:
        """Whose signature results get, or why they get none."""
        try:
            self.prepare(Path("result.mp4"))
        except SigningError as error:
            return error.message
        return "with a development certificate" if self.chain is None else f"as {self.chain.name} says"

    def known(self) -> str:
        """PEM of all roots whose signatures count as known here."""
        roots = [path.read_text() for path in (self.folder / "root.pem", self.anchors) if _is_file(path)]
        if _is_file(self.chain):
            roots += map(pem, x509.load_pem_x509_certificates(self.chain.read_bytes())[1:])
        return "".join(roots)

    def _sign(
        self, plain: BinaryIO, media_type: str, target: BinaryIO, source: BinaryIO, facts: Facts
    ) -> None:
        failures: list[SigningError] = []
        try:
            with (
                self._signer(failures) as signer,
                c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}}) as context,
                c2pa.Builder(_manifest(facts), context) as builder,
            ):
                _add_source(builder, source)
                builder.sign(signer, media_type, plain, target)
        except (OSError, ValueError, c2pa.C2paError) as error:
            raise failures[0] if failures else SigningError(_reason(error)) from error

    def _signer(self, failures: list[SigningError]) -> c2pa.Signer:
        """c2pa's signer, without time-stamps: for those it would have to ask over the network."""
        chain, key = self._certificate()
        certificates = x509.load_pem_x509_certificates(chain.read_bytes())
        chain_pem, algorithm = "".join(map(pem, certificates)), _algorithm(certificates[0])
        if key is None:
            sign = _commanded(self.command, failures)
            return c2pa.Signer.from_callback(sign, c2pa.C2paSigningAlg[algorithm], chain_pem, None)
        return c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(algorithm.lower().encode(), chain_pem.encode(), key.read_bytes(), None)
        )

    def _certificate(self) -> tuple[Path, Path | None]:
        """Files of chain and key."""
        if self.chain is not None:
            return self.chain, self.key
        if not self.folder.exists():
            make_development(self.folder)
        return self.folder / "chain.pem", self.folder / "key.pem"


def signed_beside(file: Path) -> Path:
    """Where the signed copy of a video lies until it takes the video's place."""
    return file.with_name(f"{file.name}.signed")


def consent_is_required() -> bool:
    """The operator's LIPSYNC_REQUIRE_CONSENT."""
    return os.environ.get("LIPSYNC_REQUIRE_CONSENT", "").lower() in ("1", "true", "yes", "on")


def require_consent(consent: str | None) -> None:
    """Refuse a job without a reference to a consent, where the operator wants one.

    Raises:
        InputError: CONSENT_REQUIRED.
    """
    if consent is None and consent_is_required():
        raise InputError(
            ErrorCode.CONSENT_REQUIRED,
            "Jobs need a reference to the consent of the person shown here: give one as consent.",
        )


class _Written(io.BufferedRandom):
    """A new file that remembers what went wrong with it: c2pa tells that a write failed, not why."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w+"))
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _manifest(facts: Facts) -> dict[str, Any]:
    actions = [
        {"action": "c2pa.opened", "parameters": {"ingredientIds": ["source"]}},
        {"action": "c2pa.edited", "digitalSourceType": COMPOSITE},
    ]
    return {
        "title": "lip-sync",
        "claim_generator_info": [{"name": "lipsync-engine", "version": version("lipsync-engine")}],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}},
            {"label": OWN_ASSERTION, "data": facts.assertion()},
        ],
    }


def _commanded(command: tuple[str, ...], failures: list[SigningError]) -> Callable[[bytes], bytes]:
    """Signs by the operator's command; what goes wrong is also put into `failures`, for c2pa drops it."""

    def sign(data: bytes) -> bytes:
        try:
            done = subprocess.run(
                command, input=data, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            failures.append(SigningError(f"{command[0]} could not be asked, {_reason(error)}"))
            raise failures[0] from error
        if done.returncode != 0 or not done.stdout:
            words = done.stderr.decode(errors="replace").strip().splitlines()
            said = f", {words[-1][:200]}" if words else ""
            failures.append(SigningError(f"{command[0]} ended with status {done.returncode}{said}"))
            raise failures[0]
        return done.stdout

    return sign


def _algorithm(certificate: x509.Certificate) -> str:
    """How that certificate's key signs, in C2PA's words."""
    match certificate.public_key():
        case ec.EllipticCurvePublicKey() as key if key.key_size in (256, 384, 521):
            return f"ES{512 if key.key_size == 521 else key.key_size}"
        case ed25519.Ed25519PublicKey():
            return "ED25519"
        case rsa.RSAPublicKey():
            return "PS256"
    raise ValueError("the certificate's key is of a kind that content credentials do not know")


def _add_source(builder: c2pa.Builder, source: BinaryIO) -> None:
    """Name the source, with the credentials that it has. A damaged one, which FFmpeg may play all the same,
    has none that could be read."""
    parent = {"title": "source", "relationship": "parentOf", "label": "source"}
    try:
        builder.add_ingredient(parent, _kind(source), source)
    except c2pa.C2paError:
        source.seek(0)
        builder.add_ingredient(parent, UNKNOWN_KIND, source)


def _kind(source: BinaryIO) -> str:
    """A source's media type by its first bytes: inputs of the server have no suffix."""
    head = source.read(12)
    source.seek(0)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return "video/mp4"
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "image/webp"
    kinds = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"\x1aE\xdf\xa3": "video/x-matroska"}
    found = (kind for magic, kind in kinds.items() if head.startswith(magic))
    return next(found, UNKNOWN_KIND)


def _path(name: str) -> Path | None:
    given = os.environ.get(name)
    return Path(given) if given else None


def _is_file(path: Path | None) -> TypeGuard[Path]:
    return path is not None and path.is_file()


def _no_place(output: Path) -> str:
    return f"A {output.suffix} file cannot hold content credentials."


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".")[:300]
