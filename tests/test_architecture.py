"""Imports only point down: docs/architecture.md, checked on every import statement of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import llavamed

PACKAGE = Path(llavamed.__file__).parent
GROUND = ("errors", "printing", "progress", "records", "manifest", "recipe", "report")
FLOORS = (  # lowest first; the ground floor's modules may import each other
    GROUND,
    ("imaging",),
    ("model",),
    ("engine",),
    ("corpus",),
    ("instruct",),
    ("train",),
    ("evaluate",),
    ("pipeline", "doctor"),
    ("serve", "demo"),
    ("corpus_cli", "eval_cli"),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, first name below llavamed) of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            if node.module == "llavamed":
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif node.module and node.module.startswith("llavamed."):
                yield node.lineno, node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("llavamed."):
                    yield node.lineno, alias.name.split(".")[1]


def test_every_module_stands_on_a_floor() -> None:
    found = {
        p.stem if p.is_file() else p.name
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert found - {"__init__"} == set(LEVEL)


def test_imports_only_point_down() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue  # the package's front door imports what it offers, on first use
        for line, name in imports(path):
            level = LEVEL.get(name)
            if level is None or name == own or (own in GROUND and name in GROUND):
                continue
            if level >= LEVEL[own]:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports llavamed.{name}")
    assert not wrong, "imports that do not point down:\n" + "\n".join(wrong)


def test_the_ground_floor_has_no_circles() -> None:
    graph = {name: {n for _, n in imports(PACKAGE / f"{name}.py") if n in GROUND} for name in GROUND}
    while graph:
        free = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert free, f"circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_the_front_door_is_light() -> None:
    """`llavamed --help` must answer at once: nothing heavy at import of the package, the CLI or the ground floor."""
    heavy = {"torch", "transformers", "gradio", "fastapi", "matplotlib", "pyarrow", "numpy", "openai", "lxml", "PIL"}
    for name in ("__init__", "cli", "eval_cli", "doctor", *GROUND):
        tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            assert not {n.split(".")[0] for n in names} & heavy, f"{name}.py:{node.lineno}"
