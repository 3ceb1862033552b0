"""What `frami-edge train-teacher` reads from YAML."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from frami_edge.errors import ConfigError
from frami_edge_runtime.errors import MelSpecError
from frami_edge_runtime.melspec import MelSpec

# --- YAML as configs need it: no aliases, no tags, no key given twice, and `1e-3` is a number

# YAML 1.1, which PyYAML speaks, calls 1e-3 a string because it has neither dot nor sign.
_FLOAT_WITHOUT_DOT = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+")


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not supported: write the value out",
                problem_mark=event.start_mark,
            )
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in (None, "!"):
            raise yaml.MarkedYAMLError(
                problem=f"tags ({event.tag}) are not supported: write the value alone",
                problem_mark=event.start_mark,
            )
        if any("\ud800" <= c <= "\udfff" for c in getattr(event, "value", "")):
            raise yaml.MarkedYAMLError(
                problem="half a surrogate pair is no character", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", _FLOAT_WITHOUT_DOT, list("-+0123456789")
    )


def parse(text: str) -> Any:
    """The value of one YAML document.

    Raises:
        ValueError: One line that says what is wrong, and where it is known: `line 3: ...`.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"the character {error.character!r} is not allowed in YAML") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def dump(value: Any) -> str:
    """YAML that `parse` reads back to an equal value; keys keep their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


# --- Typed configs: strict models, read from YAML with overrides, every mistake told at once

MAX_BYTES = 200_000
"""Size of a config file that is still read: parsing takes 20 s a megabyte, and real ones have a few
kilobytes."""

MANY = 10_000_000
"""Most steps, clips or rows that a config may ask for: a slip of the finger is told at once, not by
a full memory."""
WIDE = 1 << 16
"""Largest batch or layer."""

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """Base of every config: unknown keys are errors, values frozen, docs below the fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


def load_config(model: type[M], name_or_path: str | Path, overrides: Sequence[str] = ()) -> M:
    """Read a config.

    Args:
        model: What it must be.
        name_or_path: A file if it ends in .yaml or .yml, otherwise a preset by name.
        overrides: `a.b=c` each: the dotted key, and a YAML value. Later ones win.

    Raises:
        ConfigError: With every mistake in the file and in the overrides, one a line.
    """
    source, data = read_mapping(name_or_path)
    problems = [problem for text in overrides if (problem := _override(data, text))]
    try:
        config = model.model_validate(data)
    except ValidationError as error:
        problems += describe(error, model, data)
    if problems:
        count = "a mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        lines = "".join(f"\n  {problem}" for problem in problems)
        where = f"{source} with its overrides" if overrides else source
        raise ConfigError(f"{where} has {count}:{lines}", fix="Correct the keys named above.")
    return config


def read_mapping(name_or_path: str | Path) -> tuple[str, dict[str, Any]]:
    """A YAML file or preset as plain keys and values, and what to call it.

    Raises:
        ConfigError: It is missing, too large, or no mapping.
    """
    source, text = _read(name_or_path)
    try:
        data = parse(text)
    except ValueError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}.", fix="Correct it.") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source} holds {_kind(data)}, not a mapping of keys to values.",
            fix="Write it as `key: value` lines.",
        )
    return source, data


def dump_config(model: BaseModel) -> str:
    """The config as YAML that `load_config` reads back to an equal model."""
    return dump(model.model_dump(mode="json"))


def presets() -> dict[str, Path]:
    """The shipped configs by name: `configs/` of the installed package, or of the repository."""
    package = Path(str(resources.files("frami_edge")))
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            files = sorted(folder.rglob("*.yaml"))
            return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    return {}


