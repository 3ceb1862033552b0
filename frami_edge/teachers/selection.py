"""Class selection: which of a teacher's classes a student shall know.

Shape legend: B batch, T mel frames, K classes of the teacher, S selected ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from frami_edge.checkpoint import Teacher
from frami_edge.errors import ConfigError
from frami_edge.io import nfc
from frami_edge.models import Hidden, TeacherLike

OTHER = "other"
"""Label of what is left of a softmax teacher's probability."""

Classes = str | int | Sequence[str | int]
Keep = Classes | Mapping[str, Classes]


def select_classes(teacher: Teacher, keep: Keep) -> Teacher:
    """The same teacher with the kept classes alone.

    A softmax teacher's remaining probability becomes a last class, `other`; a sigmoid teacher gives
    one detector per kept class.

    Args:
        teacher: Any teacher.
        keep: Classes by name or index, several in one string separated by commas, or groups: a
            mapping from a new label to its classes, or `"dog=Dog,Bark"`. Capitals do not matter,
            and of a label such as `Baby cry, infant cry` one of its names is enough.

    Raises:
        ConfigError: A class is unknown, the selection is empty, or a class is named twice.
    """
    if teacher.card.keep is not None:
        raise ConfigError(
            f"The teacher is already a selection: {', '.join(teacher.labels)}.",
            fix="Select from the whole teacher.",
        )
    groups = read_keep(keep, teacher.labels)
    members = {name: tuple(teacher.labels[i] for i in index) for name, index in groups.items()}
    selected = {i for index in groups.values() for i in index}
    rest = [i for i in range(len(teacher.labels)) if i not in selected]
    labels = tuple(groups)
    if rest and teacher.output == "softmax":
        if OTHER in labels:
            raise ConfigError(
                f"'{OTHER}' is the label of what is not selected.",
                fix=f"Give that group another name: --keep NAME={','.join(members[OTHER])}.",
            )
        labels = (*labels, OTHER)
    model = SelectedTeacher(teacher.model, tuple(groups.values()), rest, teacher.output)
    card = teacher.card.model_copy(update={"labels": labels, "keep": members})
    return Teacher(model.eval(), card, teacher.mel, teacher.sha256, teacher.description)


