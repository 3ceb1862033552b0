"""A teacher in Python code: its layers, where time disappears, and what is still missing.

Unlike everything else here it is built and run, for nobody else knows what is in it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from torch import nn

from frami_edge.describing.description import Description, Fact, Section, listed
from frami_edge.describing.words import heard_facts
from frami_edge.errors import TeacherError
from frami_edge.inversion.bn_loss import live_batch_norms
from frami_edge.io import sha256_file
from frami_edge.models.checkpoint import parameters
from frami_edge.teachers.description import TeacherDescription, labels_of, mel_of, weights_path
from frami_edge.teachers.foreign import Anatomy, ForeignTeacher
from frami_edge.teachers.opening import build_module
from frami_edge.teachers.tracing import Event, find_layout, trace
from frami_edge.teachers.weights import load_weights, read_weights
from frami_edge_runtime.melspec import MelSpec

_SHOWN_EVENTS = 10


def describe_teacher(source: TeacherDescription) -> Description:
    """What inversion and distillation will find in it.

    Raises:
        CheckpointError: The weights are missing, damaged or do not fit.
        ConfigError: The front end is missing or has mistakes.
        TeacherError: It cannot be built, or takes no log-mels of this front end.
    """
    spec, labels, weights = mel_of(source), labels_of(source), weights_path(source)
    module = build_module(source.factory, source.arguments)
    load_weights(module, read_weights(weights), weights, source.weights_under)
    module.float().eval().requires_grad_(False)
    layout = find_layout(module, spec.n_mels, len(labels), source.layout)
    events = trace(module, spec.n_mels, layout)
    findings = []
    try:
        model = ForeignTeacher(
            module, spec.n_mels, len(labels),
            layout=source.layout, frames=source.frames, pooled=source.pooled,
        )  # fmt: skip
        states = _states(model.anatomy, spec, events)
        findings += _lacks(model)
    except TeacherError as error:
        states = Section("hidden_states", (Fact("found", False, "no"), _way(events)))
        findings.append(f"{error.message} {error.fix}")
    if source.trained_on is None:
        findings.append(
            "It does not say what it was trained on, so nobody checks that students are scored on "
            "other clips: add trained_on to its description."
        )
    return Description(
        "foreign-teacher",
        f"teacher {source.factory}",
        (
            _file(weights),
            _network(module, layout),
            states,
            Section("hears", heard_facts(labels, spec)),
        ),
        tuple(findings),
    )


def _file(weights: Path) -> Section:
    return Section("file", (Fact("weights", str(weights)), Fact("sha256", sha256_file(weights))))


def _network(module: nn.Module, layout: str) -> Section:
    kinds = Counter(type(m).__name__ for m in module.modules() if not list(m.children()))
    norms = live_batch_norms(module)
    named = [f"{name} ({layer.num_features})" for name, layer in norms]
    return Section(
        "network",
        (
            Fact("parameters", parameters(module)),
            Fact("input", layout, f"{layout}: " + _axes(layout)),
            Fact("layers", dict(kinds), ", ".join(f"{n} {k}" for k, n in kinds.most_common(8))),
            Fact(
                "batch_norms",
                {name: layer.num_features for name, layer in norms},
                f"{len(norms)} live: {listed(named, 6)}" if norms else "none live",
            ),
        ),
    )


def _axes(layout: str) -> str:
    names = {
        "B": "batch",
        "1": "channel",
        "3": "channels, all the same",
        "M": "mel bands",
        "T": "frames",
    }
    return ", ".join(names[axis] for axis in layout)


def _way(events: list[Event]) -> Fact:
    """Shapes on the way, the last ones in full: that is where the pooling is."""
    outputs = [e for e in events if not e.name.endswith("@in")][-_SHOWN_EVENTS:]
    lines, values = [], []
    for e in outputs:
        kind, shape = e.kind, list(e.tensor.shape)
        values.append({"name": e.name, "kind": kind, "shape": shape, "time_axis": e.time_axis})
        gone = "time gone" if e.time_axis is None else f"time on axis {e.time_axis}"
        lines.append(f"{e.name}: {kind} {tuple(shape)}, {gone}")
    return Fact("last_modules", values, "\n".join(lines))


def _states(anatomy: Anatomy, spec: MelSpec, events: list[Event]) -> Section:
    s, ms = anatomy.states, 1000 * spec.hop_s
    field = anatomy.receptive_field
    seen = (
        "the whole clip, or nearly" if field is None else f"{field} mel frames, {field * ms:g} ms"
    )
    stride = anatomy.stride
    return Section(
        "hidden_states",
        (
            Fact("frames", s.frames, f"{s.frames}: {s.channels} channels over time"),
            Fact("pooled", s.pooled, f"{s.pooled}: {s.pooled_size} values"),
            Fact("pooling", s.pooling),
            Fact("stride", stride, f"{stride} mel frames, {stride * ms:g} ms"),
            Fact("receptive_field", field, seen),
            Fact("head", anatomy.head or None, anatomy.head or "not affine: not reused"),
            Fact("answers", anatomy.answers),
            _way(events),
        ),
    )


def _lacks(model: ForeignTeacher) -> list[str]:
    found = list(model.doubts)
    if not live_batch_norms(model):
        found.append(
            "It has no BatchNorm with running statistics: invert with "
            "--set bank.inversion.batch_norm=0 --set bank.translator.batch_norm=0, and expect a "
            "poorer bank."
        )
    if model.head is None:
        found.append(
            "Its way from the pooled state to the logits is not affine: the student gets a head of "
            "its own instead of the teacher's."
        )
    return found
