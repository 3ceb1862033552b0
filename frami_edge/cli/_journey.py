"""What `invert`, `distill` and `quickstart` share: options, and how a config is read."""

from __future__ import annotations

import math
import os
import shlex
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from frami_edge.errors import ConfigError

if TYPE_CHECKING:
    from frami_edge.device import Choice
    from frami_edge.distillation.config import JourneyConfig

Sources = Annotated[
    str | None,
    typer.Option(
        "--sources",
        help="Mix of the bank by weight, such as 'inversion' alone or "
        "'inversion=2,procedural=1'. Replaces bank.sources.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out, to the same result.")
]


def parse_sources(text: str) -> dict[str, float]:
    """`a=2,b` to {a: 2.0, b: 1.0}.

    Raises:
        ConfigError: Not of this form.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            weight = float(value) if value else 1.0
        except ValueError:
            weight = math.nan
        if not name.isidentifier() or not math.isfinite(weight) or weight < 0:
            raise ConfigError(
                f"--sources {text!r}: {part.strip()!r} is not NAME or NAME=WEIGHT.",
                fix="Write it like --sources inversion=2,procedural=1.",
            )
        shares[name] = weight
    return shares


def journey_config(
    name: str, overrides: list[str] | None, sources: str | None, seed: int | None
) -> JourneyConfig:
    """The configuration of a run, with everything that the command line changes in it."""
    from frami_edge.config import load_config
    from frami_edge.distillation.config import JourneyConfig

    changes = list(overrides or [])
    if sources is not None:
        mix = ", ".join(f"{k}: {v}" for k, v in parse_sources(sources).items())
        changes.append(f"bank.sources={{{mix}}}")
    if seed is not None:
        changes.append(f"seed={seed}")
    return load_config(JourneyConfig, name, changes)


def journey_device(requested: str, precision: Literal["auto", "bf16", "fp32"]) -> Choice:
    """Device and precision of inversion and distillation, of this process."""
    from frami_edge.device import choose_device
    from frami_edge.distributed import rank_device

    return choose_device(rank_device(requested), precision)


def resume_command() -> str:
    """What continues this run: the command as it was typed, with --resume."""
    from frami_edge._provenance import command_line

    typed = command_line()
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if here != "1":
        typed = ["torchrun", "--nproc-per-node", here, "-m", "frami_edge", *typed[1:]]
    return shlex.join(typed if "--resume" in typed else [*typed, "--resume"])
