"""Make the bundled demo: a drawn presenter, another sentence to put into her mouth, and what is true of it.

    python -m scripts.release.demo             # demo/presenter.mp4, voice.wav, truth.json (espeak-ng needed)
    python -m scripts.release.demo --picture   # demo/side_by_side.gif from what `make demo` left

Neither her face, nor the voice, nor the sentence was used in training.
"""

from __future__ import annotations

import argparse
import math
import subprocess
from pathlib import Path

from lipsync_engine import media
from tests.support import presenter, speech
from tests.support.mouth_score import Truth

ROOT = Path(__file__).parents[2]
IDENTITY, VOICE, SIDE = 4_000_009, "en-us+f4", 384
OWN_WORDS = "Good evening. Here is the news of the day, from the studio by the river, and then the weather."
SENTENCE = "Welcome! My lips were moved by a model that runs on your own machine. Nobody else heard a word."


def inputs(folder: Path) -> None:
    own, said = speech.speak(OWN_WORDS, "en-us"), speech.speak(SENTENCE, VOICE, rate=150)
    n = math.ceil(said.duration_s * speech.FPS)
    poses = presenter.poses(speech.articulation(own.events, n + 10), IDENTITY)
    who = presenter.Identity.from_seed(IDENTITY)
    frames = [presenter.draw(who, pose, SIDE) for pose in poses]
    presenter.encode(frames, None, folder / "presenter.mp4")
    speech.write_wav(said.samples, said.sample_rate, folder / "voice.wav")
    openness = speech.articulation(said.events, n)[:, 0]
    Truth(IDENTITY, poses, openness, said.events).save(folder / "truth.json")
    print(f"{n} frames of voice, {len(frames)} of video")


def picture(film: Path, output: Path, width: int = 560) -> None:
    """A small looping picture for the documents."""
    graph = (
        f"fps=12.5,scale={width}:-1:flags=lanczos,split[a][b];[a]palettegen=max_colors=80[p];"
        "[b][p]paletteuse=dither=bayer:bayer_scale=4"
    )
    command = [str(media.find_ffmpeg()), "-v", "error", "-y", "-i", str(film), "-vf", graph, str(output)]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", action="store_true", help="only the README's picture")
    if parser.parse_args().picture:
        picture(ROOT / "demo_output" / "side_by_side.mp4", ROOT / "demo" / "side_by_side.gif")
    else:
        inputs(ROOT / "demo")


if __name__ == "__main__":
    main()
