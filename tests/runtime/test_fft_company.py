"""NumPy's FFT rounds a row differently alone and in a vector of rows on some machines (arm64)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from frami_edge_runtime import logmel as _melblock
from frami_edge_runtime import logmel as _rfft
from frami_edge_runtime.logmel import ROWS, LogMelStream, log_mel
from frami_edge_runtime.melspec import MelSpec

SPEC = MelSpec(sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16)
CLIP = np.random.default_rng(0).normal(0, 0.1, 9000).astype(np.float32)
PLAIN = _rfft.rfft_over_n(SPEC.n_fft)


def in_vectors(frames: np.ndarray, spectra: np.ndarray) -> None:
    """As on arm64: whole groups in one vector, the rest alone, a bit apart."""
    PLAIN(frames, spectra)
    whole = len(frames) // ROWS * ROWS
    spectra[:whole] *= np.float32(1 + 2e-7)


def by_count(frames: np.ndarray, spectra: np.ndarray) -> None:
    """Worse than any machine known: every number of rows rounds in its own way."""
    PLAIN(frames, spectra)
    spectra *= np.float32(1 + 2e-7 * len(frames))


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _rfft.rows_together.cache_clear()
    for module in (_rfft, _melblock):
        monkeypatch.setattr(module, "rfft_over_n", lambda _: request.param)
    yield
    _rfft.rows_together.cache_clear()


def pushed(chunks: list[int]) -> np.ndarray:
    stream, parts, at = LogMelStream(SPEC), [], 0
    for n in chunks:
        parts.append(stream.push(CLIP[at : at + n]))
        at += n
    return np.concatenate([*parts, stream.push(CLIP[at:]), stream.flush()])


@pytest.mark.parametrize(
    ("machine", "together"),
    [(PLAIN, None), (in_vectors, ROWS), (by_count, 0)],
    indirect=["machine"],
)
def test_a_frame_does_not_depend_on_its_company(machine: None, together: int | None) -> None:
    if together is not None:
        assert _rfft.rows_together(SPEC.n_fft, ROWS) == together
    whole = log_mel(CLIP, SPEC)
    for chunks in ([80] * 100, [1, 333, 5, 800, 81], [256, 80, 80, 4000], [7] * 900):
        assert np.array_equal(pushed(chunks), whole)


@pytest.mark.parametrize("machine", [in_vectors, by_count], indirect=True)
def test_the_features_are_the_same_within_rounding(machine: None) -> None:
    assert np.abs(log_mel(CLIP, SPEC) - reference()).max() <= 5e-6


def reference() -> np.ndarray:
    power = np.abs(
        np.fft.rfft(
            np.stack([CLIP[i * 80 + 28 : i * 80 + 228] * SPEC.window for i in range(110)]), 256
        )
    )
    # The window lies in the middle of n_fft, which changes the phase only.
    return SPEC.compress((power**2) @ SPEC.filterbank)