def describe(
    error: ValidationError, model: type[BaseModel] | None = None, data: Any = None
) -> list[str]:
    """One line a mistake: the dotted key, what is wrong, and a near name where there is one.

    Args:
        error: What pydantic said.
        model: What was validated, to know the names of its fields.
        data: What it was validated from, to tell keys from pydantic's own path elements.
    """
    lines = []
    for item in error.errors(include_url=False):
        loc, kind = item["loc"], item["type"]
        key = _dotted(loc, data) or "(the whole file)"
        if kind == "extra_forbidden":
            known = _field_names(model, loc[:-1])
            what = "there is no such key" + did_you_mean(str(loc[-1]), known)
        elif kind == "missing":
            what = "is required and missing"
        else:
            what = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            what = re.sub(r"^Input should", "should", what)
            if kind != "value_error":
                what += f", not {_shown(item['input'])}"
            if isinstance(item["input"], str):
                expected = str(item.get("ctx", {}).get("expected", ""))
                what += did_you_mean(item["input"], re.findall(r"'([^']*)'", expected))
        lines.append(f"{key}: {what}")
    return lines


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def _read(name_or_path: str | Path) -> tuple[str, str]:
    """What to call the source in messages, and its text."""
    name = str(name_or_path)
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        known = presets()
        if name not in known:
            listed = ", ".join(known) or "none is installed"
            raise ConfigError(
                f"There is no config called '{name}'{did_you_mean(name, known) or '.'}",
                fix=f"Give a .yaml file, or one of: {listed}.",
            )
        path = known[name]
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ConfigError(
                f"{name} is larger than {MAX_BYTES:,} bytes; it cannot be a config.",
                fix="Give the path of a config file.",
            )
        return name, raw.decode("utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.stem, presets(), n=1, cutoff=0.6)
        fix = f"Use the shipped config by its name: {near[0]}." if near else "Check the path."
        raise ConfigError(f"There is no config file {name}.", fix=fix) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is not text in UTF-8.", fix="Save it as UTF-8.") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{name} cannot be read: {reason}.", fix="Check the path.") from None


def _override(data: dict[str, Any], text: str) -> str:
    """Apply one `a.b=c` to `data`; returns what is wrong with it, or an empty string."""
    dotted, equals, value = text.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        return f"--set {text}: should look like key.key=value"
    try:
        parsed = parse(value)
    except ValueError as error:
        return f"--set {text}: the value is not valid YAML: {error}"
    for depth, key in enumerate(keys[:-1], start=1):
        child = data.get(key)
        if child is None:
            child = data[key] = {}
        if not isinstance(child, dict):
            return f"--set {text}: {'.'.join(keys[:depth])} is {_kind(child)} and has no keys"
        data = child
    data[keys[-1]] = parsed
    return ""


def _dotted(loc: Sequence[int | str], data: Any) -> str:
    """The path as the user wrote it: pydantic puts the tags of unions between the keys."""
    if data is None:
        return ".".join(str(element) for element in loc)
    kept = []
    for place, element in enumerate(loc):
        try:
            data = data[element]
        except (KeyError, IndexError, TypeError):
            missing = isinstance(data, Mapping) and place == len(loc) - 1
            if not missing:
                continue
        kept.append(str(element))
    return ".".join(kept)


