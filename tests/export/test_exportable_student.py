"""What makes a student exportable, on every Python: submodules are found too."""

from __future__ import annotations

from export_kit import TinyStudent
from torch import nn

from frami_edge_export.graph import missing_parts


def test_a_student_whose_trunk_is_a_submodule_lacks_nothing() -> None:
    student = TinyStudent()
    assert "trunk" in dict(student.named_children())
    assert missing_parts(student) == []


def test_what_is_missing_is_named() -> None:
    student = TinyStudent()
    del student.trunk
    assert missing_parts(student) == ["trunk"]
    assert "collapsed_head" in missing_parts(nn.Linear(2, 2))
