"""Ask a model: here, or wherever it is served."""

from __future__ import annotations

from pathlib import Path

from llavamed.engine.request import Engine, Request, Unanswered, public_name

__all__ = ["Engine", "Request", "Unanswered", "connect", "public_name"]


def connect(model: str) -> Engine:
    """The engine for a folder (run, stage or model) or for an endpoint URL, optionally `URL#model-name`.

    Raises InputError if the folder is absent or holds no model that loads.
    """
    if model.startswith(("http://", "https://")):
        from llavamed.engine.remote import RemoteEngine

        url, _, name = model.partition("#")
        return RemoteEngine(url, name)
    from llavamed.engine.local import LocalEngine

    return LocalEngine(Path(model).expanduser())
