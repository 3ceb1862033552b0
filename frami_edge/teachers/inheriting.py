"""A teacher's first layers as the first layers of a student.

What a network computes first, edges and textures of a log-mel, hardly depends on its classes. A
student that takes these layers over learns only those behind them from synthetic clips, and hears
real sounds as its teacher does.

Shape legend: B batch, C channels, M mel bands or what is left of them, T frames.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from frami_edge.config import InheritedLayer
from frami_edge.errors import TeacherError
from frami_edge.models import InheritedLayers, ResNetTeacher, TeacherLike
from frami_edge.teachers.calling import in_words
from frami_edge.teachers.foreign import ForeignTeacher
from frami_edge.teachers.selection import SelectedTeacher

_ACTIVATIONS: Final[dict[Any, str]] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hardswish", nn.SiLU: "silu",
    F.relu: "relu", torch.relu: "relu", "relu": "relu", F.relu6: "relu6",
    F.hardswish: "hardswish", F.silu: "silu",
}  # fmt: skip
_ADD: Final = (operator.add, operator.iadd, torch.add, "add", "add_")
_MULTIPLY: Final = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_MOST: Final = 150_000  # parameters of layers that an error message proposes
_LISTED: Final = 6


class _NotInheritableError(Exception):
    """Why layers cannot be taken over."""


@torch.no_grad()
def inherit(teacher: TeacherLike, name: str, clips_B1MT: Tensor) -> InheritedLayers:
    """The teacher's layers from its input to the module ``name``, frozen, as folded convolutions.

    BatchNorm is folded. A gate per channel, such as a squeeze-excite block, sees the whole clip and
    cannot stream: it becomes its mean over ``clips_B1MT``, which the layer behind it takes up.

    Args:
        teacher: Takes log-mels (B, 1, M, T).
        name: A module of the teacher, as `named_modules` names it; its output is (B, C, M', T').
        clips_B1MT: Normalised log-mels that the gates are averaged over.

    Raises:
        TeacherError: The teacher has no such module, or its layers are not convolutions along time
            with a fixed geometry.
    """
    seen = None
    try:
        seen = _Pass(_body(teacher), clips_B1MT)
        return seen.layers(name)
    except _NotInheritableError as error:
        found = seen.inheritable() if seen else {}
        listed = ", ".join(f"{path} ({size:,} parameters)" for path, size in found.items())
        raise TeacherError(
            f"The teacher's layers up to {name} cannot be inherited: {error}.",
            fix=f"Set student.inherit to one of: {listed}."
            if listed
            else "Leave student.inherit out (null), and student.channels to a network of its own.",
        ) from None


@torch.no_grad()
def inheritable(teacher: TeacherLike, clips_B1MT: Tensor) -> dict[str, int]:
    """Modules up to which layers can be inherited, with their parameters; the largest last."""
    try:
        return _Pass(_body(teacher), clips_B1MT).inheritable()
    except _NotInheritableError:
        return {}


def _body(teacher: TeacherLike) -> nn.Module:
    """The network that was given, without our wrappers."""
    model = teacher.model if isinstance(teacher, SelectedTeacher) else teacher
    if not isinstance(model, ForeignTeacher):
        return cast(nn.Module, model)
    if model.anatomy.layout != "B1MT" or model.front_end is not None:
        raise _NotInheritableError("it does not take log-mels as (B, 1, M, T)")
    return model.module


def _traced(module: nn.Module) -> tuple[fx.Graph, str]:
    """Operations of a forward pass in evaluation mode, and why they end early where they do."""
    given = {"lengths_B": None} if isinstance(module, ResNetTeacher) else None
    tracer, why = fx.Tracer(), ""
    try:
        tracer.trace(module, given)
    except Exception as error:  # whatever the network's own code raises under tracing
        why = f" before torch.fx stops at its code ({str(error).partition(chr(10))[0]})"
        if not hasattr(tracer, "graph") or not any(
            n.op == "call_module" for n in tracer.graph.nodes
        ):
            raise _NotInheritableError(f"it runs no module{why}") from None
        tracer.graph.output(list(tracer.graph.nodes)[-1])
    return tracer.graph, why


def _paths(node: fx.Node) -> Iterable[str]:
    """Modules that a node is the last of, so far."""
    stack = node.meta.get("nn_module_stack", {})
    paths = [path if isinstance(path, str) else path[0] for path in stack.values()]
    return [path for path in [*paths, str(node.target) * (node.op == "call_module")] if path]


class _Pass(fx.Interpreter):
    """Shapes and gates of one forward pass, and the layers that lead to a module's output."""

    def __init__(self, module: nn.Module, clips_B1MT: Tensor) -> None:
        graph, self.why = _traced(module)
        super().__init__(fx.GraphModule(module, graph))
        self.n_mels = clips_B1MT.shape[2]
        self.ends = {path: node for node in graph.nodes for path in _paths(node)}
        """The last node of each module."""
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.gates: dict[fx.Node, Tensor] = {}
        self.firsts: dict[tuple[Any, ...], fx.Node] = {}
        """The first node of each value."""
        self.same: dict[fx.Node, fx.Node] = {}
        """An earlier node that gave the same value: behind what only passes it on."""
        try:
            self.run(clips_B1MT)
        except Exception as error:  # somebody else's code, such as a network of one clip length
            raise _NotInheritableError(f"it does not take these clips: {in_words(error)}") from None

    def run_node(self, n: fx.Node) -> Any:
        """Note the shape of a tensor, and the mean of what may be a gate."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.ndim == 4:
            self.shapes[n] = tuple(value.shape)
            flat = value.double().contiguous()  # sums depend on the order in memory
            facts = (self.shapes[n], float(flat.sum()), float(flat.abs().sum()))
            if (first := self.firsts.setdefault(facts, n)) is not n:
                self.same[n] = first
            if value.shape[2:] == (1, 1):
                self.gates[n] = value.float().mean((0, 2, 3))
        return value

    def layers(self, name: str) -> InheritedLayers:
        """From the input to the output of a module."""
        if name not in self.ends:
            raise _NotInheritableError(f"it runs no module of that name{self.why}")
        build = _Builder(self)
        build.number(self.ends[name])
        try:
            layers = InheritedLayers(tuple(build.made), self.n_mels)
        except ValueError as error:
            raise _NotInheritableError(str(error)) from None
        for i, (weight, bias) in build.weights.items():
            layers.convolution(i).weight.copy_(weight)
            cast(Tensor, layers.convolution(i).bias).copy_(bias)
        return layers.eval().requires_grad_(False)

    def inheritable(self) -> dict[str, int]:
        """As the function of that name."""
        sizes: dict[str, int] = {}
        for path in self.ends:
            with suppress(_NotInheritableError):
                size = sum(p.numel() for p in self.layers(path).parameters())
                if size <= _MOST:
                    sizes[path] = size
        # Blocks rather than what is inside them: the least depth with a choice.
        depths = Counter(path.count(".") for path in sizes)
        depth = min((d for d, n in depths.items() if n >= 3), default=99)
        blocks = sorted((size, path) for path, size in sizes.items() if path.count(".") <= depth)
        return {path: size for size, path in blocks[-_LISTED:]}


class _Builder:
    """Layers from nodes, from the last one back to the input."""

    def __init__(self, pass_: _Pass) -> None:
        self.pass_ = pass_
        self.made: list[InheritedLayer] = []
        self.weights: dict[int, tuple[Tensor, Tensor]] = {}
        self.numbers: dict[fx.Node, int] = {}
        self.scales: dict[int, tuple[int, Tensor]] = {}
        """Input and gain of gates, which the convolution behind them takes up."""

    def number(self, node: fx.Node) -> int:
        """Number of the value that a node computes; 0 is the input."""
        if node not in self.numbers:
            self.numbers[node] = self._number(node)
        return self.numbers[node]

    def _number(self, node: fx.Node) -> int:
        if node.op == "placeholder":
            return 0
        called = self._called(node)
        nodes = [a for a in node.args if isinstance(a, fx.Node)]
        kind = type(called) if isinstance(called, nn.Module) else called
        if kind in _ACTIVATIONS:
            return self._add(InheritedLayer(op=_ACTIVATIONS[kind], of=(self.number(nodes[0]),)))
        if kind in _ADD and len({self.pass_.shapes.get(n) for n in nodes}) == 1 < len(nodes):
            of = (self.number(nodes[0]), self.number(nodes[1]))
            return self._add(InheritedLayer(op="add", of=of))
        if kind is nn.Conv2d:
            return self._convolution(nodes[0], cast(nn.Conv2d, called))
        if kind is nn.BatchNorm2d:
            return self._batch_norm(nodes[0], cast(nn.BatchNorm2d, called))
        if kind in _MULTIPLY and len(nodes) == 2 and (gated := self._gated(nodes)):
            return self._gate(*gated)
        if node in self.pass_.same:
            return self.number(self.pass_.same[node])
        raise _NotInheritableError(f"{node.name} is no layer that streams ({node.target})")

    def _called(self, node: fx.Node) -> Any:
        return self.pass_.fetch_attr(str(node.target)) if node.op == "call_module" else node.target

    def _gated(self, nodes: list[fx.Node]) -> tuple[fx.Node, Tensor] | None:
        gates = self.pass_.gates
        for x, gate in (nodes, nodes[::-1]):
            if gate in gates and x not in gates and len(gates[gate]) == self.pass_.shapes[x][1]:
                return x, gates[gate]
        return None

    def _add(self, layer: InheritedLayer) -> int:
        self.made.append(layer)
        return len(self.made)

    def _convolution(self, x: fx.Node, conv: nn.Conv2d) -> int:
        pads = conv.padding
        reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if pads == "same" and not any(r % 2 for r in reach):
            pads = (reach[0] // 2, reach[1] // 2)
        if isinstance(pads, str) or 2 * pads[1] != reach[1] or conv.padding_mode != "zeros":
            raise _NotInheritableError("a convolution is not padded by half its kernel, with zeros")
        weight = conv.weight.float().clone()
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.float().clone()
        of = self.number(x)
        if of in self.scales and of == len(self.made) and self._alone(x) and conv.groups == 1:
            before, gain_C = self.scales.pop(of)
            self.made.pop()
            self.weights.pop(of)
            of, weight = before, weight * gain_C[None, :, None, None]
        number = self._add(
            InheritedLayer(
                op="conv", of=(of,), channels=conv.out_channels, groups=conv.groups,
                kernel=conv.kernel_size, stride=conv.stride, padding=pads, dilation=conv.dilation,
            )
        )  # fmt: skip
        self.weights[number] = weight, bias
        return number

    def _batch_norm(self, x: fx.Node, norm: nn.BatchNorm2d) -> int:
        if norm.running_mean is None or norm.running_var is None:
            raise _NotInheritableError("a BatchNorm without statistics mixes the whole clip")
        gain_C = (norm.running_var + norm.eps).rsqrt()
        gain_C = gain_C * norm.weight if norm.affine else gain_C
        shift_C = -norm.running_mean * gain_C
        shift_C = shift_C + norm.bias if norm.affine else shift_C
        of = self.number(x)
        if of in self.weights and self._alone(x):
            weight, bias = self.weights[of]
            self.weights[of] = weight * gain_C[:, None, None, None], bias * gain_C + shift_C
            return of
        return self._per_channel(of, gain_C, shift_C)

    def _gate(self, x: fx.Node, gate_C: Tensor) -> int:
        of = self.number(x)
        number = self._per_channel(of, gate_C, torch.zeros_like(gate_C))
        self.scales[number] = of, gate_C
        return number

    def _alone(self, x: fx.Node) -> bool:
        """Whether nothing else takes this value."""
        return all(len(n.users) == 1 for n in (x, self.pass_.same.get(x, x)))

    def _per_channel(self, of: int, gain_C: Tensor, shift_C: Tensor) -> int:
        c = len(gain_C)
        number = self._add(InheritedLayer(op="conv", of=(of,), channels=c, groups=c))
        self.weights[number] = gain_C[:, None, None, None].clone(), shift_C.clone()
        return number
