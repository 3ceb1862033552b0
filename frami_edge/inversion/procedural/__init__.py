"""Procedural audio: random sounds written by hand, through the teacher's real front end.

It is a prior on what sound is like, and must be named so wherever results on it are reported.
"""

from __future__ import annotations

from frami_edge.inversion.procedural.audio import ProceduralAudio
from frami_edge.inversion.procedural.mels import procedural_mels

__all__ = ["ProceduralAudio", "procedural_mels"]
