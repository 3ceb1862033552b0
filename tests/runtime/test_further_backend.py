"""A backend is one file: laid beside the others, it is opened by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import frami_edge_runtime.backends as backends
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import BackendError

FILE = """
from frami_edge_runtime.backends.ort import OrtModel

class Doubled(OrtModel):
    def logits(self, pooled_BD):
        return 2 * super().logits(pooled_BD)

def open_model(source, *, threads):
    model = Doubled(source, kind="cpu", threads=threads)
    model.kind = "doubled"
    return model
"""


def test_one_file_is_a_backend(
    model_path: Path, clip: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "doubled_for_a_test.py").write_text(FILE)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    clf = Classifier(model_path, backend="doubled_for_a_test")
    assert (clf.backend, clf.backend_reason) == ("doubled", "it was asked for")
    expected = 2 * Classifier(model_path).classify(clip).logits
    np.testing.assert_allclose(clf.classify(clip).logits, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["checks", "source", "no_such", "../x", "os", "", "a.b"])
def test_what_is_no_backend_is_unknown(model_path: Path, name: str) -> None:
    with pytest.raises(BackendError, match="is unknown"):
        Classifier(model_path, backend=name)
