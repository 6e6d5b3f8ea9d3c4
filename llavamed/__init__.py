"""llavamed: open-access biomedical literature in, a vision-language assistant and its proof out.

    articles -> pairs -> conversations -> model -> predictions -> scores

`Assistant.load(path).ask(image, "What is shown?")` is the short way in; each stage is a package
(`corpus`, `instruct`, `train`, `evaluate`, `serve`) and a command of the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llavamed.engine.assistant import Assistant

__all__ = ["Assistant", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Assistant":  # imported on first use: torch takes seconds, `llavamed --help` must not
        from llavamed.engine.assistant import Assistant

        return Assistant
    raise AttributeError(f"module 'llavamed' has no attribute {name!r}")
