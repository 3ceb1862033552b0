"""Gates, verdicts, the recommendation, and the one latency measurement."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frami_edge_export.bench import BLOCKS, Ratio
from frami_edge_export.report import NO_SLOWER, Artifact, Gate, judge

PARITY = Gate.at_most("torch = ONNX fp32", 1e-7, 1e-5)


def agreement(value, artifact="int8.cpu"):
    return Gate.at_least(f"{artifact} agreement", value, 0.98, artifact)


GOOD = [PARITY, agreement(1.0)]


def streaming(name, size, both, **fields):
    speeds = {"speedup": both, "chunk_speedup": both} | fields
    return Artifact(name, f"s.{name}.onnx", "streaming", name[:4], size, **speeds)


def artifacts(speedup=1.6, chunk_speedup=1.3):
    return [
        streaming("fp32", 4000, 1.0),
        Artifact("model", "s.model.onnx", "classifier", "fp32", 4100, speedup=0.9),
        streaming("int8.cpu", 1000, speedup, chunk_speedup=chunk_speedup),
    ]


@given(st.floats(0.05, 4), st.floats(0.05, 4))
def test_slower_than_fp32_is_never_recommended(speedup, chunk_speedup):
    judged, recommended, reason = judge(artifacts(speedup, chunk_speedup), GOOD)
    slower = min(speedup, chunk_speedup) < NO_SLOWER
    assert (recommended == "s.fp32.onnx") == slower
    assert ("slower than fp32" in judged[2].verdict) == slower
    assert ("slower than fp32" in reason) == slower


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((1.02, 1.1), "recommended: 1.50x faster on 1 s of audio (1.40 to 1.60), 1.00x faster on"),
        ((0.97, 1.03), "as fast on a streaming chunk (0.97 to 1.03), 4.0x smaller"),
        ((0.8, 1.2), "as fast on a streaming chunk (0.80 to 1.20), 4.0x smaller"),
        ((0.9, 0.94), "not recommended: slower than fp32 on a streaming chunk (1.00x the time)"),
    ],
)
def test_a_difference_that_the_interval_does_not_show_decides_nothing(ends, said):
    found = artifacts(1.5, 1.0)
    found[2] = replace(found[2], speedup_95=(1.4, 1.6), chunk_speedup_95=ends)
    judged, recommended, _ = judge(found, GOOD)
    assert said in judged[2].verdict
    assert recommended == f"s.{'fp32' if ends[1] < NO_SLOWER else 'int8.cpu'}.onnx"


@pytest.mark.parametrize("blocks", [BLOCKS, 2 * BLOCKS])
def test_an_interval_holds_the_true_ratio(blocks):
    """Also where another program makes every fifth block three times as slow."""
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 0.03, (4000, blocks)) * rng.choice([1, 1, 1, 1, 3], (4000, blocks))
    found = [Ratio.of(factors) for factors in noise / np.median(noise)]
    assert 0.95 < np.mean([r.interval[0] <= 1 <= r.interval[1] for r in found]) < 0.98
    assert all(r.interval[0] <= r.factor <= r.interval[1] for r in found)


@pytest.mark.parametrize(
    ("target", "gate", "reason"),
    [
        ("arm", 1.0, "no arm CPU has timed int8.cpu yet, which passed its gates and is 4.0x"),
        ("arm", 0.5, "fp32 is the only streaming file that passed its gates"),
        ("jetson-gpu", 1.0, "build the engines on the Jetson"),
    ],
)
def test_no_time_of_another_cpu_recommends_a_file(target, gate, reason):
    judged, recommended, why = judge(artifacts(3.0, 3.0), [PARITY, agreement(gate)], target)
    assert recommended == "s.fp32.onnx"
    assert reason in why
    assert ("not timed on" if gate == 1 else "agreement is 0.5") in judged[2].verdict


def rivals(trt, portable, lint="clean"):
    tensorrt = streaming("int8.trt", 900, trt, purpose="TensorRT", lint=lint)
    return [*artifacts(), tensorrt, streaming("int8.portable", 950, portable)]


SLOW_TRT = (
    "for TensorRT; on this CPU not recommended: slower than fp32 on 1 s of audio (2.50x the time) "
    "and on a streaming chunk (2.50x the time)"
)


@pytest.mark.parametrize(
    ("found", "gates", "best", "reason", "verdicts"),
    [
        (artifacts(), GOOD, "int8.cpu", "4.0x smaller",
         {0: "the reference", 2: "recommended: 1.60x faster on 1 s of audio, 1.30x faster on"}),
        (artifacts(), [PARITY, agreement(0.9)], "fp32", "int8.cpu agreement is 0.9",
         {2: "not recommended: int8.cpu agreement is 0.9, below its limit 0.98"}),
        (rivals(0.4, 0.9), [*GOOD, agreement(0.5, "int8.trt")], "int8.cpu", "",
         {3: "for TensorRT; on this CPU not recommended: int8.trt agreement is 0.5,",
          4: "not recommended: slower"}),
        (rivals(0.4, 2.0), GOOD, "int8.portable", "int8.portable passed its gates",
         {2: "good, but int8.portable is faster: 1.60x", 3: SLOW_TRT}),
        (rivals(3.0, 0.9), GOOD, "int8.trt", "", {3: "recommended: 3.00x faster"}),
        (rivals(0.4, 0.9, "2 findings"), GOOD, "int8.cpu", "",
         {3: "not for TensorRT: 2 findings of the lint; on this CPU"}),
        (artifacts(), [Gate.at_most("torch = ONNX fp32", 1.0, 1e-5), GOOD[1]], "",
         "Nothing is recommended: torch = ONNX fp32 is 1, above its limit",
         {0: "not recommended", 1: "not recommended", 2: "not recommended"}),
    ],
)  # fmt: skip
def test_the_fastest_file_that_passes_its_own_gates_is_recommended(
    found, gates, best, reason, verdicts
):
    judged, recommended, why = judge(found, gates)
    assert recommended == (best and f"s.{best}.onnx")
    assert reason in why
    for index, verdict in verdicts.items():
        assert judged[index].verdict.startswith(verdict), judged[index].verdict
