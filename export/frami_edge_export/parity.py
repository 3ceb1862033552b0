"""Do two models answer alike? torch, ONNX graphs and the runtime, over many lengths.

torch is imported by the functions that need it: a device compares engines without it.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, D = 2C, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from frami_edge_export.errors import ExportError, ParityError
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import HEAD_OUTPUT, TRUNK_INPUT, TRUNK_OUTPUT
from frami_edge_runtime.pooling import mean_std

if TYPE_CHECKING:
    import onnx
    from torch import nn

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]

BATCH: Final = 32
"""Mels per run: bounds memory."""
LENGTHS: Final = 12
LONGEST_S: Final = 30.0


def cpu_session(model: onnx.ModelProto | bytes | str, *, exact: bool = False) -> Any:
    """A single-threaded ONNX Runtime session, as a small device runs the model.

    Args:
        model: A graph, its bytes, or the path of a file.
        exact: Compute Q/DQ graphs in float, as the graph states, and not in the integer kernels of
            this CPU, whose sums saturate on x86 without VNNI.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    if exact:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    source = model if isinstance(model, (bytes, str)) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Head:
    """Statistics pooling and the affine head, in float64."""

    weight: Array64
    """(K, D)."""
    bias: Array64
    """(K,)."""
    eps: float

    def __call__(self, frames_BCT: npt.NDArray[np.floating]) -> Array64:
        """Frames (B, C, T') to logits (B, K)."""
        logits: Array64 = mean_std(frames_BCT, self.eps) @ self.weight.T + self.bias
        return logits


def with_context(mels_B1MT: Array, context: tuple[int, int]) -> Array:
    """Add mel frames of 0, the training mean, before the start and after the end of every clip."""
    return np.pad(mels_B1MT, ((0, 0), (0, 0), (0, 0), tuple(context)))


def run_trunk(session: Any, mels_B1MT: Array) -> Array:
    """Frames (B, C, T') of many mels, `BATCH` at a time."""
    parts = [
        session.run([TRUNK_OUTPUT], {TRUNK_INPUT: mels_B1MT[i : i + BATCH]})[0]
        for i in range(0, len(mels_B1MT), BATCH)
    ]
    return np.concatenate(parts)


def sqnr_db(reference: npt.NDArray[np.floating], found: npt.NDArray[np.floating]) -> float | None:
    """Signal to quantisation noise in dB: 10 log10(Σ ref² / Σ (ref - found)²); None if equal."""
    reference = reference.astype(np.float64)
    noise = float(((reference - found) ** 2).sum())
    signal = float((reference**2).sum())
    if noise == 0.0:
        return None
    return float(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise))


@dataclass(frozen=True)
class Comparison:
    """Logits of one model against a reference's, on the same mels."""

    agreement: float
    max_abs_difference: float
    sqnr_db: float | None

    @classmethod
    def of(cls, reference_BK: Array64, found_BK: Array64) -> Comparison:
        """Compare (B, K) with (B, K)."""
        same = reference_BK.argmax(axis=1) == found_BK.argmax(axis=1)
        difference = float(np.abs(reference_BK - found_BK).max())
        return cls(float(same.mean()), difference, sqnr_db(reference_BK, found_BK))


@dataclass(frozen=True)
class Parity:
    """The largest differences over all inputs; true where they are within the tolerance."""

    lengths: tuple[int, ...]
    """Mel frames, or samples, of each input."""
    max_abs_difference: float
    """Largest |expected - found|."""
    scaled_difference: float
    """The same over max(1, largest |expected|) of each input: float32 rounds relative to size."""
    agreement: float
    """Share of inputs whose strongest class, or channel in every frame, is the expected one."""
    tolerance: float

    def __bool__(self) -> bool:
        """Within the tolerance."""
        return self.scaled_difference <= self.tolerance


def parity_lengths(receptive_field: int, stride: int, mel: MelSpec) -> tuple[int, ...]:
    """Mel frames T of the clips to compare: 1, around stride and receptive field, up to 30 s."""
    field = receptive_field
    longest = max(mel.frames(int(LONGEST_S * mel.sample_rate)), field + LENGTHS * stride)
    near = [t for t in (1, 2, stride, stride + 1, field - 1, field, field + stride) if t > 0]
    far = np.geomspace(field + stride + 1, longest, LENGTHS)
    return tuple(sorted({*near, *(int(t) for t in far), longest}))


def parity_inputs(lengths: Sequence[int], mel: MelSpec, seed: int) -> list[Array]:
    """(1, 1, M, T) inputs of each length, uniform between the front end's floor and ceiling."""
    rng = np.random.default_rng(seed)
    low, high = mel.floor[None, None, :, None], mel.ceiling[None, None, :, None]
    shapes = [(1, 1, mel.n_mels, t) for t in lengths]
    return [
        (low + (high - low) * rng.random(s, dtype=np.float32)).astype(np.float32) for s in shapes
    ]


def compare_outputs(
    expected: Callable[[Array], npt.NDArray[np.floating]],
    found: Callable[[Array], npt.NDArray[np.floating]],
    inputs: Sequence[Array],
    tolerance: float,
    label: str,
) -> Parity:
    """Compare two models input by input.

    Args:
        expected: The reference.
        found: The model under test.
        inputs: Inputs of any lengths; the last axis is time.
        tolerance: Limit of `Parity.scaled_difference`.
        label: Names the model in errors.

    Raises:
        ParityError: Shapes differ, or a value is not finite.
    """
    worst, scaled, same = 0.0, 0.0, []
    for x in inputs:
        a, b = expected(x), found(x)
        if a.shape != b.shape:
            raise ParityError(
                f"{label}: an input of length {x.shape[-1]} gives {b.shape}, not {a.shape}.",
                fix="The trunk must not depend on a fixed length; export it again.",
            )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ParityError(
                f"{label}: values are not finite at length {x.shape[-1]}.",
                fix="Distil the student again: its weights overflow on inputs of its front end.",
            )
        difference = float(np.abs(a - b).max())
        worst = max(worst, difference)
        scaled = max(scaled, difference / max(1.0, float(np.abs(a).max())))
        same.append(bool((a.argmax(axis=1) == b.argmax(axis=1)).all()))
    lengths = tuple(int(x.shape[-1]) for x in inputs)
    return Parity(lengths, worst, scaled, float(np.mean(same)), tolerance)


