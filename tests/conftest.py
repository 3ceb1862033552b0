"""What makes the tests quick: few clips, short timing, each student traced once, few pictures."""

import pytest

try:
    import kit
except ImportError:  # the runtime stands alone
    kit = None


@pytest.fixture(scope="session", autouse=True)
def _quick():
    if kit:
        kit.few_clips()
        kit.quick_exports()
        kit.trace_once()


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """In test_plots.py and in runs of session fixtures alone."""
    if kit and request.path.name != "test_plots.py":
        kit.no_pictures(monkeypatch.setattr)
