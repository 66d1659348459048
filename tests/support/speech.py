"""Speech whose mouth shapes are known: espeak-ng's voices with the true times of their phonemes.

Needed only to make data: espeak-ng is called through its C library (Debian: `apt-get install espeak-ng`).
Phonemes become visemes, visemes become a mouth that moves with coarticulation.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FPS = 25

Event = tuple[float, str]
"""When a viseme starts, seconds, and its name in `VISEMES`."""


@dataclass(frozen=True, slots=True)
class Speech:
    """int16 mono samples, their rate, and the visemes said."""

    samples: np.ndarray
    sample_rate: int
    events: list[Event]

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate


# --- visemes ---

VISEMES: dict[str, tuple[float, float, float]] = {
    "rest": (0.0, 0.5, 0.0),
    "closed": (0.0, 0.45, 0.1),
    "lip_teeth": (0.12, 0.55, 0.0),
    "a": (1.0, 0.55, 0.0),
    "e": (0.55, 0.85, 0.0),
    "i": (0.32, 1.0, 0.0),
    "o": (0.62, 0.2, 0.8),
    "u": (0.3, 0.1, 1.0),
    "consonant": (0.28, 0.55, 0.0),
    "round_consonant": (0.25, 0.25, 0.7),
    "central": (0.5, 0.5, 0.0),
}


def viseme_of(phoneme: str) -> str:
    """espeak-ng's phoneme mnemonic → mouth shape."""
    if not phoneme or phoneme[0] in "_:;":
        return "rest"
    p = phoneme.lstrip("'%,")
    groups = [
        ("closed", ("p", "b", "m")),
        ("lip_teeth", ("f", "v")),
        ("round_consonant", ("w", "S", "Z", "tS", "dZ", "r")),
        ("central", ("a#", "V", "3", "@")),
        ("a", ("a", "A")),
        ("o", ("o", "O", "0")),
        ("u", ("u", "U")),
        ("i", ("i", "I", "j")),
        ("e", ("e", "E")),
    ]
    return next((name for name, starts in groups if p.startswith(starts)), "consonant")


def articulation(events: list[Event], n_frames: int, fps: float = FPS) -> np.ndarray:
    """(n_frames, 3) openness, width, rounding in the middle of each frame, with coarticulation."""
    rate = 200
    targets = np.tile(np.array(VISEMES["rest"]), (int(n_frames / fps * rate) + rate, 1))
    closed = np.zeros(len(targets), bool)
    ends = [start for start, _ in events[1:]] + [len(targets) / rate]
    for (start, viseme), end in zip(events, ends, strict=True):
        rows = slice(int(start * rate), int(end * rate) + 1)
        targets[rows], closed[rows] = VISEMES[viseme], viseme == "closed"
    kernel = np.hanning(int(0.13 * rate))
    kernel /= kernel.sum()
    smooth = np.stack(
        [np.convolve(np.pad(c, 60, mode="edge"), kernel, "same")[60:-60] for c in targets.T], axis=1
    )
    shut = np.convolve(closed.astype(float), np.hanning(int(0.06 * rate)), "same").clip(0, 1)
    smooth[:, 0] *= 1 - shut  # p, b and m always close
    at = np.minimum(((np.arange(n_frames) + 0.5) / fps * rate).astype(int), len(smooth) - 1)
    return smooth[at]


# --- espeak-ng ---


