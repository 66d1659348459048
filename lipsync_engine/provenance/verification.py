"""Says what a file's credentials are worth. What it reads may be hostile: nothing is fetched for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import c2pa

from lipsync_engine.errors import ErrorCode, InputError
from lipsync_engine.provenance.development import DEVELOPMENT
from lipsync_engine.provenance.signing import OWN_ASSERTION


class Verdict(StrEnum):
    TRUSTED = "trusted"  # as it was signed, by somebody known here
    UNKNOWN_SIGNER = "unknown_signer"  # as it was signed, by whoever that may be
    INVALID = "invalid"  # changed since, or never rightly signed
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Source:
    """What a file was made from, as it says.

    Attributes:
        relationship: C2PA's: parentOf, componentOf, inputTo.
        signer: of its own credentials; None where it had none.
    """

    relationship: str
    signer: str | None


@dataclass(frozen=True, slots=True)
class Verification:
    """What a file's credentials are worth.

    Attributes:
        signer: organisation, or name, in the certificate.
        is_development: made by this program for trying things out.
        is_generated: it says that a generative model made or edited it.
        generator: program that wrote the credentials.
        made: what our own programs say of the making (`Facts`); empty for others'.
        sources: what it was made from.
        problems: C2PA's codes of what does not hold.
    """

    verdict: Verdict
    signer: str | None = None
    is_development: bool = False
    is_generated: bool = False
    generator: str | None = None
    made: Mapping[str, Any] | None = None
    sources: tuple[Source, ...] = ()
    problems: tuple[str, ...] = ()


def verify(file: Path, known: str) -> Verification:
    """Read and check the credentials of a video or picture.

    Args:
        known: PEM of roots whose signatures count as known, as from `Marker.known`.

    Raises:
        InputError: INPUT_NOT_FOUND, INPUT_IS_DIRECTORY, INPUT_UNREADABLE.
    """
    try:
        with file.open("rb") as content:
            return _verify(content, known)
    except OSError as error:
        code = {FileNotFoundError: ErrorCode.INPUT_NOT_FOUND, IsADirectoryError: ErrorCode.INPUT_IS_DIRECTORY}
        raise InputError(
            code.get(type(error), ErrorCode.INPUT_UNREADABLE),
            f"{file.name!r} cannot be read ({error.strerror}): name a video or picture.",
        ) from error


def _verify(content: Any, known: str) -> Verification:
    trust = {"trust": {"trust_anchors": known}} if known else {}
    # Never over the network: whoever made the file would choose the address.
    offline = {"verify": {"verify_trust": True, "ocsp_fetch": False, "remote_manifest_fetch": False}}
    try:
        with (
            c2pa.Context.from_dict(offline | trust) as context,
            c2pa.Reader(None, content, context=context) as reader,
        ):
            state, said = reader.get_validation_state(), json.loads(reader.json())
    except c2pa.C2paError as error:
        if isinstance(error, (c2pa.C2paError.ManifestNotFound, c2pa.C2paError.NotSupported)):
            return Verification(Verdict.NONE)
        return Verification(Verdict.INVALID, problems=(str(error)[:300],))
    verdict = {"Trusted": Verdict.TRUSTED, "Valid": Verdict.UNKNOWN_SIGNER}.get(state, Verdict.INVALID)
    manifests = said["manifests"]
    active = manifests.get(said.get("active_manifest"), {})
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
    failures = said.get("validation_status") or []
    return Verification(
        verdict,
        signer=signer,
        is_development=signer == DEVELOPMENT,
        is_generated=any(
            "trainedalgorithmicmedia" in str(action.get("digitalSourceType", "")).lower()
            for action in actions
        ),
        generator=generator or None,
        made=own[0] if own else None,
        sources=tuple(
            Source(
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
