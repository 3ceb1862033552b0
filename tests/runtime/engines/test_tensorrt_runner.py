"""TensorRT engines on a fake GPU: the answers of their ONNX files, and nothing leaked."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeTensorRT, Gpu, Shape, save_engine

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import EngineError


def test_an_engine_gives_the_scores_of_its_onnx_file(
    engine: Path, classifier: Classifier, clip: np.ndarray, gpu: Gpu, trt: FakeTensorRT
) -> None:
    found = Classifier(engine)
    assert (found.backend, found.backend_reason) == ("tensorrt", "the model is a TensorRT engine")
    assert found.labels == classifier.labels
    for x in (clip, clip[:1000], clip[:50], clip[:20_000]):
        expected = classifier.classify(x)
        assert np.abs(found.classify(x).logits - expected.logits).max() < 1e-5
        assert found.classify(x).label == expected.label
    for options in ({"window_s": 0.5}, {"forget_s": 0.3, "hop_s": 0.1}):
        streams = [c.stream(**options) for c in (found, classifier)]  # type: ignore[arg-type]
        for start in range(0, len(clip), 700):
            mine, other = (s.push(clip[start : start + 700]) for s in streams)
            assert [r.t1 for r in mine] == [r.t1 for r in other]
            for a, b in zip(mine, other, strict=True):
                assert np.abs(a.logits - b.logits).max() < 1e-5
    assert gpu.calls("cudaMalloc") == gpu.calls("cudaHostAlloc") == 2, "allocated once, for ever"
    assert gpu.calls("cudaStreamCreate") == 1
    assert len(trt.contexts) == 1


def test_results_stay_and_shapes_are_set_only_when_they_change(
    engine: Path, trt: FakeTensorRT
) -> None:
    model = Classifier(engine)._model
    rng = np.random.default_rng(0)
    mel = rng.standard_normal((4, 1, 16, 30)).astype(np.float32)
    before = trt.shapes_set
    first = model.frames(mel)
    kept = first.copy()
    model.frames(mel[::-1])  # not contiguous
    assert trt.shapes_set == before + 1
    assert np.array_equal(first, kept)
    assert np.array_equal(model.frames(mel[::-1]), kept[::-1])
    assert (model.max_batch, model.max_mel_frames) == (4, 135)


def test_a_short_profile_bounds_the_runs(
    trt: FakeTensorRT,
    tiny: Any,
    shapes: list[Shape],
    tmp_path: Path,
    classifier: Classifier,
    clip: np.ndarray,
) -> None:
    field = tiny.info.receptive_field
    for frames in (field, field + 1, field + 2, field + 9):
        shapes[1:] = [(1, 1, 16, field), (1, 1, 16, frames)]
        found = Classifier(save_engine(tmp_path, tiny, shapes))
        x = clip[:5000]
        assert np.abs(found.classify(x).logits - classifier.classify(x).logits).max() < 1e-5


def test_threads_share_one_engine(
    engine: Path, trt: FakeTensorRT, classifier: Classifier, clip: np.ndarray
) -> None:
    found = Classifier(engine)
    trt.run_s = 0.002  # long enough for another thread to come between
    parts = [clip[i * 3000 : (i + 1) * 3000 + 500 * i] for i in range(6)]
    answers: dict[int, np.ndarray] = {}
    workers = [
        threading.Thread(target=lambda i=i: answers.update({i: found.classify(parts[i]).logits}))
        for i in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, part in enumerate(parts):
        assert np.abs(answers[i] - classifier.classify(part).logits).max() < 1e-5


def test_a_group_fills_the_profile_and_no_more(
    engine: Path, trt: FakeTensorRT, classifier: Classifier, clip: np.ndarray, gpu: Gpu
) -> None:
    found, batches = Classifier(engine), set[int]()
    model, run = found._model, found._model.frames

    def watched(mel_BMT: np.ndarray) -> np.ndarray:
        batches.add(len(mel_BMT))
        return run(mel_BMT)

    model.frames = watched  # type: ignore[method-assign]
    group = found.streams(6, window_s=0.5)
    parts = [clip[1000 * i : 1000 * i + 20_000] for i in range(6)]
    results = group.push(parts)
    for part, mine in zip(parts, results, strict=True):
        alone = classifier.stream(window_s=0.5).push(part)
        assert [r.t1 for r in mine] == [r.t1 for r in alone]
        for a, b in zip(mine, alone, strict=True):
            assert np.abs(a.logits - b.logits).max() < 1e-5
    assert batches == {2, 4}
    assert gpu.calls("cudaMalloc") == 2


def test_closing_frees_the_gpu(engine: Path, gpu: Gpu, clip: np.ndarray) -> None:
    model = Classifier(engine)
    assert gpu.live() == 5  # two buffers on each side, one stream
    model.close()
    model.close()
    assert gpu.live() == 0
    with pytest.raises(EngineError, match="was closed"):
        model.classify(clip)
    with Classifier(engine) as again:
        again.classify(clip)
    assert gpu.live() == 0
