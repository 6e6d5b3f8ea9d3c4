"""The instructions for a language model that writes conversations: files that a person reads, checked like code.

`prompts/*.yaml` are the shipped ones; a path names one of your own. Which words were used decides what the data is, so
the hash of a prompt stands in every record that it made. A misspelt field would silently lose a rule: it is an error.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llavamed.errors import InputError
from llavamed.instruct.answer import Turn
from llavamed.records import Pair

_FOLDER = "prompts"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Given(_Part):
    """What the teacher reads about an image."""

    label: str
    caption: str
    mentions: tuple[str, ...] = ()


class Example(_Part):
    given: Given
    turns: tuple[Turn, ...] = Field(min_length=1)


class Sight(_Part):
    """The paragraph that says where the teacher's knowledge comes from."""

    blind: str
    sighted: str


class Prompt(_Part):
    """One file. `system` has the slots {turns} and {sight}."""

    version: int
    about: str
    style: Literal["conversation", "description", "closed"]
    mentions: bool  # whether the sentences that cite the figure are shown
    turns: int | None = Field(default=None, gt=0)  # in place of the recipe's
    temperature: float = Field(default=0.0, ge=0, le=2)
    max_tokens: int = Field(default=1200, gt=0)  # of an answer
    sight: Sight
    system: str
    examples: tuple[Example, ...]

    @model_validator(mode="after")
    def _slots(self) -> Self:
        try:
            filled = self.system.format(turns="TURNS", sight="SIGHT")
        except (KeyError, IndexError, ValueError) as error:
            hint = "system: {turns} and {sight} are filled in; write {{ and }} for braces"
            raise ValueError(f"{hint} ({error})") from None
        if not ("TURNS" in filled and "SIGHT" in filled):
            raise ValueError("system: must hold {turns} and {sight}")
        if not self.mentions and any(example.given.mentions for example in self.examples):
            raise ValueError("examples: with mentions, in a prompt without mentions")
        return self

    @property
    def hash(self) -> str:
        """16 hex digits over everything in the file."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def messages(self, pair: Pair, mentions: bool, turns: int, sighted: bool) -> list[dict[str, Any]]:
        """The chat messages for one pair: instructions, worked examples, then what the article says."""
        sight = self.sight.sighted if sighted else self.sight.blind
        chat = [{"role": "system", "content": self.system.format(turns=self.turns or turns, sight=sight.strip())}]
        for example in self.examples:
            told = [turn.model_dump() for turn in example.turns]
            chat.append({"role": "user", "content": _json(self._shown(example.given))})
            chat.append({"role": "assistant", "content": _json({"turns": told})})
        said = tuple(m.sentence for m in pair.mentions) if mentions else ()
        given = Given(label=pair.label, caption=pair.caption, mentions=said)
        return [*chat, {"role": "user", "content": _json(self._shown(given))}]

    def _shown(self, given: Given) -> dict[str, Any]:
        return given.model_dump(exclude=None if self.mentions else {"mentions"})


def shipped() -> list[str]:
    folder = resources.files("llavamed.instruct") / _FOLDER
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load(name: str) -> Prompt:
    """A shipped prompt by name, or a file by its path. Raises InputError naming the field and the nearest valid one."""
    tree = _read(name)
    try:
        return Prompt.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"prompt {name}: {'; '.join(_explain(item) for item in error.errors())}") from None


def _read(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = Path(name)
    if name in seen:
        raise InputError(f"prompt {name}: extends itself ({' -> '.join((*seen, name))})")
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"prompt {path}: no such file; the shipped prompts are {', '.join(shipped())}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"prompt {path}: not UTF-8; save the file as UTF-8") from None
    elif name in shipped():
        text = (resources.files("llavamed.instruct") / _FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(name, shipped(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"prompt {name!r}: not shipped{hint}; give one of {', '.join(shipped())}, or a .yaml file")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"prompt {name}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(tree, dict):
        raise InputError(f"prompt {name}: must be a mapping, not {type(tree).__name__}")
    parent = tree.pop("extends", None)
    return tree if parent is None else {**_read(str(parent), (*seen, name)), **tree}


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), _FIELDS, n=1)
        return f"unknown field {where!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
    return f"{where}: {item['msg']}" if where else str(item["msg"]).removeprefix("Value error, ")


_FIELDS = [name for part in (Prompt, Sight, Example, Given, Turn) for name in part.model_fields] + ["extends"]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
