"""Run with NVIDIA's bindings on the path: do they have every name that our TensorRT code uses?

Prints a JSON object with the bindings' version, the names that were read from our source, and those
that the bindings lack. A name is read from ``trt.A.B`` and from ``variable.member``, where the
variable is one of `VARIABLES` inside one of `SCOPES`.
"""

import ast
import json
import sys
from pathlib import Path

import tensorrt_bindings

SCOPES = ("build_engine", "count_layers", "make_logger", "EngineModel")
VARIABLES = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
    "e": "ParserError", "config": "IBuilderConfig", "shapes": "IOptimizationProfile",
    "times": "ITimingCache", "runtime": "Runtime", "engine": "ICudaEngine",
    "context": "IExecutionContext", "inspector": "EngineInspector",
}  # fmt: skip


def names(node):
    """Dotted names of the bindings under a node of our source."""
    found = set()
    for child in ast.walk(node):
        parts = []
        while isinstance(child, ast.Attribute):
            parts.insert(0, child.attr)
            child = child.value
        root = child.id if isinstance(child, ast.Name) else ""
        if root == "self" and len(parts) > 1:  # self._context.execute_async_v3
            root, parts = parts[0].lstrip("_"), parts[1:]
        if parts and root == "trt":
            found.add(".".join(parts))
        elif parts and root in VARIABLES:
            found.add(f"{VARIABLES[root]}.{parts[0]}")
    return found


def resolves(dotted):
    """Whether the bindings have the name."""
    value = tensorrt_bindings
    for part in dotted.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


used = set()
for path in sys.argv[1:]:
    for scope in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))):
        if getattr(scope, "name", "") in SCOPES:
            used |= names(scope)
missing = sorted(name for name in used if not resolves(name))
print(
    json.dumps({"version": tensorrt_bindings.__version__, "used": sorted(used), "missing": missing})
)
