"""torch = ONNX: names, then shapes, then values, over many lengths.

Shape legend: B batch, M mel bands, T mel frames, C channels, T' trunk frames, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import nn

from frami_edge_export.errors import ParityError
from frami_edge_export.scoring import Head, run_trunk, with_context
from frami_edge_export.sessions import cpu_session
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import TRUNK_INPUT, TRUNK_OUTPUT

LENGTHS = 12
LONGEST_S = 30.0

Array = npt.NDArray[np.float32]


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


def parity_inputs(lengths: Sequence[int], mel: MelSpec, seed: int) -> list[Array]:
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
    inputs: Sequence[Array],
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
    inputs: Sequence[Array],
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
    graph: Callable[[Array], npt.NDArray[np.floating[Any]]],
    inputs: Sequence[Array],
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
