"""Reading back a saved state: all is checked before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import StreamError


class StateReader:
    """Typed access to a state dictionary that may come from anywhere.

    Args:
        state: What a ``state()`` method gave.
        owner: The class that reads it, for messages.

    Raises:
        StreamError: ``state`` is no dictionary; later, whatever does not fit.
    """

    def __init__(self, state: Any, owner: str) -> None:
        """Check that there is a mapping to read."""
        self._owner = owner
        self._seen: set[str] = set()
        if not isinstance(state, Mapping):
            raise self._error("it is no dictionary")
        self._state = state

    def require(self, condition: bool, key: str) -> None:
        """Refuse the state because of ``key`` unless the condition holds."""
        if not condition:
            raise self._error(f"{key} does not fit")

    def value(self, key: str) -> Any:
        """Whatever is stored under ``key``."""
        self._seen.add(key)
        if key not in self._state:
            raise self._error(f"{key} is missing")
        return self._state[key]

    def text(self, key: str, wanted: str) -> None:
        """Refuse anything but this string."""
        value = self.value(key)
        self.require(isinstance(value, str) and value == wanted, key)

    def integer(self, key: str, least: int, most: int = 1 << 62) -> int:
        """An integer within bounds."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise self._error(f"{key} is no integer")
        self.require(bool(least <= value <= most), key)
        return int(value)

    def array(
        self, key: str, dtype: Any, shape: tuple[int | None, ...], *, most: int | None = None
    ) -> npt.NDArray[Any]:
        """A finite array of this dtype and shape (None: any length, up to ``most``)."""
        value = self.value(key)
        if not isinstance(value, np.ndarray) or value.dtype != dtype:
            raise self._error(f"{key} is no array of {np.dtype(dtype)}")
        fits = value.ndim == len(shape) and all(
            n == wanted or (wanted is None and (most is None or n <= most))
            for n, wanted in zip(value.shape, shape, strict=False)
        )
        self.require(fits and bool(np.isfinite(value).all()), key)
        return value

    def done(self) -> None:
        """Refuse keys that nobody asked for."""
        if unknown := sorted(str(key)[:40] for key in set(self._state) - self._seen):
            raise self._error(f"it has unknown keys: {', '.join(unknown)[:200]}")

    def _error(self, why: str) -> StreamError:
        return StreamError(
            f"This state cannot be loaded into {self._owner}: {why}.",
            fix="Use what state() gave for the same model, rate and options.",
        )
