"""SOURCE_DATE_EPOCH takes the time out of the files: the same student gives the same bytes."""

from __future__ import annotations

import pytest

from frami_edge_export.graph import _now


def test_the_epoch_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert _now().isoformat() == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("text", ["", "soon", "-1", "9" * 30])
def test_what_is_no_epoch_is_now(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    assert _now().year > 2025
