"""The program in the runtime's README runs as it is printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "runtime" / "README.md"


def test_the_ten_lines_run(model_path: Path, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    assert len(lines) == 1 + 9
    assert re.fullmatch(r"\d\.\d\d-\d\.\d\d s  [a-z ]+  [01]\.\d\d", lines[1])
