"""Every reason for waiting that there is, read from the sources: what is given to `waiting`, `WAITS.on` and
`WAITS.begin`, and what a wait's reason is corrected to.

A reason is a constant of a module. Where a function is given it, its callers in the same module are looked at.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("wire", "rollout_server", "reward_server", "trainer")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def reasons_in_sources() -> dict[str, set[str]]:
    """Reasons by the module that waits."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        text = path.read_text()
        if "wire.waits" in text:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if reasons := Source(name, ast.parse(text)).reasons():
                found[name] = reasons
    return found


class Source:
    """One module: its tree, and its constants as they are once it is imported."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name, self.tree = name, tree
        self.constants: dict[str, Any] = vars(importlib.import_module(name))
        self.functions = [node for node in ast.walk(tree) if isinstance(node, Function)]

    def reasons(self) -> set[str]:
        found: set[str] = set()
        for function in self.functions:
            for node in own_nodes(function):
                if (given := reason_given(node)) is not None:
                    found |= self.values(given, function, frozenset())
        return found

    def values(self, node: ast.expr, function: Function, seen: frozenset[str]) -> set[str]:
        """What the expression can be."""
        if isinstance(node, ast.IfExp):
            return self.values(node.body, function, seen) | self.values(node.orelse, function, seen)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            return set(self.constants[ast.unparse(node.func.value)].values())
        assert isinstance(node, ast.Name), f"{self.name}:{node.lineno}: the reason of a wait is no constant"
        for other in own_nodes(function):
            if isinstance(other, ast.Assign) and ast.unparse(other.targets[0]) == node.id:
                return self.values(other.value, function, seen)
        parameters = [argument.arg for argument in function.args.args]
        if node.id in parameters:
            return self.given_to(function, parameters.index(node.id), node.id, seen)
        assert isinstance(self.constants[node.id], str)
        return {self.constants[node.id]}

    def given_to(self, callee: Function, place: int, name: str, seen: frozenset[str]) -> set[str]:
        """What the function's callers give it for a parameter."""
        if callee.name in seen:
            return set()
        found: set[str] = set()
        for caller in self.functions:
            for node in own_nodes(caller):
                if isinstance(node, ast.Call) and called(node) == callee.name:
                    index = place - (callee.args.args[0].arg == "self")
                    given = next((k.value for k in node.keywords if k.arg == name), None) or node.args[index]
                    found |= self.values(given, caller, seen | {callee.name})
        return found


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """Nodes of the function, without those of functions inside it."""
    todo: list[ast.AST] = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        if not isinstance(node, Function):
            yield node
            todo += ast.iter_child_nodes(node)


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)


def reason_given(node: ast.AST) -> ast.expr | None:
    """The reason that the node gives to a wait; None where it gives none."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("waiting", "WAITS.on", "WAITS.begin"):
        return node.args[1]
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("wait.reason"):
        return node.value
    return None
