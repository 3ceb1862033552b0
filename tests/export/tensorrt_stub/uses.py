"""Every TensorRT name that our source uses, found by reading it; checked against real bindings.

Run with a binding importable: ``python uses.py FILE...`` prints JSON, ``{"used": [...],
"missing": [...]}``. Types follow from assignments and from the return types in the bindings'
docstrings; parameters that take an object of TensorRT are known by their names (`PARAMETERS`).
What a third argument of ``getattr`` or a ``hasattr`` guards is not required.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

MODULE_NAMES = {"trt", "_trt", "tensorrt", "_tensorrt"}
PARAMETERS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
"""Only where they are annotated ``Any``: our own classes have annotations of their own."""
RENAMED = {"IParserError": "ParserError"}
"""Classes that docstrings call by their C++ name."""


class Uses(ast.NodeVisitor):
    """Walks one module; ``used`` maps dotted names to where they occur."""

    def __init__(self, trt: Any, name: str) -> None:
        self.trt, self.name = trt, name
        self.used: dict[str, str] = {}
        self.calls: list[tuple[str, int, list[str], str]] = []
        self._scopes: list[dict[str, str]] = [{}]
        self._fields: dict[str, str] = {}

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before, self._fields = self._fields, {}
        for _ in range(2):  # methods may use fields that a later method assigns
            self.generic_visit(node)
        self._fields = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope = {}
        for arg in (*node.args.args, *node.args.kwonlyargs):
            loose = isinstance(arg.annotation, ast.Name) and arg.annotation.id == "Any"
            if loose and arg.arg in PARAMETERS:
                scope[arg.arg] = PARAMETERS[arg.arg]
        self._scopes.append({**self._scopes[-1], **scope})
        self.generic_visit(node)
        self._scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if node.value is not None:
            self._bind(node.target, node.value)

    def visit_For(self, node: ast.For) -> None:
        self._bind_type(node.target, self._item(self._type(node.iter)))
        self.generic_visit(node)

    def visit_ListComp(self, node: ast.ListComp | ast.GeneratorExp) -> None:
        self._scopes.append(dict(self._scopes[-1]))
        for part in node.generators:
            self.visit(part.iter)
            self._bind_type(part.target, self._item(self._type(part.iter)))
            for test in part.ifs:
                self.visit(test)
        self.visit(node.elt)
        self._scopes.pop()

    visit_GeneratorExp = visit_ListComp

    def visit_Call(self, node: ast.Call) -> None:
        called = self._type(node.func)
        splat = any(isinstance(a, ast.Starred) for a in node.args)
        if called and not called.startswith("[") and not splat:
            words = [k.arg for k in node.keywords if k.arg]
            self.calls.append((called, len(node.args), words, f"{self.name}:{node.lineno}"))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = self._type(node.value)
        if owner is not None and not owner.startswith("["):
            dotted = f"{owner}.{node.attr}".lstrip(".")
            self.used.setdefault(dotted, f"{self.name}:{node.lineno}")
        self.generic_visit(node)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=False):
                self._bind(one, other)
        else:
            self._bind_type(target, self._type(value))

    def _bind_type(self, target: ast.expr, kind: str | None) -> None:
        if isinstance(target, ast.Name):
            self._scopes[-1].pop(target.id, None)
            if kind is not None:
                self._scopes[-1][target.id] = kind
        elif isinstance(target, ast.Attribute) and kind is not None:
            self._fields[target.attr] = kind

    def _type(self, node: ast.expr) -> str | None:
        """Dotted name of a class or value of TensorRT, ``""`` for the module, ``[`` for a list."""
        if isinstance(node, ast.Name):
            return "" if node.id in MODULE_NAMES else self._scopes[-1].get(node.id)
        if isinstance(node, ast.Attribute):
            if node.attr in MODULE_NAMES:
                return ""
            owner = self._type(node.value)
            if owner is None:
                return self._fields.get(node.attr)
            return f"{owner}.{node.attr}".lstrip(".")
        if isinstance(node, ast.Call):
            called = self._type(node.func)
            return None if not called else self._returned(called)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            self._scopes.append(dict(self._scopes[-1]))
            for part in node.generators:
                self._bind_type(part.target, self._item(self._type(part.iter)))
            inner = self._type(node.elt)
            self._scopes.pop()
            return None if inner is None else f"[{inner}"
        if isinstance(node, (ast.Tuple, ast.List)) and node.elts:
            first = node.elts[0]
            if isinstance(first, ast.Starred):
                return self._type(first.value)
            inner = self._type(first)
            return None if inner is None else f"[{inner}"
        if isinstance(node, ast.Subscript):
            kind = self._type(node.value)
            return kind if isinstance(node.slice, ast.Slice) else self._item(kind)
        return None

    @staticmethod
    def _item(kind: str | None) -> str | None:
        return kind[1:] if kind is not None and kind.startswith("[") else None

    def _returned(self, called: str) -> str | None:
        found = resolve(self.trt, called)
        if isinstance(found, type):
            return called
        said = re.search(r"-> (?:[\w.:]*[.:])?(\w+)", getattr(found, "__doc__", None) or "")
        name = RENAMED.get(said.group(1), said.group(1)) if said else ""
        return name if name and hasattr(self.trt, name) else None


def resolve(trt: Any, dotted: str) -> Any:
    """The object of a dotted name; raises AttributeError where the bindings lack it."""
    found = trt
    for part in dotted.split("."):
        found = getattr(found, part)
    return found


def accepts(found: Any, count: int, words: list[str]) -> bool:
    """Whether a pybind11 function takes so many positional and these keyword arguments.

    Read from its docstring; what has none, or a constructor, accepts everything.
    """
    doc = getattr(found, "__doc__", None) or ""
    name = re.escape(getattr(found, "__name__", "") or "?")
    heads = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", doc, re.MULTILINE)
    lists = [_arguments(head) for head in heads if "*args" not in head]
    if isinstance(found, type) or not lists:
        return True
    for arguments in lists:
        names = [a.split(":")[0].strip() for a in arguments if a.split(":")[0].strip() != "self"]
        needed = sum("=" not in a for a in arguments) - (len(arguments) - len(names))
        fits = set(words) <= set(names[count:])
        if fits and needed <= count + len(words) and count <= len(names):
            return True
    return False


def _arguments(head: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth = [""], 0
    for letter in head:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [p for p in parts if p.strip()]


def check(trt: Any, files: list[Path]) -> dict[str, Any]:
    """Names used in the files, and those that the bindings do not have."""
    used: dict[str, str] = {}
    calls: list[tuple[str, int, list[str], str]] = []
    for file in files:
        uses = Uses(trt, file.name)
        uses.visit(ast.parse(file.read_text(encoding="utf-8")))
        calls += uses.calls
        used.update({name: at for name, at in uses.used.items() if name not in used})
    missing = []
    for name, at in sorted(used.items()):
        try:
            resolve(trt, name)
        except AttributeError:
            missing.append(f"{at}: trt.{name}")
    for name, count, words, at in calls:
        if name.endswith("__"):
            continue  # called on the class, with self
        try:
            fits = accepts(resolve(trt, name), count, words)
        except AttributeError:
            continue  # reported as missing
        if not fits:
            given = ", ".join([f"{count} positional", *words])
            missing.append(f"{at}: trt.{name} does not take these arguments: {given}")
    return {"version": trt.__version__, "used": sorted(used), "missing": missing}


if __name__ == "__main__":
    import tensorrt_bindings

    print(json.dumps(check(tensorrt_bindings, [Path(f) for f in sys.argv[1:]])))
