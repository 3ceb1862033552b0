"""docs/MY_TEACHER.md, run as a reader would: every file written, every command typed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "MY_TEACHER.md"
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    ran = []
    for language, name, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if name:
            (tmp_path / name).write_text(text)
        for line in text.splitlines() if language == "sh" else ():
            words = shlex.split(line)
            program = ["-m", "frami_edge"] if words[0] == "frami-edge" else []
            assert words[0] in ("frami-edge", "python")
            done = subprocess.run(
                [sys.executable, *program, *words[1:]],
                cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            ran.append(words[1])
            if words[1:2] == ["inspect"]:
                assert "bn2" in done.stdout
                assert "classify@in" in done.stdout
    assert ran == ["train.py", "inspect", "distill", "inspect", "export"]
    assert (tmp_path / "runs/keywords/export/student.fp32.onnx").is_file()