def check_parity(
    module: nn.Module,
    model: onnx.ModelProto | str,
    inputs: Sequence[Array],
    *,
    names: tuple[str, str],
    tolerance: float,
    label: str,
) -> Parity:
    """Compare a torch module with its ONNX graph: names, then shapes, then values.

    Args:
        module: mel -> output, in evaluation mode on the CPU.
        model: The graph, or the path of its file.
        inputs: (B, 1, M, T) float32 each, of several lengths.
        names: Names of the graph's input and output.
        tolerance: Limit of `Parity.scaled_difference`.
        label: Names the graph in errors.

    Raises:
        ParityError: Names or shapes differ, or a value is not finite.
    """
    session = cpu_session(model)
    check_names(session, names, label)
    return compare_outputs(
        in_torch(module), lambda x: session.run(None, {names[0]: x})[0], inputs, tolerance, label
    )


def in_torch(module: nn.Module) -> Callable[[Array], npt.NDArray[np.floating]]:
    """The module as a function of NumPy arrays."""
    import torch

    def call(x: Array) -> npt.NDArray[np.floating]:
        with torch.inference_mode():
            result: npt.NDArray[np.floating] = module(torch.from_numpy(x)).numpy()
        return result

    return call


def check_names(session: Any, names: tuple[str, str], label: str) -> None:
    """Check the only input and the only output of a session.

    Raises:
        ParityError: They have other names.
    """
    found = ([i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()])
    if found != ([names[0]], [names[1]]):
        raise ParityError(
            f"{label}: must map {names[0]} to {names[1]}, but maps {found[0]} to {found[1]}.",
            fix="Export the student again.",
        )


def check_fp32(
    trunk: nn.Module,
    classifier: nn.Module,
    trunk_graph: onnx.ModelProto,
    classifier_graph: onnx.ModelProto,
    head: Head,
    inputs: Sequence[Array],
    context: tuple[int, int],
    tolerance: float,
) -> dict[str, Parity]:
    """Compare both fp32 graphs with torch: frames, classifier, and trunk and head on a device.

    ``inputs`` are (1, 1, M, T) mels without their context.

    Raises:
        ParityError: Names or shapes differ, or a value is not finite.
    """
    padded = [with_context(x, context) for x in inputs]
    frames_names, logits_names = (TRUNK_INPUT, TRUNK_OUTPUT), (TRUNK_INPUT, HEAD_OUTPUT)
    session = cpu_session(trunk_graph)
    return {
        "frames": check_parity(
            trunk, trunk_graph, padded, names=frames_names, tolerance=tolerance, label="trunk"
        ),
        "classifier": check_parity(
            classifier,
            classifier_graph,
            inputs,
            names=logits_names,
            tolerance=tolerance,
            label="classifier",
        ),
        "trunk and head": compare_outputs(
            in_torch(classifier),
            lambda x: head(run_trunk(session, with_context(x, context))),
            inputs,
            tolerance,
            "trunk and head",
        ),
    }


_FRAMES: Final = 9
_STREAM_TOLERANCE: Final = 1e-4
"""Per unit of the largest value: torch may sum in another order for other lengths."""


def check_streamable(
    trunk: nn.Module, field: int, stride: int, channels: int, mel: MelSpec, seed: int
) -> None:
    """Compare the trunk on a clip with the trunk on each receptive field of it.

    Args:
        trunk: The torch trunk, in evaluation mode on the CPU.
        field: Declared receptive field, mel frames.
        stride: Declared stride, mel frames.
        channels: Declared channels.
        mel: The front end.
        seed: Draws the clip.

    Raises:
        ExportError: Receptive field, stride or channels are not as declared, or the trunk pads
            along time or mixes the whole clip: a stream would get other answers.
    """
    clip = parity_inputs([field + (_FRAMES - 1) * stride], mel, seed)[0]
    run = in_torch(trunk)
    try:
        offline_BCT = run(clip)
        windows = [run(clip[..., i * stride : i * stride + field]) for i in range(_FRAMES)]
    except RuntimeError as error:
        raise ExportError(
            f"The trunk cannot compute {mel.n_mels} mel bands of {field} frames: {error}.",
            fix="Check n_mels of the MelSpec and the student's receptive_field.",
        ) from None
    expected = (1, channels, _FRAMES)
    if offline_BCT.shape != expected or windows[0].shape[-1] != 1:
        raise ExportError(
            f"{clip.shape[-1]} mel frames give {offline_BCT.shape}, not {expected}: "
            f"receptive_field {field}, stride {stride} or channels {channels} is wrong, or the "
            "trunk pads along time.",
            fix="Use convolutions without padding along time and declare their true field.",
        )
    difference = float(np.abs(offline_BCT - np.concatenate(windows, axis=2)).max())
    if not difference <= _STREAM_TOLERANCE * max(1.0, float(np.abs(offline_BCT).max())):
        raise ExportError(
            f"A frame depends on more than its {field} mel frames: streaming would differ from "
            f"offline by {difference:.2g}.",
            fix="Remove what mixes time before pooling: attention, squeeze-excite, instance norm.",
        )
