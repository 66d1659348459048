"""Signs results with C2PA content credentials, under the operator's certificate or a development one."""

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
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self, TypeGuard

import platformdirs

from lipsync_engine.errors import ErrorCode, InputError, ParameterError, ResourceError
from lipsync_engine.provenance.source_manifest import (
    OFFLINE,
    TooManyBoxesError,
    find_embedded_manifest,
    is_manifest_readable,
)
from lipsync_engine.utils import package_version

if TYPE_CHECKING:  # signing imports them where it needs them, so that a machine without them can render
    import c2pa
    from cryptography import x509

log = logging.getLogger(__name__)

MEDIA_TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime"}
"""Containers of results that can hold content credentials."""

COMPOSITE_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
OWN_ASSERTION = "org.lipsync-engine.generation"
COMMAND_TIMEOUT_S = 30.0
UNKNOWN_MEDIA_TYPE = "application/octet-stream"
"""For this type c2pa does not search for credentials."""

PROBE_PNG = binascii.a2b_base64(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
"""A PNG of one pixel, signed to check the signer."""

UNSIGNED_WARNING = "The result carries no content credentials: marking is off."


class SigningPolicy(StrEnum):
    """Whether results are signed, and what happens to a result that cannot be signed."""

    REQUIRED = "required"  # the job fails, nothing is published
    BEST_EFFORT = "best_effort"  # the result is published unsigned, with a warning
    OFF = "off"  # nothing is signed


@dataclass(frozen=True, slots=True)
class ManifestFacts:
    """How a result was generated, as its C2PA manifest states it.

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

    def to_assertion(self) -> dict[str, Any]:
        """Return the data of the manifest's own assertion."""
        data = {
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "seed": self.seed,
            "num_inference_steps": self.num_inference_steps,
            "job_sha256": _sha256(self.job),
        }
        return data if self.consent is None else data | {"consent_sha256": _sha256(self.consent)}


class SigningError(ResourceError):
    """A result could not be signed."""

    def __init__(self, reason: str) -> None:
        sentence = f"The result could not be signed ({reason}): correct the signer, see docs/trust.md."
        super().__init__(ErrorCode.SIGNING_FAILED, sentence)


@dataclass(frozen=True, slots=True)
class ManifestSigner:
    """Signs results with C2PA manifests.

    Attributes:
        policy: whether results are signed.
        development_dir: folder of the development certificate, which is created on first use.
        chain: PEM file with the signer's certificate, followed by the intermediate certificates.
        key: PEM file with the certificate's private key (PKCS #8, unencrypted).
        command: used instead of a key; it reads bytes from standard input and writes their raw signature to
            standard output.
        trust_anchors: PEM file of further trusted root certificates.
    """

    policy: SigningPolicy
    development_dir: Path
    chain: Path | None = None
    key: Path | None = None
    command: tuple[str, ...] = ()
    trust_anchors: Path | None = None

    def __post_init__(self) -> None:
        keys = (self.key is not None) + bool(self.command)
        if keys > 1 or keys != (self.chain is not None):
            raise ParameterError(
                "To sign with your own certificate set LIPSYNC_SIGNING_CHAIN and either LIPSYNC_SIGNING_KEY "
                "or LIPSYNC_SIGNING_COMMAND; set none of them for the development certificate."
            )

    @classmethod
    def from_environment(cls, policy: str | None = None) -> Self:
        """Configure a signer from LIPSYNC_MARKING, LIPSYNC_SIGNING_… and LIPSYNC_TRUST_ANCHORS.

        Args:
            policy: overrides LIPSYNC_MARKING.

        Raises:
            ParameterError: a value is invalid.
        """
        policy_name = policy or os.environ.get("LIPSYNC_MARKING") or SigningPolicy.REQUIRED
        if policy_name not in list(SigningPolicy):
            raise ParameterError(f"marking={policy_name!r} does not exist: use {', '.join(SigningPolicy)}.")
        folder = os.environ.get("LIPSYNC_CREDENTIALS_DIR")
        return cls(
            SigningPolicy(policy_name),
            Path(folder) if folder else Path(platformdirs.user_data_dir("lipsync")) / "credentials",
            chain=_path_setting("LIPSYNC_SIGNING_CHAIN"),
            key=_path_setting("LIPSYNC_SIGNING_KEY"),
            command=tuple(shlex.split(os.environ.get("LIPSYNC_SIGNING_COMMAND", ""))),
            trust_anchors=_path_setting("LIPSYNC_TRUST_ANCHORS"),
        )

    def check_can_sign(self, output: Path) -> None:
        """Check before any work that a result can be signed, if the policy requires it.

        Raises:
            ParameterError: the container cannot hold credentials.
            SigningError: certificate or key cannot be used.
        """
        self.check_container(output)
        if self.policy is SigningPolicy.REQUIRED:
            facts = ManifestFacts("", "", 0, 0, "")
            self._sign_stream(
                io.BytesIO(PROBE_PNG),
                "image/png",
                io.BytesIO(),
                io.BytesIO(PROBE_PNG),
                UNKNOWN_MEDIA_TYPE,
                facts,
            )

    def check_container(self, output: Path) -> None:
        """Check that the output's container can hold credentials, if the policy requires signing.

        Raises:
            ParameterError: it cannot.
        """
        if self.policy is SigningPolicy.REQUIRED and output.suffix.lower() not in MEDIA_TYPES:
            raise ParameterError(
                _unsupported_container(output) + " Name an .mp4 or .mov file, or use marking=best_effort."
            )

    def sign(self, file: Path, source: Path, facts: ManifestFacts) -> str | None:
        """Sign a finished video in place.

        Args:
            file: the video. The signed copy needs the same disk space beside it.
            source: the video or image that it was generated from. Its embedded credentials are kept,
                unless they are damaged.

        Returns:
            None, or a warning if the file stays unsigned.

        Raises:
            SigningError, ParameterError: the file cannot be signed, but the policy requires it.
            OSError: the disk is full.
        """
        if self.policy is SigningPolicy.OFF:
            return UNSIGNED_WARNING
        self.check_container(file)
        if (media_type := MEDIA_TYPES.get(file.suffix.lower())) is None:
            return f"The result carries no content credentials: {_unsupported_container(file)}"
        signed = signed_copy_path(file)
        try:
            source_type = _type_of_readable_source(source)
            try:
                self._sign_file(file, media_type, signed, source, source_type, facts)
            except SigningError:
                if source_type == UNKNOWN_MEDIA_TYPE:
                    raise
                log.warning("credentials of the source cannot be kept and are left out")
                self._sign_file(file, media_type, signed, source, UNKNOWN_MEDIA_TYPE, facts)
            signed.replace(file)
        except SigningError as error:
            if self.policy is SigningPolicy.REQUIRED:
                raise
            log.warning("%s", error)
            return f"The result carries no content credentials: {error.message}"
        finally:
            signed.unlink(missing_ok=True)
        return None

    def describe_signer(self) -> str:
        """Describe the certificate that results are signed with, or the error that prevents signing."""
        try:
            self.check_can_sign(Path("result.mp4"))
        except SigningError as error:
            return error.message
        return "development certificate" if self.chain is None else f"certificate {self.chain.name}"

    def trusted_roots(self) -> str:
        """Return the PEM of all root certificates that are trusted on this machine."""
        files = (self.development_dir / "root.pem", self.trust_anchors)
        roots = [path.read_text() for path in files if _is_file(path)]
        if _is_file(self.chain):
            from cryptography import x509

            from lipsync_engine.provenance.development import to_pem

            roots += map(to_pem, x509.load_pem_x509_certificates(self.chain.read_bytes())[1:])
        return "".join(roots)

    def _sign_file(
        self,
        file: Path,
        media_type: str,
        signed: Path,
        source: Path,
        source_type: str,
        facts: ManifestFacts,
    ) -> None:
        with (
            file.open("rb") as unsigned,
            _ErrorRecordingFile(signed) as target,
            source.open("rb") as source_file,
        ):
            try:
                self._sign_stream(unsigned, media_type, target, source_file, source_type, facts)
            except SigningError as error:
                raise target.error or error from None

    def _sign_stream(
        self,
        unsigned: BinaryIO,
        media_type: str,
        target: BinaryIO,
        source: BinaryIO,
        source_type: str,
        facts: ManifestFacts,
    ) -> None:
        import c2pa

        failures: list[SigningError] = []
        settings = {"builder": {"thumbnail": {"enabled": False}}, "verify": OFFLINE}
        parent = {"title": "source", "relationship": "parentOf", "label": "source"}
        try:
            with (
                self._signer(failures) as signer,
                c2pa.Context.from_dict(settings) as context,
                c2pa.Builder(_build_manifest(facts), context) as builder,
            ):
                builder.add_ingredient(parent, source_type, source)
                builder.sign(signer, media_type, unsigned, target)
        except (OSError, ValueError, c2pa.C2paError) as error:
            raise failures[0] if failures else SigningError(_error_text(error)) from error

    def _signer(self, failures: list[SigningError]) -> c2pa.Signer:
        """Build c2pa's signer, without time-stamps, which would need network access."""
        import c2pa
        from cryptography import x509

        from lipsync_engine.provenance.development import to_pem

        chain, key = self._certificate_files()
        certificates = x509.load_pem_x509_certificates(chain.read_bytes())
        chain_pem, algorithm = "".join(map(to_pem, certificates)), _signing_algorithm(certificates[0])
        if key is None:
            run_command = _command_signer(self.command, failures)
            return c2pa.Signer.from_callback(run_command, c2pa.C2paSigningAlg[algorithm], chain_pem, None)
        return c2pa.Signer.from_info(
            c2pa.C2paSignerInfo(algorithm.lower().encode(), chain_pem.encode(), key.read_bytes(), None)
        )

    def _certificate_files(self) -> tuple[Path, Path | None]:
        """Return the files of chain and key."""
        if self.chain is not None:
            return self.chain, self.key
        if not self.development_dir.exists():
            from lipsync_engine.provenance.development import create_development_certificate

            create_development_certificate(self.development_dir)
        return self.development_dir / "chain.pem", self.development_dir / "key.pem"


def signed_copy_path(file: Path) -> Path:
    """Return the path of a video's signed copy, which replaces the video when it is complete."""
    return file.with_name(f"{file.name}.signed")


def is_consent_required() -> bool:
    """Return whether LIPSYNC_REQUIRE_CONSENT is on."""
    return os.environ.get("LIPSYNC_REQUIRE_CONSENT", "").lower() in ("1", "true", "yes", "on")


def require_consent(consent: str | None) -> None:
    """Reject a job without a consent reference, if the operator requires one.

    Raises:
        InputError: CONSENT_REQUIRED.
    """
    if consent is None and is_consent_required():
        raise InputError(
            ErrorCode.CONSENT_REQUIRED,
            "Jobs need a reference to the consent of the person shown: set consent.",
        )


class _ErrorRecordingFile(io.BufferedRandom):
    """A new file that records write errors, because c2pa reports that a write failed but not why."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w+"))
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _build_manifest(facts: ManifestFacts) -> dict[str, Any]:
    actions = [
        {"action": "c2pa.opened", "parameters": {"ingredientIds": ["source"]}},
        {"action": "c2pa.edited", "digitalSourceType": COMPOSITE_SOURCE_TYPE},
    ]
    return {
        "title": "lip-sync",
        "claim_generator_info": [{"name": "lipsync-engine", "version": package_version()}],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": actions}},
            {"label": OWN_ASSERTION, "data": facts.to_assertion()},
        ],
    }


def _command_signer(command: tuple[str, ...], failures: list[SigningError]) -> Callable[[bytes], bytes]:
    """Return a function that signs with the operator's command.

    Its errors are also appended to `failures`, because c2pa discards exceptions of callbacks.
    """

    def run_command(data: bytes) -> bytes:
        try:
            process = subprocess.run(
                command, input=data, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            failures.append(SigningError(f"{command[0]} could not be run, {_error_text(error)}"))
            raise failures[0] from error
        if process.returncode != 0 or not process.stdout:
            stderr = process.stderr.decode(errors="replace").strip().splitlines()
            detail = f", {stderr[-1][:200]}" if stderr else ""
            failures.append(SigningError(f"{command[0]} exited with status {process.returncode}{detail}"))
            raise failures[0]
        return process.stdout

    return run_command


def _signing_algorithm(certificate: x509.Certificate) -> str:
    """Return C2PA's name of the certificate's signature algorithm."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    match certificate.public_key():
        case ec.EllipticCurvePublicKey() as key if key.key_size in (256, 384, 521):
            return f"ES{512 if key.key_size == 521 else key.key_size}"
        case ed25519.Ed25519PublicKey():
            return "ED25519"
        case rsa.RSAPublicKey():
            return "PS256"
    raise ValueError("C2PA does not support the type of the certificate's key")


def _type_of_readable_source(source: Path) -> str:
    """Return the media type of a source whose embedded credentials can be read, else `UNKNOWN_MEDIA_TYPE`."""
    try:
        media_type = find_embedded_manifest(source)
    except TooManyBoxesError as error:
        log.warning("credentials of the source are not read: it has %s", error)
        return UNKNOWN_MEDIA_TYPE
    if media_type is None:
        return UNKNOWN_MEDIA_TYPE
    if not is_manifest_readable(source, media_type):
        log.warning("credentials of the source cannot be read and are left out")
        return UNKNOWN_MEDIA_TYPE
    return media_type


def _path_setting(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None


def _is_file(path: Path | None) -> TypeGuard[Path]:
    return path is not None and path.is_file()


def _unsupported_container(output: Path) -> str:
    return f"A {output.suffix} file cannot hold content credentials."


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _error_text(error: Exception) -> str:
    return str(error).strip().rstrip(".")[:300]