class _Event(ctypes.Structure):
    """espeak-ng's espeak_EVENT (speak_lib.h)."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_PHONEME_EVENT, _RETRIEVAL, _PHONEME_EVENTS, _UTF8, _RATE, _PITCH = 7, 1, 1, 1, 1, 3


@functools.cache
def _espeak() -> tuple[Any, int]:
    """(library, sample rate); it can be set up once in a process."""
    library = ctypes.CDLL(ctypes.util.find_library("espeak-ng"))
    return library, library.espeak_Initialize(_RETRIEVAL, 0, None, _PHONEME_EVENTS)


def speak(text: str, voice: str, *, rate: int = 150, pitch: int = 50) -> Speech:
    """espeak-ng's speech of a text.

    Args:
        voice: as `espeak-ng --voices` names it, with a variant after a plus sign.
        rate: words a minute.
        pitch: 0 to 99.
    """
    library, sample_rate = _espeak()
    parts: list[bytes] = []
    events: list[Event] = []

    def take(data: Any, count: int, found: Any) -> int:
        if data and count > 0:
            parts.append(ctypes.string_at(data, 2 * count))
        i = 0
        while found[i].type:
            if found[i].type == _PHONEME_EVENT:
                name = found[i].name.decode(errors="ignore")
                events.append((found[i].audio_position / 1000, viseme_of(name)))
            i += 1
        return 0

    callback = _CALLBACK(take)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {voice!r}")
    library.espeak_SetParameter(_RATE, rate, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return Speech(np.frombuffer(b"".join(parts), np.int16), sample_rate, events)


def write_wav(samples: np.ndarray, sample_rate: int, path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())


# --- endless different speech ---

WORDS = {
    "en": """about again always apple autumn baby beautiful because before blue boat book bottle bread bring
        brother camera cheese children choose city coffee corner could dance door dream early evening
        every family farm father feather few field five flower follow food forest friend garden glass
        good green half hammer happy harbour heavy help hope house how ice island jump June kitchen lamp
        large later laugh leave letter light little long lovely many map maple market maybe milk moment
        money month moon morning mother mountain mouth move music my name never new nobody number ocean
        often open orange our over paper part people perhaps picture plum pocket poem pool purple put
        quiet rabbit rain remember river road room round school sea seven shape sheep shoe show simple
        sister slow small smoke soft soup spoon spring stay stone story summer sun table tall tea thank
        think three time to today tomorrow too tower town travel tree two umbrella under upon valley
        very village violet voice wait walk wall warm watch water way wave we weather welcome what wheel
        white why wind window winter wise wolf woman wonderful wood work world year yellow yesterday you
        young zebra""",
    "de": """Abend alle Apfel arbeiten Auge bald Baum bei Berg bitte Blume blau Brot Bruder Dach danke Ebene
        Eule fahren Feuer Fisch Freund fünf Garten geben Glück gut Haus heute Himmel hoffen immer jung
        kaufen Kind klein kommen Licht lieben machen Mann Maus Meer Milch morgen Mund Mutter Nacht neu
        oben öffnen Papier Pferd rufen Sommer Sonne Stadt Stimme Straße süß Tag Uhr über Vater viel
        Vogel Wasser Weg wenig Wind wohnen Wolke Zeit zwei""",
    "es": """agua ahora amigo amor azul bajo barco bien blanco boca bueno cabeza calle camino campo casa
        cielo ciudad comer como día dulce escuela familia flor fuego gato grande hermano hombre invierno
        jardín juego largo leche libro lluvia luna luz madre mañana mar mesa mucho mujer mundo nube
        nuevo ojo padre palabra pan papel pequeño perro poco puerta pueblo rojo siempre sol sombra
        tiempo tierra uva vaca ventana verano viaje vida viento voz zapato""",
    "fr": """ami amour arbre aujourd'hui avec beau blanc bleu boire bonjour bouche bras champ chat chemin
        cheval ciel coeur dans demain deux eau école enfant été famille femme feu fleur fleuve forêt
        frère grand heure hiver homme jardin jour lait livre loin lumière lune main maison matin mer
        monde montagne mouton musique neige nouveau nuit oiseau pain papier partir petit peu pluie pomme
        pont porte poule rouge rue soleil soupe table temps toujours vache vent vert ville voix""",
}  # fmt: skip
VARIANTS = [
    "m1", "m3", "m4", "m6", "m7", "m8", "f1", "f2", "f3", "f5", "Alex", "Andy", "Annie", "Gene", "Hugo",
    "Jacky", "Lee", "Marco", "Mario", "adam", "anika", "belinda", "benjamin", "caleb", "david", "ed",
    "edward", "iven", "john", "linda", "max", "michel", "miguel", "norbert", "paul", "pedro", "quincy",
    "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
]  # fmt: skip
BASES = {"en-us": "en", "en": "en", "en-029": "en", "en-gb-x-rp": "en", "de": "de", "nl": "de", "es": "es",
         "es-419": "es", "pt-br": "es", "ro": "es", "fr": "fr"}  # fmt: skip
"""espeak-ng's voices, and whose words they read."""

VOICES = [f"{base}{kind}" for base in BASES for kind in ("", *(f"+{name}" for name in VARIANTS))]
"""What training hears; the evaluation's voices are others."""


def random_speech(rng: np.random.Generator) -> Speech:
    """A few random words, or babble, in a random voice of `VOICES`."""
    voice = VOICES[rng.integers(len(VOICES))]
    if rng.random() < 0.3:
        syllables = [
            "bpmfvwtdnsklr"[rng.integers(13)] + "aeiou"[rng.integers(5)] for _ in range(rng.integers(6, 16))
        ]
        words = ["".join(part) for part in np.array_split(syllables, max(1, len(syllables) // 3))]
    else:
        known = WORDS[BASES[voice.partition("+")[0]]].split()
        words = [known[i] for i in rng.integers(len(known), size=rng.integers(3, 10))]
        if rng.random() < 0.3:
            words[len(words) // 2] += ","
    text = " ".join(words) + "."
    return speak(text, voice, rate=int(rng.integers(110, 190)), pitch=int(rng.integers(25, 75)))


def random_track(rng: np.random.Generator, seconds: float) -> Speech:
    """Random speech with pauses between, at least `seconds` long and cut there."""
    _, sample_rate = _espeak()
    samples, events, at = [], [], 0
    while at < seconds * sample_rate:
        gap = int(rng.uniform(0.1, 1.2) * sample_rate)
        said = random_speech(rng)
        start = (at + gap) / sample_rate
        events += [(start + time, viseme) for time, viseme in said.events]
        events.append((start + len(said.samples) / sample_rate, "rest"))
        samples += [np.zeros(gap, np.int16), said.samples]
        at += gap + len(said.samples)
    kept = np.concatenate(samples)[: int(seconds * sample_rate)]
    return Speech(kept, sample_rate, [event for event in events if event[0] < seconds])
