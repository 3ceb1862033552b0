"""Fewer clips for verdicts and thresholds than users get: the same code in a tenth of the time."""

import contextlib

import pytest


@pytest.fixture(scope="session", autouse=True)
def _few_clips():
    with contextlib.suppress(ImportError):  # the runtime may stand alone
        from kit import few_clips

        few_clips()
