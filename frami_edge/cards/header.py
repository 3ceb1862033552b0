"""The YAML header of a model card, as Hugging Face's hub defines it (its docs, "Model Cards")."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from frami_edge import _yaml

TASK: Final = "audio-classification"
LIBRARY: Final = "frami-edge"
# The ids that the hub knows, as far as sounds and weights use them.
_HUB_LICENCES: Final = frozenset(
    {
        "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0",
        "mpl-2.0", "unlicense", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
        "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
        "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
    }
)  # fmt: skip
_HEADER: Final = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)
_MOST_HEADER: Final = 1 << 20


@dataclass(frozen=True)
class Result:
    """One measured figure, for the card's model-index.

    Attributes:
        data: Name of the data set that it was measured on.
        split: Fold or split.
        metric: Such as `accuracy`.
        value: A share, 0 to 1.
        name: In words, with the file or the condition that it belongs to.
    """

    data: str
    split: str
    metric: str
    value: float
    name: str


def licence_id(licence: str) -> str:
    """A licence as hubs write it: `CC BY-SA 4.0` is `cc-by-sa-4.0`; empty where none is known."""
    if licence.strip().lower() in ("", "not stated", "unknown"):
        return ""
    return re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")


def model_header(
    *,
    name: str,
    licence: str,
    tags: Sequence[str],
    datasets: Sequence[str] = (),
    results: Sequence[Result] = (),
) -> str:
    """The header with both of its fences.

    Args:
        name: Of the model, for the model-index.
        licence: As the data set or card states it; without one the field is left out.
        tags: Beside the task.
        datasets: On which it was trained; a student heard none. Folders of one's own are left out.
        results: Measured on real clips.
    """
    fields: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": TASK}
    known = licence_id(licence)
    if known in _HUB_LICENCES:
        fields["license"] = known
    elif known:
        fields |= {"license": "other", "license_name": known}
    fields["tags"] = [TASK, *tags]
    named = [data for data in datasets if ":" not in data]
    if named:
        fields["datasets"] = named
    if results:
        fields["metrics"] = sorted({result.metric for result in results})
        fields["model-index"] = [{"name": name, "results": [_entry(one) for one in results]}]
    return f"---\n{_yaml.dump(fields)}---"


def read_header(text: str) -> dict[str, Any]:
    """The header of a card.

    Raises:
        ValueError: There is none, or it is no YAML mapping; says where.
    """
    found = _HEADER.match(text[:_MOST_HEADER])
    if found is None:
        raise ValueError("it does not begin with a YAML header between two lines of ---")
    fields = _yaml.parse(found[1])
    if not isinstance(fields, Mapping):
        raise ValueError("its header is no YAML mapping")
    return {str(key): value for key, value in fields.items()}


def _entry(result: Result) -> dict[str, Any]:
    return {
        "task": {"type": TASK},
        "dataset": {"type": result.data, "name": result.data, "split": result.split},
        "metrics": [{"type": result.metric, "value": round(result.value, 6), "name": result.name}],
    }
