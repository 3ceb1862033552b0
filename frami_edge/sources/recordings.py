"""The user's own unlabelled recordings as a source: the teacher's answers are their only labels.

Off by default, and named in every card and table of a student that learned from it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frami_edge.config import BankConfig
from frami_edge.data.clips import audio_below, read_audio, readable
from frami_edge.device import generator
from frami_edge.errors import DataError, UnusableClipError
from frami_edge.frontend import resample
from frami_edge.sources import NO_LABEL, Batch, SourceContext
from frami_edge.sources.procedural import samples_for

log = logging.getLogger("frami_edge")


def recordings_in(config: BankConfig) -> list[Path]:
    """Audio files in the folder of recordings.

    Raises:
        DataError: The folder is missing, or has none.
    """
    folder = Path(config.recordings or "")
    if not (found := audio_below(folder)):
        missing = "" if folder.is_dir() else ", which does not exist"
        raise DataError(
            f"There are no audio files in the folder of recordings, {folder}{missing}.",
            fix="Give a folder of WAV, FLAC, OGG or MP3 files: --recordings FOLDER.",
        )
    return found


class Recordings:
    """Random stretches of every recording in a folder and its subfolders, equally many of each.

    Files of any rate are resampled; recordings shorter than a clip are repeated; files that cannot
    be used are left out with a warning, hidden ones without.

    Raises:
        DataError: The folder is missing, or has no audio files.
    """

    name = "recordings"
    block = 250

    def __init__(self, context: SourceContext) -> None:
        c = self.context = context
        self.paths = recordings_in(c.config)
        self.clips = c.config.recordings_clips
        self.samples = c.samples or samples_for(c.spec, c.frames)
        self.used: set[int] = set()
        self._held: tuple[int, Tensor | None] = (-1, None)

    @property
    def steps(self) -> int:
        """Number of blocks."""
        return -(-self.clips // self.block)

    def step(self, index: int) -> Batch:
        """The next block of clips; those of one recording follow each other."""
        rng = generator(self.context.seed, f"{self.name}/{index}")
        first, found = index * self.block, []
        for clip in range(first, min(first + self.block, self.clips)):
            audio = self._recording(clip * len(self.paths) // self.clips)
            if audio is not None:
                at = int(torch.randint(0, len(audio) - self.samples + 1, (), generator=rng))
                found.append(audio[at : at + self.samples])
        if index + 1 == self.steps and not self.used:
            raise DataError(
                f"None of the {len(self.paths)} recordings in {self.context.config.recordings} "
                "can be used.",
                fix="The warnings above say why; give other files.",
            )
        audio_BN = torch.stack(found) if found else torch.empty(0, self.samples)
        labels = torch.full((len(found),), NO_LABEL)
        return Batch(None, labels, bool(found), {}, audio_BN)

    def _recording(self, number: int) -> Tensor | None:
        """(N,) samples at the teacher's rate, at least one clip; None where it cannot be used."""
        if self._held[0] != number:
            path, audio = self.paths[number], None
            try:
                samples, rate = read_audio(path)
                audio = resample(torch.from_numpy(samples), rate, self.context.spec.sample_rate)
                audio = audio.repeat(-(-self.samples // len(audio)))
                self.used.add(number)
            except UnusableClipError as error:
                log.warning("%s is left out: %s.", readable(str(path)), error.message)
            self._held = number, audio
        return self._held[1]

    def state(self) -> dict[str, Any]:
        """Which recordings were used; the clips depend on seed and step alone."""
        return {"used": sorted(self.used)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.used = set(state["used"])
