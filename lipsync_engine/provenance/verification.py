"""Verification of a file's content credentials, which may be hostile: nothing is fetched from the network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from lipsync_engine.errors import ErrorCode, InputError
from lipsync_engine.provenance.signing import OWN_ASSERTION
from lipsync_engine.provenance.source_manifest import (
    MAX_BOXES,
    OFFLINE,
    TooManyBoxesError,
    find_embedded_manifest,
)


class Verdict(StrEnum):
    """Result of a verification."""

    TRUSTED = "trusted"  # unchanged, and signed under a trusted root
    UNKNOWN_SIGNER = "unknown_signer"  # unchanged, but the root is not trusted here
    INVALID = "invalid"  # changed after signing, or never validly signed
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Ingredient:
    """A source of a file, as its manifest states it.

    Attributes:
        relationship: C2PA's parentOf, componentOf or inputTo.
        signer: of the source's own credentials; None if it had none.
    """

    relationship: str
    signer: str | None


@dataclass(frozen=True, slots=True)
class Verification:
    """The content credentials of a file, and whether they are valid.

    Attributes:
        signer: organisation, or name, of the certificate.
        is_development: signed with a development certificate of this program.
        is_generated: the manifest states that a generative model created or edited the file.
        generator: program that wrote the credentials.
        generation: the assertion of this program (`ManifestFacts.to_assertion`); None in files of others.
        ingredients: sources of the file.
        problems: C2PA's codes of failed checks.
    """

    verdict: Verdict
    signer: str | None = None
    is_development: bool = False
    is_generated: bool = False
    generator: str | None = None
    generation: Mapping[str, Any] | None = None
    ingredients: tuple[Ingredient, ...] = ()
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `lipsync verify --json` and of the HTTP API."""
        fields = dataclasses.asdict(self)
        json_keys = {"generation": "made", "ingredients": "sources"}
        return {json_keys.get(name, name): value for name, value in fields.items()}


def verify_credentials(file: Path, trusted_roots: str) -> Verification:
    """Read and verify the credentials of a video or image.

    Args:
        trusted_roots: PEM of the trusted root certificates, from `ManifestSigner.trusted_roots`.

    Raises:
        InputError: INPUT_NOT_FOUND, INPUT_IS_DIRECTORY, INPUT_UNREADABLE.
    """
    try:
        find_embedded_manifest(file)  # counts boxes: c2pa's time grows with their square
        with file.open("rb") as content:
            return _verify_stream(content, trusted_roots)
    except TooManyBoxesError as error:
        raise InputError(
            ErrorCode.INPUT_UNREADABLE,
            f"{file.name!r} has more than {MAX_BOXES} boxes and is not verified: name a video or image.",
        ) from error
    except OSError as error:
        codes = {
            FileNotFoundError: ErrorCode.INPUT_NOT_FOUND,
            IsADirectoryError: ErrorCode.INPUT_IS_DIRECTORY,
        }
        raise InputError(
            codes.get(type(error), ErrorCode.INPUT_UNREADABLE),
            f"{file.name!r} cannot be read ({error.strerror}): name a video or image.",
        ) from error


def _verify_stream(content: Any, trusted_roots: str) -> Verification:
    import c2pa

    from lipsync_engine.provenance.development import DEVELOPMENT_ORGANISATION

    trust = {"trust": {"trust_anchors": trusted_roots}} if trusted_roots else {}
    offline = {"verify": {"verify_trust": True, **OFFLINE}}
    try:
        with (
            c2pa.Context.from_dict(offline | trust) as context,
            c2pa.Reader(None, content, context=context) as reader,
        ):
            state, report = reader.get_validation_state(), json.loads(reader.json())
    except c2pa.C2paError as error:
        if isinstance(error, (c2pa.C2paError.ManifestNotFound, c2pa.C2paError.NotSupported)):
            return Verification(Verdict.NONE)
        return Verification(Verdict.INVALID, problems=(str(error)[:300],))
    verdict = {"Trusted": Verdict.TRUSTED, "Valid": Verdict.UNKNOWN_SIGNER}.get(state, Verdict.INVALID)
    manifests = report["manifests"]
    active = manifests.get(report.get("active_manifest"), {})
    assertions = active.get("assertions", [])
    actions = [
        action
        for entry in assertions
        if str(entry.get("label", "")).startswith("c2pa.actions")
        for action in entry["data"].get("actions", [])
    ]
    own = [entry["data"] for entry in assertions if entry.get("label") == OWN_ASSERTION]
    generators = active.get("claim_generator_info") or [{}]
    generator = " ".join(str(generators[0].get(name, "")) for name in ("name", "version")).strip()
    signer = _signer_name(active)
    failures = report.get("validation_status") or []
    return Verification(
        verdict,
        signer=signer,
        is_development=signer == DEVELOPMENT_ORGANISATION,
        is_generated=any(
            "trainedalgorithmicmedia" in str(action.get("digitalSourceType", "")).lower()
            for action in actions
        ),
        generator=generator or None,
        generation=own[0] if own else None,
        ingredients=tuple(
            Ingredient(
                str(part.get("relationship", "")),
                _signer_name(manifests.get(part.get("active_manifest"), {})),
            )
            for part in active.get("ingredients", [])
        ),
        problems=tuple(
            str(failure.get("code"))
            for failure in failures
            if failure.get("code") != "signingCredential.untrusted"
        ),
    )


def _signer_name(manifest: Mapping[str, Any]) -> str | None:
    signature = manifest.get("signature_info") or {}
    name = signature.get("issuer") or signature.get("common_name")
    return None if name is None else str(name)
