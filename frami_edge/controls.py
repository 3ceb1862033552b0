"""Control rows: the same student and the same distillation on other clips than the bank's.

A headline means little without them. White noise shows what the teacher's answers alone carry,
smooth noise and procedural audio what inversion adds, real audio what is lost without data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from frami_edge.data import Features, length_buckets
from frami_edge.device import Choice, generator
from frami_edge.distillation.config import JourneyConfig
from frami_edge.distillation.feeds import ClipFeed, TensorFeed
from frami_edge.distillation.loop import Distiller, Feed
from frami_edge.distillation.run import new_student
from frami_edge.errors import ConfigError
from frami_edge.inversion.bank import Bank, BankFeed
from frami_edge.inversion.controls import smooth_noise_mels, white_noise_mels
from frami_edge.inversion.procedural import procedural_mels
from frami_edge.inversion.sources import LEARNED
from frami_edge.models.checkpoint import Loaded
from frami_edge.models.student import Student
from frami_edge.states import Trail
from frami_edge.training.config import TrainConfig
from frami_edge.training.loop import train_epochs
from frami_edge_runtime.melspec import MelSpec

SYNTHETIC = ("white_noise", "smooth_noise", "procedural")
"""Controls that need nothing but the front end."""
FROM_BANK = LEARNED
"""Controls that use one source of a bank alone."""
REAL = ("real", "unrelated")
"""Controls on real audio: the teacher's own training clips, and another set's."""
SUPERVISED = "scratch"
"""The same student on the same training clips with their labels and no teacher."""
CONTROLS = (*SYNTHETIC, *FROM_BANK, *REAL, SUPERVISED)
"""All of them."""


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
    raise ConfigError(f"There is no control {name!r}.", fix=f"Known: {', '.join(CONTROLS)}.")


def control_student(
    name: str,
    teacher: Loaded,
    config: JourneyConfig,
    choice: Choice,
    *,
    bank: Bank | None = None,
    real: Features | None = None,
    on_step: Callable[[int, dict[str, float]], None] = lambda *_: None,
    trail: Trail | None = None,
) -> Student:
    """The student of one control: same network, same seed, same number of steps.

    Args:
        name: One of `CONTROLS`.
        teacher: Loaded and on its device.
        config: Of the run that is controlled.
        choice: Device and precision.
        bank: For `FROM_BANK`.
        real: For `REAL` (labels unused) and `SUPERVISED`.
        on_step: Called with the number of steps done and the losses.
        trail: Where its state is kept, from which it goes on.

    Raises:
        ConfigError: See `control_feed`.
    """
    mels = real.mels if real else ()
    if name != SUPERVISED:
        feed = control_feed(name, teacher.spec, config, bank=bank, real=mels)
        return distilled_on(feed, teacher, config, choice, on_step, trail)
    if real is None:
        raise ConfigError(f"The control {name} needs real clips.", fix="Give --data-root.")
    d = config.distill
    alone = config.distill.model_copy(update={"reuse_head": False})
    student = new_student(config.student, teacher, alone, config.seed)
    batches = len(length_buckets([d.crop_max] * len(real), d.batch_size, generator=None))
    recipe = TrainConfig(
        epochs=max(1, round(d.steps / batches)),
        batch_size=d.batch_size,
        crop_frames=d.crop_max,
        mixup=d.mixup,
        gain=d.gain,
    )
    train_epochs(
        student,
        real,
        recipe,
        choice=choice,
        seed=config.seed,
        on_step=lambda i, _, m: on_step(i, m),
        trail=trail,
    )
    return student.eval().requires_grad_(False)


def distilled_on(
    feed: Feed,
    teacher: Loaded,
    config: JourneyConfig,
    choice: Choice,
    on_step: Callable[[int, dict[str, float]], None] = lambda *_: None,
    trail: Trail | None = None,
) -> Student:
    """A student distilled on a feed with the run's own recipe, ready to ship."""
    student = new_student(config.student, teacher, config.distill, config.seed)
    distiller = Distiller(teacher.teacher, student, config.distill, choice, config.seed, feed)
    if trail is None:
        distiller.run(on_step)
    else:
        state = trail.load()
        if state is not None:
            distiller.load_state(state)
        distiller.run(on_step, trail.save, trail.stop)
    return student.collapse().requires_grad_(False)
