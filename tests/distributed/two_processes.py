"""What the tests run in one process and in two: `torchrun --nproc-per-node 2 two_processes.py DIR`.

Every case gives the same on every process; rank 0 saves what the two found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frami_edge.config import BASELINES, BankConfig, DistillConfig, StudentArch, TeacherArch
from frami_edge.device import Compute
from frami_edge.distillation import Distiller
from frami_edge.distributed import Rows, broadcast, share_batch_norms, sum_gradients, world
from frami_edge.inversion import make_bank
from frami_edge.models import ResNetTeacher, StudentNet
from frami_edge.sources.base import Context
from frami_edge_runtime.melspec import MelSpec

K = 3
LABELS = ("a", "b", "c")
SHA = "0" * 64
SPEC = MelSpec(
    sample_rate=8000, n_fft=256, win_length=200, hop_length=80, n_mels=16, mean=-6.0, std=4.0
)
CPU = Compute(torch.device("cpu"), torch.float32, False, "a test")
SOURCES = ("inversion", "translator", "procedural", "white_noise")
HALF = 3
"""Distillation steps before a resume."""


class Killed(BaseException):
    """What a signal would do."""


class Noise:
    """A feed of smooth noise."""

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 1, 16, 24, generator=generator).cumsum(3) / 3


def teacher() -> ResNetTeacher:
    torch.manual_seed(0)
    model = ResNetTeacher(TeacherArch(channels=(8, 12), blocks=1), SPEC.n_mels, K)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 1, SPEC.n_mels, 24))
    return model.eval().requires_grad_(False)


def distiller(batch_size: int = 9, **changes: Any) -> Distiller:
    fields = {"steps": 6, "batch_size": batch_size, "crop_min": 12, "crop_max": 20, "mixup": 0.5}
    config = DistillConfig.model_validate(fields | {"mask_bands": 3, "warmup": 0.5} | changes)
    torch.manual_seed(5)
    arch = StudentArch(channels=(8, 8, 8), time_kernels=(3, 3, 3), out_channels=16)
    big = teacher()
    student = StudentNet(arch, 16, K, big.head if config.reuse_head else None)
    return Distiller(big, student, config, CPU, 0, Noise())


def distilled(batch_size: int = 9, **changes: Any) -> dict[str, Any]:
    rows: list[dict[str, float]] = []
    student = distiller(batch_size, **changes).run(lambda _, row: rows.append(row))
    return {"student": student.state_dict(), "rows": rows}


def resumed(state: dict[str, Any]) -> dict[str, Tensor]:
    loop = distiller()
    loop.load_state(state)
    return loop.run().state_dict()


def half() -> dict[str, Any]:
    states: list[dict[str, Any]] = []
    loop = distiller(checkpoint_steps=HALF)
    loop.run(on_checkpoint=lambda s: states.append({k: _copy(v) for k, v in s.items()}))
    return states[0]


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def settings() -> Context:
    config = {
        "frames": 16, "procedural_clips": 11, "control_clips": 5, "shard_clips": 14,
        "sources": dict.fromkeys(SOURCES, 1),
        "inversion": {
            "steps": 5, "burn_in": 1, "batch_size": 7, "latent": 8, "width": 8,
            "contrastive_memory": 10, "adversarial": {"weight": 0.1, "warmup_steps": 2},
        },
        "translator": {"steps": 5, "burn_in": 1, "batch_size": 7},
    }  # fmt: skip
    return Context(teacher(), SPEC, K, BankConfig.model_validate(config), CPU, 3)


def bank(folder: Path, kill: tuple[str, int] | None = None) -> dict[str, Any]:
    """The clips and the losses; with ``kill``, killed after that step of that source."""
    rows: list[tuple[str, int, dict[str, float]]] = []

    def on_step(name: str, done: int, steps: int, metrics: dict[str, float]) -> None:
        rows.append((name, done, metrics))
        if (name, done) == kill:
            raise Killed

    try:
        made = make_bank(folder, settings(), LABELS, SHA, on_step)
    except Killed:
        return {}
    clips = {name: vars(made.read(name)) for name in SOURCES}
    return {"clips": clips, "rows": rows, "health": made.index.health}


def baselines(folder: Path) -> dict[str, Tensor]:
    """The clips of every published baseline."""
    few = {"iterations": 2, "student_steps": 1}
    sections = {
        name: few if name in ("cmi", "deep_inversion", "fast") else {} for name in BASELINES
    }
    config = {
        "frames": 16, "sources": dict.fromkeys(BASELINES, 1), "baselines": sections,
        "inversion": {"steps": 4, "burn_in": 1, "batch_size": 7, "width": 8},
    }  # fmt: skip
    context = Context(teacher(), SPEC, K, BankConfig.model_validate(config), CPU, 3)
    made = make_bank(folder, context, LABELS, SHA)
    return {name: made.read(name).mels_N1MT for name in BASELINES}


def batch_norm(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Outputs, gradients and running statistics of a small network on 5 clips."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    share_batch_norms(net)
    x = torch.randn(5, 1, 6, 7) + 30
    target = torch.randn(5, 2, 4, 5)
    rows = Rows(5)
    own = rows.take(x).requires_grad_()
    with torch.autocast("cpu", dtype, dtype != torch.float32):
        y = net(own).float()
    loss = (rows.gather(y) - target).square().mean()
    loss.backward()
    sum_gradients(net.parameters())
    assert own.grad is not None
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    found |= {f"buffer {name}": b for name, b in net.named_buffers()}
    net.eval()
    found |= {"y": rows.gather(y.detach()), "x": rows.gather(own.grad), "loss": loss.detach()}
    return found | {"eval": net(x).detach()}


def main(folder: Path) -> None:
    state = torch.load(folder / "half-by-one.pt", weights_only=True)
    cases: dict[str, Callable[[], Any]] = {
        "world": lambda: world().size,
        "told": lambda: broadcast(f"by {world().rank}"),
        "batch_norm": batch_norm,
        "batch_norm_bf16": lambda: batch_norm(torch.bfloat16),
        "distilled": distilled,
        "own_head": lambda: distilled(8, reuse_head=False),
        "logits": lambda: distilled(8, before_pooling=0, after_pooling=0),
        "half": half,
        "resumed": lambda: resumed(state),
        "bank": lambda: bank(folder / "bank"),
        "baselines": lambda: baselines(folder / "baselines"),
        "begun": lambda: bank(folder / "begun-by-two", kill=("inversion", 4)),
        "goes_on": lambda: bank(folder / "begun-by-one"),
    }
    found = {name: case() for name, case in cases.items()}
    if world().main:
        torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    from frami_edge.distributed import joined

    with joined("cpu"):
        main(Path(sys.argv[1]))
