from __future__ import annotations

import sys
from pathlib import Path

# Teachers are named as module:callable, so the zoo has to be importable by name.
sys.path.insert(0, str(Path(__file__).parent))