def _field_names(model: type[BaseModel] | None, loc: Sequence[int | str]) -> list[str]:
    """Names of the fields of every model that can stand at `loc`."""
    models = [model] if model else []
    for element in loc:
        fields = [m.model_fields[element] for m in models if element in m.model_fields]
        if fields:
            models = [found for field in fields for found in _models_in(field.annotation)]
    return [name for m in models for name in m.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "a list"
    return "a mapping" if isinstance(value, dict) else _shown(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- Shapes of the built-in networks

Width = Annotated[int, Field(ge=4, le=1024)]


class TeacherArch(Strict):
    """A ResNet with statistics pooling."""

    channels: tuple[Width, ...] = Field((16, 32, 64), min_length=1, max_length=16)
    """Channels of each stage; the last is C of the frame features."""
    blocks: int = Field(2, ge=1, le=8)
    """Residual blocks a stage."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Before the head, in training."""


class StudentArch(Strict):
    """A depthwise-separable CNN without padding along time."""

    channels: tuple[Width, ...] = Field((24, 48, 64, 96, 96), max_length=32)
    """Channels of the stem and of each depthwise-separable block."""
    time_kernels: tuple[int, ...] = (3, 3, 3, 3, 3)
    """Kernel sizes along time, one a layer: 1 or 3, the first two 3. They decide the receptive
    field: 31 mel frames
    for all threes; (3, 3, 3, 1, 1) gives 15, for sounds as short as spoken digits."""
    out_channels: Width = 64
    """C of the frame features, after a last 1x1 convolution: the teacher's own C where its head is
    reused, so that frame features match without a further projector."""

    @model_validator(mode="after")
    def _layers_match(self) -> StudentArch:
        if len(self.channels) != len(self.time_kernels):
            raise ValueError("channels and time_kernels need the same length")
        if len(self.channels) < 2:
            raise ValueError("channels needs at least two layers: the stem and one block")
        if set(self.time_kernels) - {1, 3}:
            raise ValueError("time_kernels may hold 1 and 3 only")
        if self.time_kernels[:2] != (3, 3):
            # These two stride by 2: a kernel of 1 would leave every other frame unheard.
            raise ValueError("time_kernels must start with 3, 3")
        return self


STUDENT_PRESETS: dict[str, StudentArch] = {
    "tiny": StudentArch(channels=(16, 24, 32, 48, 48)),
    "small": StudentArch(),
    "base": StudentArch(channels=(32, 64, 128, 192, 256), out_channels=128),
    "large": StudentArch(channels=(48, 96, 192, 320, 448), out_channels=192),
}
"""Students by size, from about 12 k to 350 k parameters (10 classes)."""


# --- What the baselines read from YAML: published weights, and what we had to change
# Their budget is that of the inversion: `bank.inversion.steps`, `batch_size`, `burn_in` and `width`
# hold for all of them; CMI and DeepInversion have no burn-in. Sources of the defaults:
# docs/METHOD.md.


class DeepInversionConfig(Strict):
    """DeepInversion, with a student to compete with: adaptive DeepInversion (ADI)."""

    iterations: int = Field(75, ge=1, le=MANY)
    """Steps on one batch of log-mels, before the next one starts; published: 2000."""
    learning_rate: float = Field(0.1, gt=0)
    """Adam on the log-mels themselves, betas 0.5 and 0.99."""
    class_loss: float = Field(1.0, ge=0)
    """Weight of the cross entropy towards the requested class."""
    batch_norm: float = Field(10.0, ge=0)
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    variation: float = Field(1e-3, ge=0)
    """Weight of the total variation."""
    competition: float = Field(1.0, ge=0)
    """Weight of the disagreement with a sparring student; 0 for DeepInversion without ADI."""
    temperature: float = Field(3.0, gt=0)
    """Softens both answers in that term."""
    student_steps: float = Field(0.4, ge=0)
    """Sparring steps for each step on the log-mels, all after the batch is finished."""


class AlternatingConfig(Strict):
    """A generator and a student that take turns; a weight of 0 switches its term off."""

    latent: int = Field(256, ge=1, le=WIDE)
    """Size of z."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam on the generator, betas 0.5 and 0.999."""
    one_hot: float = Field(0.0, ge=0)
    """Weight of the cross entropy towards the teacher's own answer."""
    activation: float = Field(0.0, ge=0)
    """Weight of the mean absolute pooled state, which is raised."""
    balance: float = Field(0.0, ge=0)
    """Weight of the negative entropy of the batch's mean answer."""
    adversarial: float = Field(0.0, ge=0)
    """Weight of the divergence of a sparring student, which is raised."""
    batch_norm: float = Field(0.0, ge=0)
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    student_steps: int = Field(5, ge=1, le=MANY)
    """Sparring steps for each generator step, on fresh clips; none where `adversarial` is 0."""


class DaflConfig(AlternatingConfig):
    """DAFL."""

    latent: int = Field(512, ge=1, le=WIDE)
    """Size of z."""
    one_hot: float = Field(1.0, ge=0)
    """Weight of the cross entropy towards the teacher's own answer."""
    activation: float = Field(1e-3, ge=0)
    """Weight of the mean absolute pooled state, which is raised."""
    balance: float = Field(20.0, ge=0)
    """Weight of the negative entropy of the batch's mean answer."""


class ZsktConfig(AlternatingConfig):
    """ZSKT."""

    adversarial: float = Field(1.0, ge=0)
    """Weight of the divergence of a sparring student, which is raised."""


class DfqConfig(AlternatingConfig):
    """DFQ."""

    one_hot: float = Field(1.0, ge=0)
    """Weight of the cross entropy towards the teacher's own answer."""
    balance: float = Field(20.0, ge=0)
    """Weight of the negative entropy of the batch's mean answer."""
    adversarial: float = Field(1.0, ge=0)
    """Weight of the divergence of a sparring student, which is raised."""
    batch_norm: float = Field(1.0, ge=0)
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    student_steps: int = Field(10, ge=1, le=MANY)
    """Sparring steps for each generator step, on fresh clips; none where `adversarial` is 0."""


class CmiConfig(Strict):
    """CMI."""

    iterations: int = Field(50, ge=1, le=MANY)
    """Steps on one batch, after which the generator is new; published: 200."""
    latent: int = Field(256, ge=1, le=WIDE)
    """Size of z."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam on generator, z and the embedding's head, betas 0.5 and 0.999."""
    class_loss: float = Field(1.0, ge=0)
    """Weight of the cross entropy towards the requested class."""
    batch_norm: float = Field(1.0, ge=0)
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    adversarial: float = Field(0.5, ge=0)
    """Weight of the disagreement with a sparring student, from the second batch on."""
    contrastive: float = Field(0.8, ge=0)
    """Weight of the contrastive loss."""
    temperature: float = Field(0.1, gt=0)
    """Of the contrastive loss."""
    embedding: int = Field(256, ge=1, le=WIDE)
    """Size of the contrastive embedding."""
    memory: int = Field(40_960, ge=1, le=MANY)
    """Finished clips whose features are kept; the oldest go."""
    negatives: int = Field(4096, ge=1, le=MANY)
    """Of them, drawn at each step."""
    student_steps: float = Field(2.0, ge=0)
    """Sparring steps for each generator step, all after the batch is finished."""


class FastConfig(Strict):
    """Fast-Datafree: a meta-learned generator that needs few steps a batch."""

    iterations: int = Field(5, ge=1, le=MANY)
    """Inner steps from the meta-learned generator to a batch; published: 2, 5 or 10."""
    latent: int = Field(256, ge=1, le=WIDE)
    """Size of z."""
    learning_rate: float = Field(3e-3, gt=0)
    """Adam on the inner generator; the outer one takes it times `iterations`."""
    latent_rate: float = Field(1e-2, gt=0)
    """Adam on z."""
    class_loss: float = Field(0.5, ge=0)
    """Weight of the cross entropy towards the requested class."""
    batch_norm: float = Field(10.0, ge=0)
    """Weight of the BatchNorm-statistics loss, a sum of norms as published."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of earlier batches in the statistics that this loss compares."""
    adversarial: float = Field(1.33, ge=0)
    """Weight of the disagreement with a sparring student."""
    warmup: float = Field(20 / 220, ge=0, le=1)
    """Share of the steps without that term and without sparring."""
    student_steps: float = Field(1.0, ge=0)
    """Sparring steps for each inner step, all after the batch is finished."""


class BaselinesConfig(Strict):
    """Other methods' synthesis, each a source of the bank under its name."""

    deep_inversion: DeepInversionConfig = DeepInversionConfig()
    """DeepInversion (ADI)."""
    dafl: DaflConfig = DaflConfig()
    """DAFL."""
    zskt: ZsktConfig = ZsktConfig()
    """ZSKT."""
    dfq: DfqConfig = DfqConfig()
    """DFQ."""
    cmi: CmiConfig = CmiConfig()
    """CMI."""
    fast: FastConfig = FastConfig()
    """Fast-Datafree."""


BASELINES = tuple(BaselinesConfig.model_fields)
"""Their names, as sources and as keys of `bank.baselines`."""

BUDGET = ("steps", "burn_in", "batch_size", "width")
"""Keys of `bank.inversion` that hold for them too."""


def section(source: str) -> str:
    """Where a source's own keys stand in the config: `bank.cmi` would not be found."""
    return f"bank.baselines.{source}" if source in BASELINES else f"bank.{source}"


def budget(source: str) -> str:
    """Where a source's steps and burn-in stand in the config."""
    return "bank.inversion" if source in BASELINES else f"bank.{source}"


# --- What the inversion reads from YAML; a weight of 0 switches its term off


class AdversarialConfig(Strict):
    """Seek clips on which a student in training still disagrees with the teacher."""

    weight: float = Field(0.0, ge=0)
    """Of the term; 0 trains no sparring student."""
    warmup_steps: int = Field(50, ge=0, le=MANY)
    """Steps before the term counts: an untrained student disagrees everywhere."""
    student_steps: int = Field(2, ge=1, le=MANY)
    """Distillation steps of the sparring student for each generator step."""


class InversionConfig(Strict):
    """Conditional generator against the teacher."""

    steps: int = Field(150, ge=1, le=MANY)
    """Generator steps; each one's clips enter the bank once `burn_in` steps are over."""
    burn_in: int = Field(20, ge=0, le=MANY)
    """First steps, whose clips are thrown away."""
    batch_size: int = Field(48, ge=2, le=WIDE)
    """Clips a step."""
    batch_steps: int = Field(10, ge=1, le=MANY)
    """Generator steps on the same noise and classes. Longer ones fit each clip better and give
    fewer that differ; 1 draws a new batch for each step."""
    latent_rate: float = Field(0.02, ge=0)
    """Adam's learning rate of the noise itself, which learns along where `batch_steps` is above 1;
    0 leaves it as drawn."""
    latent: int = Field(128, ge=1, le=WIDE)
    """Size of z."""
    width: int = Field(64, ge=8, le=WIDE)
    """Channels of the generator's coarsest layer."""
    learning_rate: float = Field(2e-3, gt=0)
    """Adam, betas 0.5 and 0.999."""
    shortest_view: float = Field(0.5, gt=0, le=1)
    """Shortest stretch of a clip, relative to its frames, that the teacher is asked about at a
    step; 1 for whole clips only. Students learn from stretches too."""
    class_loss: float = Field(0.1, ge=0)
    """Weight of the cross entropy towards balanced classes. Larger ones give clips that the teacher
    is surer of than of sounds, and that resemble each other."""
    batch_norm: float = Field(10.0, ge=0)
    """Weight of the relative BatchNorm-statistics loss."""
    contrastive: float = Field(0.2, ge=0)
    """Weight of the feature-invariant contrastive loss."""
    contrastive_memory: int = Field(1024, ge=1, le=MANY)
    """Earlier clips that serve as negatives."""
    temperature: float = Field(0.1, gt=0)
    """Of the contrastive loss."""
    adversarial: AdversarialConfig = AdversarialConfig()
    """Adversarial teacher-student term."""


class TranslatorConfig(Strict):
    """Class-conditioned change of procedural log-mels, learned against the teacher."""

    steps: int = Field(150, ge=1, le=MANY)
    """Steps."""
    burn_in: int = Field(20, ge=0, le=MANY)
    """First steps, whose clips are thrown away."""
    batch_size: int = Field(48, ge=2, le=WIDE)
    """Clips a step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Adam."""
    class_loss: float = Field(1.0, ge=0)
    """Weight of the cross entropy towards balanced classes."""
    batch_norm: float = Field(10.0, ge=0)
    """Weight of the relative BatchNorm-statistics loss."""
    change: float = Field(0.1, ge=0)
    """Weight of the mean squared change."""


class BankConfig(Strict):
    """What the student learns from."""

    frames: int = Field(96, ge=8, le=WIDE)
    """Mel frames (T) of every clip."""
    sources: dict[str, float] = Field(
        default={"inversion": 1.0, "procedural": 1.0, "translator": 1.0}
    )
    """Share of each source in a batch: `inversion`, `procedural`, `translator`, the controls
    `smooth_noise` and `white_noise`, and the baselines `deep_inversion`, `dafl`, `zskt`, `dfq`,
    `cmi` and `fast`. Inversion only: `{inversion: 1}`."""
    procedural_clips: int = Field(5000, ge=1, le=MANY)
    """Clips of the procedural source."""
    control_clips: int = Field(5000, ge=1, le=MANY)
    """Clips of each control source."""
    shard_clips: int = Field(2048, ge=1, le=MANY)
    """Clips in a file of the bank."""
    inversion: InversionConfig = InversionConfig()
    """The inversion."""
    translator: TranslatorConfig = TranslatorConfig()
    """The translator."""
    baselines: BaselinesConfig = BaselinesConfig()
    """Other methods; steps, batch size, burn-in and width are those of `inversion`."""

    @model_serializer(mode="wrap")
    def _only_used_baselines(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A bank without baselines reads, and hashes, as it did before there were any."""
        facts: dict[str, Any] = serialise(self)
        plain = BaselinesConfig()
        kept = {
            name: facts["baselines"][name]
            for name in BASELINES
            if name in self.shares or getattr(self.baselines, name) != getattr(plain, name)
        }
        others = {key: value for key, value in facts.items() if key != "baselines"}
        return others | ({"baselines": kept} if kept else {})

    @model_validator(mode="after")
    def _sources_known(self) -> BankConfig:
        known = {"inversion", "procedural", "translator", "smooth_noise", "white_noise", *BASELINES}
        unknown = sorted(set(self.sources) - known)
        if unknown:
            raise ValueError(
                f"unknown source {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        if any(w < 0 for w in self.sources.values()) or sum(self.sources.values()) <= 0:
            raise ValueError("the weights of the sources must be >= 0, and one must be positive")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Weights that sum to 1, without the sources that are switched off."""
        total = sum(self.sources.values())
        return {name: w / total for name, w in self.sources.items() if w > 0}


def batch_norm_keys(config: BankConfig, source: str) -> list[str]:
    """Keys of a source's weights, other than 0, that need a teacher with BatchNorm statistics."""
    if source in BASELINES:
        found = getattr(config.baselines, source)
    else:
        found = {"inversion": config.inversion, "translator": config.translator}.get(source)
    # The features of CMI's contrastive loss are inputs of BatchNorm layers.
    weights = ("batch_norm", "contrastive") if source == "cmi" else ("batch_norm",)
    return [f"{section(source)}.{key}" for key in weights if getattr(found, key, 0)]


# --- What the distillation reads from YAML


class DistillConfig(Strict):
    """The student's training on the bank; the teacher answers live to every augmented batch."""

    steps: int = Field(800, ge=1, le=MANY)
    """Training steps."""
    batch_size: int = Field(64, ge=2, le=WIDE)
    """Clips a step."""
    learning_rate: float = Field(1.5e-2, gt=0)
    """Peak of the cosine schedule (AdamW)."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW, on matrices and kernels only."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    temperature: float = Field(2.0, gt=0)
    """Softens teacher and student in the logits term."""
    logits: float = Field(1.0, ge=0)
    """Weight of the logits term."""
    before_pooling: float = Field(3.0, ge=0)
    """Weight of the frame-feature term (hidden state before the pooling)."""
    after_pooling: float = Field(3.0, ge=0)
    """Weight of the pooled-statistics term (hidden state after the pooling)."""
    reuse_head: bool = True
    """Keep the teacher's head behind an affine projector; both are one matrix at export."""
    crop_min: int = Field(48, ge=1)
    """Shortest random stretch, in mel frames."""
    crop_max: int = Field(96, ge=1)
    """Longest random stretch, in mel frames."""
    gain: float = Field(0.3, ge=0)
    """Standard deviation of the random loudness, in units of the front end's std."""
    mixup: float = Field(0.25, ge=0, le=1)
    """Probability that a clip is blended with another of its batch, of whatever source."""
    mask_bands: int = Field(0, ge=0)
    """Widest masked stripe of mel bands."""
    mask_frames: int = Field(0, ge=0)
    """Widest masked stripe of frames."""
    checkpoint_steps: int = Field(100, ge=1, le=MANY)
    """Steps between checkpoints."""

    @model_validator(mode="after")
    def _crops_ordered(self) -> DistillConfig:
        if self.crop_min > self.crop_max:
            raise ValueError("crop_min must not exceed crop_max")
        if not (self.logits or self.before_pooling or self.after_pooling):
            raise ValueError("one of logits, before_pooling and after_pooling must be positive")
        if not self.logits and not self.reuse_head:
            raise ValueError("logits 0 needs reuse_head: nothing else would train the head")
        return self


class JourneyConfig(Strict):
    """Teacher to student: the bank and the distillation."""

    student: StudentArch = StudentArch()
    """The student."""
    bank: BankConfig = BankConfig()
    """Synthetic clips."""
    distill: DistillConfig = DistillConfig()
    """Distillation on them."""
    seed: int = Field(0, ge=0)
    """Of everything that chance touches."""

    @model_validator(mode="after")
    def _crop_fits(self) -> JourneyConfig:
        if self.distill.crop_max > self.bank.frames:
            raise ValueError(
                f"distill.crop_max {self.distill.crop_max} exceeds bank.frames {self.bank.frames}"
            )
        return self


# --- What `frami-edge train-teacher` reads from YAML


class MelConfig(Strict):
    """The mel front end. Mean and standard deviation are measured on the training clips."""

    sample_rate: int = 16_000
    """Hz; clips of other rates are resampled."""
    n_fft: int = 512
    """FFT size in samples."""
    win_length: int = 400
    """Window in samples."""
    hop_length: int = 160
    """Samples between frames."""
    n_mels: int = 64
    """Mel bands."""
    f_min: float = 0.0
    """Hz."""
    f_max: float = 0.0
    """Hz; 0 for half the sample rate."""
    mel_scale: Literal["htk", "slaney"] = "htk"
    """Mel formula."""
    norm: Literal["none", "slaney"] = "none"
    """Area normalisation of the bands."""
    power: float = 2.0
    """2 for energy, 1 for magnitude."""
    log: Literal["ln", "log2", "log10", "db"] = "ln"
    """Kind of logarithm."""
    log_eps: float = 1e-6
    """Keeps the logarithm finite."""
    log_floor: Literal["add", "clamp"] = "add"
    """log(x + eps) or log(max(x, eps))."""
    center: bool = False
    """Reflect half a window at both ends. Off suits streams: no start or end case."""

    def spec(self, **statistics: Any) -> MelSpec:
        """The front end with its statistics."""
        return MelSpec(**self.model_dump(), **statistics)

    def model_post_init(self, _: Any) -> None:
        """Let MelSpec check the fields against each other."""
        try:
            self.spec()
        except MelSpecError as error:
            raise ValueError(str(error)) from error


class DataConfig(Strict):
    """Which clips."""

    name: str
    """`fsdd`, `esc10`, `esc50`, `urbansound8k`, `audiomnist`, or `folder:PATH`."""
    fold: str
    """The official fold or split that is held out for testing: the teacher never hears it."""

    @field_validator("fold", mode="before")
    @classmethod
    def _number_is_a_name(cls, value: Any) -> Any:
        # `--set data.fold=1` is a number in YAML.
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class TrainConfig(Strict):
    """The recipe."""

    epochs: int = Field(30, ge=1, le=MANY)
    """Passes over the training clips."""
    batch_size: int = Field(32, ge=2, le=WIDE)
    """Clips a step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of the one-cycle cosine schedule (AdamW)."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW, on matrices and kernels only."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    crop_frames: int = Field(0, ge=0)
    """Train on random stretches of this many mel frames; 0 for whole clips."""
    mixup: float = Field(0.0, ge=0, le=1)
    """Probability that a clip is blended with another."""
    mask_bands: int = Field(8, ge=0)
    """SpecAugment: widest stripe of mel bands."""
    mask_frames: int = Field(0, ge=0)
    """SpecAugment: widest stripe of frames."""
    gain: float = Field(0.2, ge=0)
    """Standard deviation of the random loudness, in units of the front end's std."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Of the cross entropy."""
    checkpoint_epochs: int = Field(1, ge=1, le=MANY)
    """Epochs between checkpoints, from which a killed run is resumed."""


class TeacherConfig(Strict):
    """One teacher."""

    data: DataConfig
    """Training clips and the fold held out."""
    mel: MelConfig = MelConfig()
    """Front end."""
    arch: TeacherArch = TeacherArch()
    """Network."""
    train: TrainConfig = TrainConfig()
    """Recipe."""
    seed: int = Field(0, ge=0)
    """Of weights, order and augmentation."""
