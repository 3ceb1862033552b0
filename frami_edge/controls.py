"""Control rows: the same student and the same distillation on other clips than the bank's.

A headline means little without them. White noise shows what the teacher's answers alone carry, smooth
noise and procedural audio what inversion adds, real audio what is lost without data.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from frami_edge.device import generator
from frami_edge.distillation.config import JourneyConfig
from frami_edge.distillation.feeds import ClipFeed, TensorFeed
from frami_edge.distillation.loop import Feed
from frami_edge.errors import ConfigError
from frami_edge.inversion.bank import Bank, BankFeed
from frami_edge.inversion.controls import smooth_noise_mels, white_noise_mels
from frami_edge.inversion.procedural import procedural_mels
from frami_edge_runtime.melspec import MelSpec

SYNTHETIC = ("white_noise", "smooth_noise", "procedural")
"""Controls that need nothing but the front end."""
FROM_BANK = ("inversion", "translator")
"""Controls that use one source of a bank alone."""
REAL = ("real", "unrelated")
"""Controls on real audio: the teacher's own training clips, and another set's."""


def control_feed(
    name: str,
    spec: MelSpec,
    config: JourneyConfig,
    *,
    bank: Bank | None = None,
    real: Sequence[Tensor] = (),
) -> Feed:
    """The clips of one control.

    Args:
        name: One of `SYNTHETIC`, `FROM_BANK` or `REAL`.
        spec: Front end of the teacher.
        config: Of the run that is controlled: frames, numbers of clips, seed.
        bank: For `FROM_BANK`.
        real: (M, T_i) log-mels, for `REAL`.

    Raises:
        ConfigError: Unknown, or what it needs is not given.
    """
    frames, seed = config.bank.frames, generator(config.seed, f"control/{name}").initial_seed()
    if name == "white_noise":
        return TensorFeed(white_noise_mels(spec, config.bank.control_clips, frames, seed))
    if name == "smooth_noise":
        return TensorFeed(smooth_noise_mels(spec, config.bank.control_clips, frames, seed))
    if name == "procedural":
        return TensorFeed(procedural_mels(spec, config.bank.procedural_clips, frames, seed))
    if name in FROM_BANK:
        if bank is None:
            raise ConfigError(f"The control {name} needs a bank.", fix="Give --bank DIR.")
        return BankFeed(bank, {name: 1.0})
    if name in REAL:
        if not real:
            raise ConfigError(f"The control {name} needs real clips.", fix="Give --data-root.")
        return ClipFeed(real, frames)
    known = (*SYNTHETIC, *FROM_BANK, *REAL)
    raise ConfigError(f"There is no control {name!r}.", fix=f"Known: {', '.join(known)}.")

