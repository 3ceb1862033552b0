"""What a protocol file says: a data set, its folds and seeds, and the methods to compare."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from frami_edge.config import Strict

NAME = r"^[a-z0-9][a-z0-9_-]*$"


class Method(Strict):
    """One row of the table: the student's recipe with a few keys changed, or a control."""

    what: str = ""
    """In words, for the table."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of the student's config and their values."""
    control: (
        Literal["white_noise", "smooth_noise", "procedural", "real", "unrelated", "scratch"] | None
    ) = None
    """A control instead of a bank."""
    unrelated: str | None = None
    """Data set of the control `unrelated`."""
    bank_of: str | None = None
    """Another method, whose bank serves; `bank.sources` of this one picks from it."""
    mels: int | None = Field(None, ge=1)
    """Distil on this many clips of the bank, the same number of steps; all where unset."""
    folds: tuple[str, ...] | None = None
    """Fewer folds than the protocol's."""
    seeds: tuple[int, ...] | None = None
    """Fewer seeds than the protocol's."""

    @field_validator("folds", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return as_text(value)

    @model_validator(mode="after")
    def _consistent(self) -> Method:
        if (self.control == "unrelated") != (self.unrelated is not None):
            raise ValueError("`control: unrelated` and `unrelated: SET` go together")
        if self.control and (self.bank_of or self.mels):
            raise ValueError("a control has no bank: leave out bank_of and mels")
        return self


class Protocol(Strict):
    """A table to make."""

    title: str
    """Of the table."""
    data: str
    """A known set (`frami-edge data`)."""
    teacher: str
    """Preset or YAML file of `train-teacher`; its `data` is replaced by this protocol's."""
    student: str
    """Preset or YAML file of `distill`."""
    folds: tuple[str, ...] = Field(min_length=1)
    """Test folds; each has a teacher of its own, which never hears it."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Of the student, its batches and its augmentation."""
    bank_seeds: Literal["first", "each"] = "first"
    """`first`: the seeds of a fold share the bank of the first one; `each`: a bank a seed."""
    teacher_set: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of the teacher's config and their values."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys of the student's config, for all methods."""
    curve_steps: int = Field(0, ge=0)
    """Score the test fold every so many steps for the accuracy-over-time picture; the score of a
    table is the last step's, whatever the curve says. 0 for never. A multiple of 20: on a GPU,
    where losses are read so seldom, another number would date a point too early."""
    methods: dict[str, Method] = Field(min_length=1)
    """By name, in the order in which they are run."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of methods, for the table of paired differences: (this one, against that one)."""

    @field_validator("folds", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return as_text(value)

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        for name, method in self.methods.items():
            other = method.bank_of
            if other is not None and (other not in self.methods or self.methods[other].control):
                raise ValueError(f"methods.{name}.bank_of: {other} is no method with a bank")
            _check_keys(name, method)
            if other is not None and self.methods[other].bank_of:
                raise ValueError(f"methods.{name}.bank_of: name the method that makes the bank")
            odd = sorted(set(method.folds or ()) - set(self.folds))
            if odd:
                raise ValueError(f"methods.{name}.folds: {', '.join(odd)} is not among the folds")
            new = sorted(set(method.seeds or ()) - set(self.seeds))
            if new:
                raise ValueError(f"methods.{name}.seeds: {new} is not among the seeds")
        unknown = {name for pair in self.compare for name in pair} - set(self.methods)
        if unknown:
            raise ValueError(f"compare: there is no method {', '.join(sorted(unknown))}")
        return self


def _check_keys(name: str, method: Method) -> None:
    """Keys that would change nothing: a row must not be called what it is not."""
    if "seed" in method.set:
        raise ValueError(f"methods.{name}.set: the seeds are those of `seeds`")
    keys = [key for key in method.set if key.partition(".")[0] == "bank" and key != "bank.sources"]
    if method.bank_of and keys:
        raise ValueError(
            f"methods.{name}.set: {keys[0]} changes nothing, because the bank is that of "
            f"{method.bank_of}: leave out bank_of, or the key"
        )


def as_text(value: Any) -> Any:
    """Fold names as text: YAML reads a bare 1 as a number."""
    if isinstance(value, (list, tuple)):
        return tuple(str(v) if isinstance(v, int) else v for v in value)
    return value
