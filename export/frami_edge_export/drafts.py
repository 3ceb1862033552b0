"""The files of one export before they are timed, judged and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx

from frami_edge_export.errors import ExportError
from frami_edge_export.graph import sha256
from frami_edge_export.lint import Finding, lint_tensorrt
from frami_edge_export.report import Artifact, Gate


@dataclass(frozen=True)
class Draft:
    """One file: what it is, its bytes, and the graph that stands for it in the measurements."""

    artifact: Artifact
    data: bytes
    graph: onnx.ModelProto | None = None
    """What is timed and linted; None for a file that is no ONNX graph, or is timed elsewhere."""

    @classmethod
    def of(cls, artifact: Artifact, data: bytes, graph: onnx.ModelProto | None = None) -> Draft:
        """Size, hash and the TensorRT lint filled in; a graph is linted, anything else is not."""
        found: tuple[Finding, ...] = () if graph is None else lint_tensorrt(graph)
        said = "" if graph is None else _lint_word(len(found))
        filled = dataclasses.replace(
            artifact,
            bytes=len(data),
            sha256=sha256(data),
            lint=said,
            findings=tuple(dataclasses.asdict(f) for f in found),
        )
        return cls(filled, data, graph)


@dataclass
class Bundle:
    """All drafts of one export in order, and what must hold.

    Another file is one `add`: `export_student` times every graph in it, asks ``evaluate`` about
    every streaming file, judges and writes whatever was added.
    """

    drafts: list[Draft] = field(default_factory=list)
    gates: list[Gate] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    """Files beside the artefacts, such as ``calib.json``."""
    notes: list[str] = field(default_factory=list)

    def add(self, draft: Draft, *gates: Gate) -> None:
        """One more file and the gates that concern it.

        Raises:
            ExportError: A file of that name, or path, is in already.
        """
        names = {d.artifact.name for d in self.drafts} | {d.artifact.path for d in self.drafts}
        if {draft.artifact.name, draft.artifact.path} & names:
            raise ExportError(
                f"{draft.artifact.path} would be written twice.", fix="Choose another name."
            )
        self.drafts.append(draft)
        self.gates.extend(gates)

    @property
    def artifacts(self) -> list[Artifact]:
        """In order."""
        return [draft.artifact for draft in self.drafts]

    @property
    def graphs(self) -> dict[str, tuple[str, onnx.ModelProto]]:
        """Kind and graph of everything that can be timed on this CPU, by artefact name."""
        return {
            d.artifact.name: (d.artifact.kind, d.graph) for d in self.drafts if d.graph is not None
        }

    @property
    def blobs(self) -> dict[str, bytes]:
        """Bytes of every artefact, by its name."""
        return {d.artifact.name: d.data for d in self.drafts}

    def contents(self, more: Sequence[tuple[str, bytes]] = ()) -> dict[str, bytes]:
        """Every file to write, by its file name."""
        return {d.artifact.path: d.data for d in self.drafts} | self.files | dict(more)


def _lint_word(count: int) -> str:
    if count == 0:
        return "clean"
    return f"{count} finding" + ("s" if count > 1 else "")
