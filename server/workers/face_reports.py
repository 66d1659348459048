"""Reports on the faces of a video, made in a child process, because the file may be hostile."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from server.workers.cli_child import ChildFailedError, CliChild


class NotReportedError(Exception):
    """The video cannot be used.

    Attributes:
        code, message: the engine's error code and sentence.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


async def report_faces(child: CliChild, video: Path, detector: str, tenant: str) -> dict[str, Any]:
    """Return the object that `lipsync faces --json VIDEO` prints, with thumbnails as data URLs.

    Args:
        video: lies in a folder of its own; thumbnails are written beside it.
        detector: yunet or drawn.

    Raises:
        NotReportedError.
    """
    folder = video.parent / "faces"
    arguments = ("faces", str(video), "--json", "--detector", detector, "--output", str(folder))
    report: dict[str, Any] = json.loads(await _run(child, video, tenant, *arguments))
    del report["overlay"]
    for track in report["tracks"]:
        if (path := track["thumbnail"]) is not None:
            data = base64.b64encode((folder / Path(path).name).read_bytes()).decode()
            track["thumbnail"] = f"data:image/jpeg;base64,{data}"
    return report


async def draw_overlay(child: CliChild, video: Path, detector: str, overlay: Path, tenant: str) -> None:
    """Write the video with points, crop and mask drawn in.

    Raises:
        NotReportedError.
    """
    await _run(
        child, video, tenant, "faces", str(video), "--json", "--detector", detector, "--overlay", str(overlay)
    )


async def _run(child: CliChild, video: Path, tenant: str, *arguments: str) -> bytes:
    try:
        return await child.run(*arguments, tenant=tenant, file=video)
    except ChildFailedError as error:
        match = re.match(r"error \[(\w+)\]: (.*)", error.stderr)
        if match is None:
            raise NotReportedError(
                "media_failed", "The video cannot be read: send a complete video."
            ) from None
        raise NotReportedError(match[1], match[2]) from None
