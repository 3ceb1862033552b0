"""Thirty-five spoken keywords by espeak-ng, as a folder of clips: 12 voices to learn, 3 to test.

    python experiments/keywords.py keywords

The words are those of Speech Commands (P. Warden, 2018), in six accents; each clip of a second has
a random speed, pitch, place, loudness and noise (SNR 0 to 30 dB). `fold2` has voices that `fold1`
has not. Needs `espeak-ng`, a Debian package. docs/results/fsdd.md goes on from there.
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from frami_edge.errors import FramiEdgeError
from frami_edge_runtime.state import check_place

WORDS = """
backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine
no off on one right seven sheila six stop three tree two up visual wow yes zero
"""
ACCENTS = "en-gb en-us en-gb-scotland en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd"
VOICES = {1: "m1 m2 m3 m4 m5 m6 f1 f2 f3 klatt klatt2 croak", 2: "m7 f4 klatt3"}


def say(path: Path, accent: str, voice: str, seed: list[int]) -> None:
    """Write one clip of the word that names its folder."""
    rng = np.random.default_rng(seed)
    pitch, speed = rng.integers(25, 80), rng.integers(110, 220)
    command = ["espeak-ng", "-v", f"{accent}+{voice}", "-p", str(pitch), "-s", str(speed)]
    spoken = subprocess.run(
        [*command, "--stdout", path.parent.name], capture_output=True, check=True
    )
    x, rate = soundfile.read(io.BytesIO(spoken.stdout))
    loud = np.flatnonzero(np.abs(x) > 0.01)
    x = x[loud[0] : loud[-1] + 1][:rate]
    clip = np.zeros(rate)
    at = rng.integers(0, rate - len(x) + 1)
    clip[at : at + len(x)] = x
    spectrum = np.fft.rfft(rng.standard_normal(rate))
    spectrum /= np.maximum(np.arange(len(spectrum)), 40) ** rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, rate)
    clip += noise * np.sqrt(np.mean(x**2) / np.mean(noise**2)) * 10 ** (-rng.uniform(0, 30) / 20)
    clip *= 10 ** (-rng.uniform(0, 20) / 20) / np.abs(clip).max()
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, clip, rate, subtype="PCM_16")


def main() -> int:
    """Make the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="gets fold1/WORD/*.wav and fold2/WORD/*.wav")
    folder = parser.parse_args().folder
    if not shutil.which("espeak-ng"):
        print("error: There is no espeak-ng. Install it: apt install espeak-ng", file=sys.stderr)
        return 1
    try:
        check_place(folder, folder=True)
    except FramiEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    made: list[Future[None]] = []
    with ThreadPoolExecutor() as pool:
        for fold, voices in VOICES.items():
            for word, accent, voice in itertools.product(
                WORDS.split(), ACCENTS.split(), voices.split()
            ):
                path = folder / f"fold{fold}" / word / f"{accent}-{voice}.wav"
                made.append(pool.submit(say, path, accent, voice, [len(made) + 1, fold]))
    for clip in made:
        clip.result()
    print(f"{len(made)} clips in {folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