def read_keep(keep: Keep, labels: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Index of the teacher's classes behind each kept label.

    Raises:
        ConfigError: As `select_classes`.
    """
    found: list[tuple[str, tuple[int, ...]]] = []
    if isinstance(keep, Mapping):
        for name, members in keep.items():
            index = [i for text in _texts(members) for i in _classes(text, labels)]
            found.append((nfc(str(name).strip()), tuple(index)))
    else:
        for text in _texts(keep):
            name, equals, members = text.partition("=")
            if equals and _index(text, labels) is None:
                found.append((nfc(name.strip()), _classes(members, labels)))
            else:
                found += [(labels[i], (i,)) for i in _classes(text, labels)]
    if not found or any(not name or not index for name, index in found):
        raise ConfigError(
            "The selection of classes is empty.", fix='Name classes: --keep "Dog,Baby cry".'
        )
    names = [name for name, _ in found]
    every = [i for _, index in found for i in index]
    doubled = [n for n in names if names.count(n) > 1]
    doubled += [labels[i] for i in every if every.count(i) > 1]
    if doubled:
        raise ConfigError(
            f"The selection has '{doubled[0]}' twice.", fix="Keep every class once, in one group."
        )
    return dict(found)


def _texts(classes: Classes) -> list[str]:
    return [str(c) for c in ([classes] if isinstance(classes, str | int) else classes)]


def _classes(text: str, labels: Sequence[str]) -> tuple[int, ...]:
    """Indices of the classes in a list such as `Dog, Baby cry`; labels may hold commas too."""
    parts = [part.strip() for part in text.split(",")]
    found = []
    while parts:
        for length in range(len(parts), 0, -1):
            index = _index(", ".join(parts[:length]), labels)
            if index is not None:
                found.append(index)
                parts = parts[length:]
                break
        else:
            if not parts[0]:
                parts = parts[1:]
                continue
            raise _unknown(parts[0], labels)
    return tuple(found)


def _index(name: str, labels: Sequence[str]) -> int | None:
    """A class by its label, by one of the names in its label, or by its index."""
    wanted = _folded(name)
    whole = [i for i, label in enumerate(labels) if _folded(label) == wanted]
    exact = [i for i in whole if nfc(labels[i]) == nfc(name)]
    part = [i for i, label in enumerate(labels) if wanted in map(_folded, label.split(","))]
    for candidates in (exact, whole, part):
        if len(candidates) == 1:
            return candidates[0]
    if len(part) > 1:
        raise ConfigError(
            f"'{name}' may be {' or '.join(repr(labels[i]) for i in part)}.",
            fix="Give the whole label, or its index.",
        )
    return int(name) if name.isdecimal() and int(name) < len(labels) else None


def _folded(name: str) -> str:
    return " ".join(nfc(name).casefold().replace("_", " ").split())


def _unknown(name: str, labels: Sequence[str]) -> ConfigError:
    names = {_folded(part): label for label in labels for part in (label, *label.split(","))}
    wanted = _folded(name)
    near = [label for part, label in names.items() if wanted and wanted in part]
    near += [names[part] for part in difflib.get_close_matches(wanted, names, 3, 0.6)]
    shown = ", ".join(f"'{label}'" for label in list(dict.fromkeys(near))[:4])
    fix = f"Did you mean {shown}?" if shown else "`frami-edge inspect --json` lists its classes."
    return ConfigError(f"The teacher has no class '{name}'.", fix=fix)


class SelectedTeacher(nn.Module):
    """A teacher's hidden states with the logits of selected classes.

    ``z_group = logsumexp z_i`` over the classes of a group, and over all others for `other`, which
    gives the softmax teacher's own probabilities; with a sigmoid teacher ``z_group = max z_i``, for
    its labels overlap (a bark is a dog as well).

    Args:
        model: The whole teacher.
        groups: Indices of the classes behind each selected label.
        rest: Indices of the classes that are not selected.
        output: How the teacher's logits become scores.
    """

    def __init__(
        self,
        model: TeacherLike,
        groups: Sequence[Sequence[int]],
        rest: Sequence[int],
        output: Literal["softmax", "sigmoid"],
    ) -> None:
        super().__init__()
        self.model = cast(nn.Module, model)
        self.takes = model.takes
        self.channels, self.pooled_size = model.channels, model.pooled_size
        self.frame_stride, self.frame_offset = model.frame_stride, model.frame_offset
        self.receptive_field: int | None = getattr(model, "receptive_field", None)
        self.output = output
        self.groups = [list(group) for group in groups]
        if rest and output == "softmax":
            self.groups.append(list(rest))
        self.head = self._head()
        """The affine map from pooled state to logits; None where there is none."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """Those of the whole teacher."""
        return getattr(self.model, "doubts", ())

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the whole teacher."""
        return getattr(self.model, "notes", ())

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Frame features, pooled state and the S selected logits."""
        whole = cast(TeacherLike, self.model).hidden(x_B1MT, lengths_B)
        logits_BS = self._selected(whole.logits_BK)
        return Hidden(whole.frames_BCT, whole.pooled_BD, logits_BS, whole.logits_BK)

    def forward(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Logits (B, S)."""
        return self._selected(self.model(x_B1MT, lengths_B))

    def _selected(self, logits_BK: Tensor) -> Tensor:
        if self.output == "sigmoid":
            columns = [logits_BK[:, group].amax(dim=1) for group in self.groups]
        else:
            columns = [logits_BK[:, group].logsumexp(dim=1) for group in self.groups]
        return torch.stack(columns, dim=1)

    def _head(self) -> nn.Linear | None:
        """Rows of the teacher's head, where every selected logit is one of its outputs."""
        whole = cast(TeacherLike, self.model).head
        if whole is None or any(len(group) > 1 for group in self.groups):
            return None
        rows = [group[0] for group in self.groups]
        head = nn.Linear(whole.in_features, len(rows), device=whole.weight.device)
        with torch.no_grad():
            head.weight.copy_(whole.weight[rows])
            head.bias.copy_(whole.bias[rows])
        return head.requires_grad_(False)
