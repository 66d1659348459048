"""Make the small pictures of docs/examples.md: a portrait, two speakers, a mask.

    python -m scripts.release.examples docs/images

Made with the real command and the tiny model, from the bundled demo and a second drawn presenter.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from lipsync_engine import media
from scripts.release.demo import SIDE, picture
from tests.support import presenter, speech

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo"
OTHER_IDENTITY = 4_000_021
SECONDS = 2.4


def ffmpeg(*arguments: object) -> None:
    subprocess.run([str(media.find_ffmpeg()), "-v", "error", "-y", *map(str, arguments)], check=True)


def lipsync(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "lipsync_engine.cli", *map(str, arguments)], check=True)


def listener(path: Path) -> None:
    """A second presenter, who has nothing to say."""
    who = presenter.Identity.from_seed(OTHER_IDENTITY)
    poses = presenter.poses(speech.articulation([(0.0, "rest")], round(SECONDS * speech.FPS)), OTHER_IDENTITY)
    presenter.encode([presenter.draw(who, pose, SIDE) for pose in poses], None, path)


def beside(left: Path, right: Path, output: Path) -> None:
    ffmpeg("-i", left, "-i", right, "-filter_complex", "hstack", "-crf", 12, output)


def portraits(work: Path, folder: Path) -> None:
    """Still on the left, natural on the right."""
    face = work / "face.png"
    ffmpeg("-i", DEMO / "presenter.mp4", "-frames:v", 1, face)
    for motion in ("still", "natural"):
        lipsync("portrait", face, work / "left.wav", "-o", work / f"{motion}.mp4", "--motion", motion)
    beside(work / "still.mp4", work / "natural.mp4", work / "portraits.mp4")
    picture(work / "portraits.mp4", folder / "portrait.gif", 250)


def two_people(work: Path, folder: Path) -> None:
    """The left one speaks first, then the right one."""
    listener(work / "other.mp4")
    ffmpeg("-i", DEMO / "presenter.mp4", "-t", SECONDS, "-crf", 12, work / "one.mp4")
    beside(work / "one.mp4", work / "other.mp4", work / "couple.mp4")
    speakers = [f"--speaker={side}={work / side}.wav" for side in ("left", "right")]
    lipsync("multi", work / "couple.mp4", "-o", work / "spoken.mp4", "--order", "left_right", *speakers)
    picture(work / "spoken.mp4", folder / "two-people.gif", 184)


def masked(work: Path, folder: Path) -> None:
    """Source, mask, result with the mask: the left half of the mouth may change."""
    allowed = np.zeros((SIDE, SIDE), np.uint8)
    allowed[:, : SIDE // 2] = 255
    ffmpeg_input = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{SIDE}x{SIDE}", "-i", "pipe:0"]
    command = [str(media.find_ffmpeg()), "-v", "error", "-y", *ffmpeg_input, str(work / "mask.png")]
    subprocess.run(command, input=allowed.tobytes(), check=True)
    made = work / "masked.mp4"
    lipsync("sync", work / "one.mp4", work / "left.wav", "-o", made, "--mask-image", work / "mask.png")
    graph = (
        "[0:v]trim=start_frame=20:end_frame=21,setpts=0[a];[1:v]format=rgb24[b];"
        "[2:v]trim=start_frame=20:end_frame=21,setpts=0[c];[a][b][c]hstack=3,scale=660:-1"
    )
    sources = ["-i", work / "one.mp4", "-i", work / "mask.png", "-i", made]
    ffmpeg(*sources, "-filter_complex", graph, "-frames:v", 1, folder / "mask.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory(prefix="lipsync-examples-") as name:
        work = Path(name)
        for number, side in enumerate(("left", "right")):
            ffmpeg("-ss", number * SECONDS, "-t", SECONDS, "-i", DEMO / "voice.wav", work / f"{side}.wav")
        portraits(work, folder)
        two_people(work, folder)
        masked(work, folder)


if __name__ == "__main__":
    main()
