"""The build, against a fake TensorRT: order of calls, shapes, flags, retries and failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import FakeTensorRT

from frami_edge_export.errors import ExportError
from frami_edge_export.tensorrt import (
    BuildError,
    EngineOptions,
    ParseError,
    Profile,
    TensorRTUnavailable,
    build_engine,
    load_tensorrt,
)

ONNX = b"not looked into"
PROFILE = Profile((1, 1, 32, 11), (1, 1, 32, 110), (8, 1, 32, 137))


def build(trt: FakeTensorRT, cache: Path | None = None, **options: Any) -> Any:
    return build_engine(
        ONNX, PROFILE, EngineOptions(**options), trt=trt, name="s.onnx", timing_cache=cache
    )


@pytest.mark.parametrize("version", ["10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106"])
def test_one_code_path_for_every_release(version: str) -> None:
    trt = FakeTensorRT(version)
    built = build(trt)
    order = [call[0] for call in trt.calls]
    wanted = ["builder", "network", "parse", "workspace", "profile", "cache", "build"]
    assert order == wanted
    assert trt.said("network") == [(1 << 1,)]
    assert trt.said("profile") == [({"mel": (PROFILE.low, PROFILE.usual, PROFILE.high)},)]
    assert trt.said("workspace") == [("WORKSPACE", 256 << 20)]
    assert trt.configs[0].profiling_verbosity == "DETAILED"
    assert trt.configs[0].flags == set()  # strong typing: no precision flag, and no TF32
    assert built.plan == trt.plan(ONNX)
    assert (built.typing, built.cache, built.notes) == ("strong", "new", ())


def test_options_reach_the_config() -> None:
    trt = FakeTensorRT()
    build(trt, tf32=True, compat="version", workspace_mb=64, detailed=False)
    config = trt.configs[0]
    assert config.flags == {"TF32", "VERSION_COMPATIBLE"}
    assert config.profiling_verbosity == "NAMES"
    assert trt.said("workspace") == [("WORKSPACE", 64 << 20)]
    build(trt, compat="ampere+")
    assert trt.configs[1].hardware_compatibility_level == "AMPERE_PLUS"


def test_auto_retries_weak_before_10_12_and_says_so() -> None:
    trt = FakeTensorRT("10.3.0")
    trt.builds["strong"] = False
    built = build(trt)
    assert [call[0] for call in trt.said("build")] == ["strong", "weak"]
    assert trt.configs[1].flags == {"FP16", "INT8"}
    assert trt.said("network") == [(2,), (0,)]
    assert built.typing == "weak"
    assert "Strong typing failed" in built.notes[0]
    assert "conv_3" in built.notes[0]


@pytest.mark.parametrize(
    ("version", "typing"), [("10.13.3.9", "auto"), ("11.4.0.106", "auto"), ("10.3.0", "strong")]
)
def test_no_weak_retry_where_strong_typing_is_complete_or_asked_for(
    version: str, typing: str
) -> None:
    trt = FakeTensorRT(version)
    trt.builds["strong"] = False
    with pytest.raises(BuildError, match=r"Could not find any implementation for node conv_3"):
        build(trt, typing=typing)
    assert len(trt.said("build")) == 1


def test_weak_typing_is_refused_by_tensorrt_11() -> None:
    with pytest.raises(BuildError, match="no weak typing"):
        build(FakeTensorRT("11.4.0.106"), typing="weak")
    trt = FakeTensorRT("10.3.0")
    assert build(trt, typing="weak").typing == "weak"


def test_parse_errors_name_the_nodes() -> None:
    trt = FakeTensorRT()
    trt.parse_errors = [("conv_0", "Conv", "UINT8 is not supported")] + [("", "", "more")] * 9
    with pytest.raises(ParseError) as caught:
        build(trt)
    text = caught.value.message
    assert "cannot read s.onnx: conv_0 (Conv): UINT8 is not supported" in text
    assert "the graph (no operator): more" in text
    assert text.endswith("and 2 more")
    assert not trt.said("build")


def test_no_driver_is_a_sentence() -> None:
    trt = FakeTensorRT()
    trt.no_driver = True
    with pytest.raises(TensorRTUnavailable, match="no usable NVIDIA driver") as caught:
        build(trt)
    assert "python -m frami_edge_export.tensorrt" in caught.value.fix


def test_only_a_trunk_is_built() -> None:
    trt = FakeTensorRT()
    trt.ports = [("mel", "DataType.FLOAT"), ("logits", "DataType.FLOAT")]
    with pytest.raises(BuildError, match="it is no trunk"):
        build(trt)


def test_a_refused_profile_is_a_sentence() -> None:
    trt = FakeTensorRT()
    trt.refuses_profile = True
    with pytest.raises(BuildError, match="refused the profile"):
        build(trt)


def test_timing_cache_is_written_reused_and_replaced_when_rejected(tmp_path: Path) -> None:
    trt, path = FakeTensorRT(), tmp_path / "new" / "timing.cache"
    assert build(trt, path).cache == "new"
    assert path.read_bytes() == b"+times"
    assert build(trt, path).cache == "reused"
    assert trt.said("cache")[1] == (b"+times", False, True)
    assert path.read_bytes() == b"+times+times"
    trt.rejects_cache = True
    assert build(trt, path).cache == "rejected"
    assert trt.said("cache")[2:] == [(b"+times+times", False, False), (b"", False, True)]
    assert path.read_bytes() == b"+times"
    assert [p.name for p in path.parent.iterdir()] == ["timing.cache"]


def test_a_failed_build_leaves_the_timing_cache_alone(tmp_path: Path) -> None:
    trt, path = FakeTensorRT(), tmp_path / "timing.cache"
    path.write_bytes(b"old")
    trt.builds["strong"] = False
    with pytest.raises(BuildError):
        build(trt, path)
    assert path.read_bytes() == b"old"


def test_an_unreadable_timing_cache_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "timing.cache").mkdir()
    assert build(FakeTensorRT(), tmp_path / "timing.cache").plan


def test_tensorrt_absent_broken_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(TensorRTUnavailable, match="not installed") as caught:
        load_tensorrt()
    assert "--system-site-packages" in caught.value.fix
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT("8.6.2"))
    with pytest.raises(TensorRTUnavailable, match=r"8\.6\.2 is too old"):
        load_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT("10.3.0"))
    assert load_tensorrt().__version__ == "10.3.0"


@pytest.mark.parametrize(
    "wrong",
    [
        {"typing": "implicit"},
        {"compat": "all"},
        {"precisions": ("bf16",)},
        {"precisions": ()},
        {"batch": (2, 4, 8)},
        {"batch": (1, 8, 4)},
        {"workspace_mb": 0},
        {"bench_s": 0.0},
        {"min_agreement": 1.5},
    ],
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ExportError):
        EngineOptions(**wrong)
