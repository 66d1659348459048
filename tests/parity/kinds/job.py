"""Kind `job`: a whole small job with the pieces that the `reference` preset uses.

From the stored landmarks: the matrices, and the number and order of output frames. From the stored faces, matrices
and noise: windows without overlap, denoising, decoding, the keep-region put back, the paste into the frames.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipsync_engine import align, audio, timeline
from lipsync_engine.composite import ReferenceCompositor
from lipsync_engine.params import LoopMode, Tail
