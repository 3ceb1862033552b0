"""torch = ONNX fp32, over many lengths and all forms of the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import nn

from frami_edge_export.errors import ExportError, ParityError
from frami_edge_export.graph import ExportableStudent, StudentFacts, frozen_trunk, whole_classifier
from frami_edge_export.options import ExportOptions
from frami_edge_export.report import Artifact, Gate
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import HEAD_OUTPUT, TRUNK_INPUT, TRUNK_OUTPUT
from frami_edge_runtime.pooling import mean_std

# --- ONNX Runtime sessions as a small device runs them: one thread, CPU

_ERRORS_ONLY = 3


def cpu_session(model: onnx.ModelProto | bytes | str) -> ort.InferenceSession:
    """A single-threaded CPU session.

    Args:
        model: A graph, its bytes, or the path of a file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


# --- Logits from a trunk graph, as the runtime computes them: float64 statistics, affine head
# Shape legend: B batch, C channels, T' trunk frames, D = 2C, K classes.

Array = npt.NDArray[np.float32]
Array64 = npt.NDArray[np.float64]

BATCH = 32
"""Mels per run: bounds memory."""


@dataclass(frozen=True)
class Head:
    """Pooling and the affine head, in float64."""

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
    """Mel frames of 0, the training mean, before the start and after the end of every clip."""
    return np.pad(mels_B1MT, ((0, 0), (0, 0), (0, 0), tuple(context)))


def run_trunk(session: ort.InferenceSession, mels_B1MT: Array) -> Array:
    """Frames (B, C, T') of many mels, a few at a time."""
    parts = [
        session.run([TRUNK_OUTPUT], {TRUNK_INPUT: mels_B1MT[i : i + BATCH]})[0]
        for i in range(0, len(mels_B1MT), BATCH)
    ]
    return np.concatenate(parts)


def sqnr_db(reference: npt.NDArray[np.floating], found: npt.NDArray[np.floating]) -> float | None:
    """Signal to quantisation noise in dB: 10 log10(Σ ref² / Σ (ref - found)²).

    None where the two are equal.
    """
    reference = reference.astype(np.float64)
    noise = float(((reference - found) ** 2).sum())
    signal = float((reference**2).sum())
    if noise == 0.0:
        return None
    return float(10 * np.log10(max(signal, np.finfo(np.float64).tiny) / noise))


@dataclass(frozen=True)
class Comparison:
    """Logits of one graph against a reference's, on the same mels."""

    agreement: float
    max_abs_difference: float
    sqnr_db: float | None

    @classmethod
    def of(cls, reference_BK: Array64, found_BK: Array64) -> Comparison:
        """Compare (B, K) with (B, K)."""
        same = reference_BK.argmax(axis=1) == found_BK.argmax(axis=1)
        return cls(
            float(same.mean()),
            float(np.abs(reference_BK - found_BK).max()),
            sqnr_db(reference_BK, found_BK),
        )


# --- torch = ONNX: names, then shapes, then values, over many lengths
# Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, K classes.

LENGTHS = 12
LONGEST_S = 30.0

ParityArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """The largest differences found; true where all lengths are within the tolerance."""

    lengths: tuple[int, ...]
    """Mel frames compared."""
    max_abs_difference: float
    """Largest |torch - ONNX|."""
    scaled_difference: float
    """The same over max(1, largest |torch|) of each length: float32 rounds relative to size."""
    agreement: float
    """Share of inputs whose strongest class is torch's; of frames, the strongest channel."""
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


def parity_inputs(lengths: Sequence[int], mel: MelSpec, seed: int) -> list[ParityArray]:
    """(1, 1, M, T) inputs for each length, uniform between the front end's floor and ceiling."""
    rng = np.random.default_rng(seed)
    low, high = mel.floor[None, None, :, None], mel.ceiling[None, None, :, None]
    shapes = [(1, 1, mel.n_mels, t) for t in lengths]
    return [
        (low + (high - low) * rng.random(s, dtype=np.float32)).astype(np.float32) for s in shapes
    ]


def check_parity(
    module: nn.Module,
    model: onnx.ModelProto | str,
    inputs: Sequence[ParityArray],
    *,
    names: tuple[str, str],
    tolerance: float,
    label: str,
) -> Parity:
    """Compare a torch module with its ONNX graph.

    Args:
        module: mel -> output, in evaluation mode on the CPU.
        model: The graph, or the file that holds it.
        inputs: (B, 1, M, T) float32 each, of several lengths.
        names: Of the graph's input and output.
        tolerance: Of `Parity.scaled_difference`.
        label: Names the graph in errors.

    Raises:
        ParityError: Names or shapes differ, or a value is not finite; other differences are the
            result.
    """
    session = cpu_session(model)
    _check_names(session, names, label)
    return _compare(
        module, lambda x: session.run([names[1]], {names[0]: x})[0], inputs, tolerance, label
    )


def check_streaming(
    classifier: nn.Module,
    trunk: onnx.ModelProto | str,
    head: Head,
    inputs: Sequence[ParityArray],
    tolerance: float,
    context: tuple[int, int],
) -> Parity:
    """Compare torch's logits with context, trunk, float64 pooling and head: what the device does.

    Arguments and errors as `check_parity`; the context is the student's.
    """
    session = cpu_session(trunk)
    _check_names(session, (TRUNK_INPUT, TRUNK_OUTPUT), "trunk")
    return _compare(
        classifier,
        lambda x: head(run_trunk(session, with_context(x, context))),
        inputs,
        tolerance,
        "trunk and head",
    )


