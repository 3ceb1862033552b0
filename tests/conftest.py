"""What makes the tests quick: fewer clips than users get, each graph traced once, few pictures."""

import pytest

try:
    import kit

    from frami_edge import plots
except ImportError:  # the runtime stands alone
    kit = None


@pytest.fixture(scope="session", autouse=True)
def _quick():
    if kit:
        kit.few_clips()
        kit.trace_once()


@pytest.fixture(autouse=True)
def _quick_pictures(request, monkeypatch):
    """Drawing takes half of a small run; test_plots.py and runs of session fixtures draw."""
    if kit and request.path.name != "test_plots.py":
        for name in ("mel_grid", "curves", "diversity", "confusion", "accuracy_bars"):
            monkeypatch.setattr(plots, name, lambda path, *_, **__: path.write_bytes(b"\x89PNG"))
