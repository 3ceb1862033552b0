"""What is read from inspectors, machines and command lines."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from export_kit import MEL

from frami_edge_export.errors import ExportError
from frami_edge_export.parity import Comparison
from frami_edge_export.tensorrt import (
    LayerCounts,
    Seconds,
    compare,
    count_layers,
    device_facts,
    jetpack,
    plausible_mels,
    profile_for,
    within,
)
from frami_edge_runtime.modelfile import ModelInfo

INFO = ModelInfo(mel=MEL, labels=("a", "b"), receptive_field=11, stride=2, channels=4)

TEN = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "mel", "Format/Datatype": "Row major linear FP32"}],
        },
        {
            "Name": "0.weight + relu",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": [{"Name": "a", "Format/Datatype": "Channel major FP16 format"}],
            "Weights": {"Type": "Half", "Count": 216},
        },
        {
            "Name": "3.weight",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": [{"Name": "b", "Format/Datatype": "Thirty-two wide vectorized Int8 format"}],
            "Outputs": [{"Name": "c", "Format/Datatype": "Row major linear FP32"}],
        },
        {
            "Name": "__myl_Quan",
            "LayerType": "kgen",
            "Inputs": [{"Name": "c", "Format/Datatype": "Float"}],
        },
        {
            "Name": "shape",
            "LayerType": "ShapeHostToDevice",
            "Inputs": [{"Name": "s", "Format/Datatype": "Row major linear INT64"}],
        },
    ],
    "Bindings": ["mel", "frames"],
}
ELEVEN = {
    "Layers": [
        {
            "Name": "conv",
            "LayerType": "Convolution",
            "Inputs": [{"Name": "a", "Format": "Row major linear", "DataType": "Int8"}],
        },
        {
            "Name": "mean",
            "LayerType": "Reduce",
            "Inputs": [{"Name": "a", "Format": "Row major linear", "DataType": "FP32"}],
        },
    ],
    "I/O Tensors": ["mel", "frames"],
}


def test_layers_of_tensorrt_10_and_11() -> None:
    assert count_layers(json.dumps(TEN)) == LayerCounts(
        total=5,
        int8=1,
        fp16=1,
        fp32=1,
        reformat=1,
        other=1,
        convolutions=2,
        int8_convolutions=1,
    )
    assert count_layers(json.dumps(ELEVEN)) == LayerCounts(
        total=2, int8=1, fp32=1, convolutions=1, int8_convolutions=1
    )


def test_engines_without_detail_count_names_only() -> None:
    text = json.dumps({"Layers": ["conv_0", "Reformatting CopyNode for x"], "Bindings": []})
    assert count_layers(text) == LayerCounts(total=2, other=1, reformat=1)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"Layers": 3}', '{"Layers": [{}]}'])
def test_what_is_no_inspection_does_not_fail(text: str) -> None:
    assert count_layers(text).int8 == 0


def test_jetpack_from_the_l4t_release() -> None:
    line = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
    assert jetpack(line) == "6 (L4T 36.4.3)"
    assert jetpack("# R39 (release), REVISION: 2.0, GCID: 1") == "7 (L4T 39.2.0)"
    assert jetpack("# R99 (release), REVISION: 1.0, GCID: 1") == "unknown (L4T 99.1.0)"
    assert jetpack("") is None
    assert jetpack("Ubuntu 22.04") is None


def _facts(tmp_path: Path, smi: str, sm: str = "", **files: str) -> Any:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return device_facts(
        SimpleNamespace(__version__="10.3.0"),
        sm,
        tegra_release=tmp_path / "tegra",
        board_model=tmp_path / "board",
        driver_version=tmp_path / "driver",
        run=lambda command: smi,
    )


def test_facts_of_a_jetson(tmp_path: Path) -> None:
    facts = _facts(
        tmp_path,
        "Orin (nvgpu), [N/A], [N/A]\n",
        "8.7",
        tegra="# R36 (release), REVISION: 4.3, GCID: 1",
        board="NVIDIA Jetson Orin Nano Developer Kit\0",
        driver="NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build",
    )
    assert (facts.gpu, facts.driver) == ("NVIDIA Jetson Orin Nano Developer Kit", "540.4.0")
    assert (facts.sm, facts.jetpack, facts.tensorrt) == ("8.7", "6 (L4T 36.4.3)", "10.3.0")


def test_facts_of_a_pc(tmp_path: Path) -> None:
    facts = _facts(tmp_path, "NVIDIA GeForce RTX 4090, 560.35.03, 8.9\nsecond GPU, 1, 7.5\n")
    assert (facts.gpu, facts.driver) == ("NVIDIA GeForce RTX 4090", "560.35.03")
    assert (facts.sm, facts.jetpack) == ("8.9", None)


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    facts = _facts(tmp_path, "")
    assert (facts.gpu, facts.driver, facts.sm, facts.jetpack) == ("", "", "", None)


def test_seconds_become_frames() -> None:
    profile = profile_for(INFO, Seconds.parse("0.1:1:10"), (1, 2, 16))
    # 10 s at 8 kHz, hop 80, no centring: 997 frames, and a context of 10.
    assert profile.high == (16, 1, 32, 1007)
    assert profile.usual == (2, 1, 32, MEL.frames(8000) + 10)
    assert profile.low == (1, 1, 32, 11)  # one trunk frame: streams end with such runs


def test_default_profile_is_what_streams_ask_for() -> None:
    profile = profile_for(INFO)
    assert (profile.low[3], profile.high[3]) == (11, 11 + 63 * 2)
    assert profile.low[3] <= profile.usual[3] <= profile.high[3]


def test_a_short_profile_still_holds_two_frames() -> None:
    profile = profile_for(INFO, Seconds.parse("0.01"))
    assert profile.high[3] == 13
    assert profile.low[3] == 11


@pytest.mark.parametrize(
    "text", ["", "1:2", "a:b:c", "2:1:3", "-1:1:2", "0:0:0", "1:nan:2", "0:1:1e9"]
)
def test_seconds_that_make_no_sense(text: str) -> None:
    with pytest.raises(ExportError, match="--seconds"):
        Seconds.parse(text)


def test_plausible_mels_stay_in_the_front_ends_range() -> None:
    mels = plausible_mels(MEL, 6)
    assert mels.shape == (6, 1, 32, MEL.frames(8000))
    assert (mels >= MEL.floor[:, None] - 1e-5).all()
    assert (mels <= MEL.ceiling[:, None] + 1e-5).all()
    span = float((MEL.ceiling - MEL.floor).mean())
    assert mels.std() > 0.1 * span  # they use it, too
    assert (mels[:, :, :, 1:] - mels[:, :, :, :-1]).std() < mels.std()
    assert (plausible_mels(MEL, 6) == mels).all()


def test_parity_is_judged_by_what_the_precision_can_hold() -> None:
    near = Comparison(1.0, 0.05, 30.0)
    assert not within("fp32", near, 1.0, 0.95)
    assert within("fp16", near, 10.0, 0.95)
    assert not within("fp16", near, 1.0, 0.95)
    assert within("int8", near, 1.0, 0.95)
    assert not within("int8", Comparison(1.0, 0.5, 12.0), 1.0, 0.95)
    assert not within("int8", Comparison(0.9, 0.05, 30.0), 1.0, 0.95)
    for precision in ("fp32", "fp16", "int8"):
        assert within(precision, Comparison(1.0, 0.0, None), 1.0, 0.95)
        assert not within(precision, compare(np.ones((2, 3)), np.full((2, 3), np.nan)), 1.0, 0.0)