def _compare(
    module: nn.Module,
    graph: Callable[[ParityArray], npt.NDArray[np.floating[Any]]],
    inputs: Sequence[ParityArray],
    tolerance: float,
    label: str,
) -> Parity:
    worst, scaled, same = 0.0, 0.0, []
    for x in inputs:
        with torch.inference_mode():
            expected = module(torch.from_numpy(x)).numpy()
        found = graph(x)
        if found.shape != expected.shape:
            raise ParityError(
                f"{label}: {x.shape[-1]} mel frames give {found.shape}, in torch {expected.shape}.",
                fix="The trunk must not depend on a fixed length; export it again.",
            )
        if not (np.isfinite(expected).all() and np.isfinite(found).all()):
            raise ParityError(
                f"{label}: values are not finite at {x.shape[-1]} mel frames.",
                fix="Distil the student again: its weights overflow on inputs of its front end.",
            )
        difference = float(np.abs(expected - found).max())
        worst = max(worst, difference)
        scaled = max(scaled, difference / max(1.0, float(np.abs(expected).max())))
        same.append(bool((expected.argmax(axis=1) == found.argmax(axis=1)).all()))
    lengths = tuple(int(x.shape[-1]) for x in inputs)
    return Parity(lengths, worst, scaled, float(np.mean(same)), tolerance)


def _check_names(session: ort.InferenceSession, names: tuple[str, str], label: str) -> None:
    found = ([i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()])
    if found != ([names[0]], [names[1]]):
        raise ParityError(
            f"{label}: must map {names[0]} to {names[1]}, but maps {found[0]} to {found[1]}.",
            fix="Export the student again.",
        )


# --- Is the trunk what it says it is? A frame may depend on its own receptive field only
# Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames.

_FRAMES = 9
_TOLERANCE = 1e-4
"""Per unit of the largest value: torch may sum in another order for other lengths."""


def check_streamable(student: ExportableStudent, mel: MelSpec, options: ExportOptions) -> None:
    """Compare the trunk on a clip with the trunk on each receptive field of it.

    Raises:
        ExportError: Receptive field, stride or channels are not as declared, or the trunk pads
            along time or mixes the whole clip: a stream would be answered otherwise.
    """
    field, stride = student.receptive_field, student.stride
    trunk = frozen_trunk(student)
    clip = torch.from_numpy(parity_inputs([field + (_FRAMES - 1) * stride], mel, options.seed)[0])
    with torch.inference_mode():
        try:
            offline_BCT = trunk(clip)
            windows = [trunk(clip[..., i * stride : i * stride + field]) for i in range(_FRAMES)]
        except RuntimeError as error:
            raise ExportError(
                f"The trunk cannot compute {mel.n_mels} mel bands of {field} frames: {error}.",
                fix="Check n_mels of the MelSpec and the student's receptive_field.",
            ) from None
    expected = (1, student.channels, _FRAMES)
    if tuple(offline_BCT.shape) != expected or windows[0].shape[-1] != 1:
        raise ExportError(
            f"{clip.shape[-1]} mel frames give {tuple(offline_BCT.shape)}, not {expected}: "
            f"receptive_field {field}, stride {stride} or channels {student.channels} is wrong, or "
            f"the trunk pads along time.",
            fix="Use convolutions without padding along time and declare their true field.",
        )
    difference = (offline_BCT - torch.cat(windows, dim=2)).abs().max()
    if not bool(difference <= _TOLERANCE * max(1.0, float(np.abs(offline_BCT.numpy()).max()))):
        raise ExportError(
            f"A frame depends on more than its {field} mel frames: streaming would differ from "
            f"offline by {float(difference):.2g}.",
            fix="Remove what mixes time before pooling: attention, squeeze-excite, instance norm.",
        )


# --- torch = ONNX fp32, over many lengths and all forms of the graph


def prove_fp32(
    student: ExportableStudent,
    facts: StudentFacts,
    trunk: onnx.ModelProto,
    whole: onnx.ModelProto,
    head: Head,
    options: ExportOptions,
) -> tuple[list[Gate], Artifact, Artifact]:
    """Compare the trunk and the whole classifier with the torch student.

    Returns:
        The parity gates, and the artefacts ``fp32`` and ``model`` without path and size.

    Raises:
        ParityError: Names or shapes differ, or values are not finite.
    """
    lengths = parity_lengths(student.receptive_field, student.stride, facts.mel)
    inputs = parity_inputs(lengths, facts.mel, options.seed)
    context = student.context
    tolerance = options.parity_tolerance
    classifier = whole_classifier(student)
    frames = check_parity(
        frozen_trunk(student), trunk, [with_context(x, context) for x in inputs],
        names=(TRUNK_INPUT, TRUNK_OUTPUT), tolerance=tolerance, label="trunk",
    )  # fmt: skip
    logits = check_parity(
        classifier, whole, inputs, names=(TRUNK_INPUT, HEAD_OUTPUT),
        tolerance=tolerance, label="classifier",
    )  # fmt: skip
    streaming = check_streaming(classifier, trunk, head, inputs, tolerance, context)
    gates = [
        Gate.at_most("torch = ONNX fp32, frames", frames.scaled_difference, tolerance),
        Gate.at_most("torch = ONNX fp32, classifier", logits.scaled_difference, tolerance),
        Gate.at_most("torch = ONNX fp32, trunk and head", streaming.scaled_difference, tolerance),
    ]
    base = Artifact("fp32", "", "streaming", "fp32", 0)
    fp32 = dataclasses.replace(
        base,
        max_abs_difference=max(frames.max_abs_difference, streaming.max_abs_difference),
        agreement=streaming.agreement,
    )
    model = dataclasses.replace(
        base,
        name="model",
        kind="classifier",
        max_abs_difference=logits.max_abs_difference,
        agreement=logits.agreement,
    )
    return gates, fp32, model
