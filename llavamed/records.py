"""The nouns that cross folders: an article's pair, a conversation, a benchmark's question, a prediction.

Everything a stage hands to the next is one of these, written as one JSON object a line. `to_json`
and `from_json` are exact inverses; unknown keys are kept out. What people write themselves
(conversations, questions) is checked field by field, with errors that name the record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, Self, cast, get_args

from llavamed.errors import InputError

DOMAINS = ("chest_xray", "mri", "ct_scan", "histology", "gross", "other")  # LLaVA-Med's five, and the rest

Role = Literal["system", "user", "assistant"]


class _Record:
    """JSON in and out for the dataclasses below."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k in known})


@dataclass(frozen=True)
class Mention(_Record):
    """One place in the running text that cites a figure."""

    sentence: str
    paragraph: str = ""
    section: str = ""
    panels: str = ""  # the panel letters cited, e.g. "AB"


@dataclass(frozen=True)
class Pair(_Record):
    """One figure image with its caption and all that the article says about it.

    `key` is unique in a corpus and safe as a file name; `file` is the member of the shard
    (`key` + the image's own extension); `licence` is an SPDX id such as `CC-BY-4.0` or "unknown".
    """

    key: str
    file: str
    caption: str
    label: str = ""
    mentions: tuple[Mention, ...] = ()
    title: str = ""
    authors: str = ""  # of the article, as printed, commas between; of very many the first with "et al."
    article: str = ""  # PMCID with version where known, else DOI or the file's stem
    figure: str = ""  # the <fig> id
    pmid: str = ""
    doi: str = ""
    licence: str = "unknown"
    credit: str = ""  # what the figure says about where it is from: attributions, and credit lines of its caption
    source: str = ""  # where the XML was read from
    width: int = 0  # pixels
    height: int = 0  # pixels
    sha256: str = ""  # of the image's bytes
    phash: str = ""  # perceptual hash, 64 bits as 16 hex digits: close for pictures that look the same
    domain: str = "other"
    domain_score: float = 0.0  # 0-1, share of the keyword votes
    is_plot: bool = False  # a chart or a diagram, not a picture of a patient or specimen
    is_compound: bool = False  # several panels in one image
    parent: str = ""  # of a panel: the key of the whole figure, which is a pair of its own
    panel: str = ""  # its label there: "A", "left"
    panel_box: str = ""  # where it lies in the whole figure: "left,top,right,bottom", pixels
    whole_because: str = ""  # of a figure that was to be split and was not: why

    @property
    def text_length(self) -> int:
        """Characters of its long texts."""
        said = sum(len(mention.sentence) + len(mention.paragraph) for mention in self.mentions)
        return len(self.caption) + len(self.title) + len(self.authors) + len(self.credit) + said

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        mentions = tuple(Mention.from_json(m) for m in row.get("mentions", ()))
        return super().from_json({**row, "mentions": mentions})


_PARTS = {"image": ("type",), "text": ("type", "text")}  # the keys of a content part


@dataclass(frozen=True)
class Message(_Record):
    """One turn. `content` is a tuple of {"type": "image"} and {"type": "text", "text": ...} parts."""

    role: Role
    content: tuple[dict[str, str], ...]

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.content if part["type"] == "text")

    @property
    def num_images(self) -> int:
        return sum(part["type"] == "image" for part in self.content)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """`content` may be a plain string, as OpenAI's clients write it. Raises InputError for anything else."""
        role, content = row.get("role"), row.get("content")
        if role not in get_args(Role):
            raise InputError(f"role {role!r}; it must be one of {', '.join(get_args(Role))}")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple):
            raise InputError(f"content {content!r}; it must be text or a list of parts")
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in _PARTS or not part.keys() >= set(_PARTS[kind]) or not isinstance(part.get("text", ""), str):
                raise InputError(
                    f'content part {part!r}; it must be {{"type": "image"}} or {{"type": "text", "text": ...}}'
                )
        known = (_PARTS[part["type"]] for part in parts)
        kept = tuple({key: part[key] for key in keys} for part, keys in zip(parts, known, strict=True))
        return cls(cast(Role, role), kept)


@dataclass(frozen=True)
class Conversation(_Record):
    """Images and the turns about them. `images` holds keys of a corpus or paths below an image folder."""

    id: str
    images: tuple[str, ...]
    messages: tuple[Message, ...]
    source: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Raises InputError naming the record for a missing or malformed field."""
        where = f"record {row.get('id')!r}"
        images, messages = row.get("images"), row.get("messages")
        if not isinstance(row.get("id"), str):
            raise InputError(f"{where}: the id must be text")
        if not isinstance(images, list | tuple) or not all(isinstance(image, str) for image in images):
            raise InputError(f"{where}: images must be a list of keys or paths")
        if not isinstance(messages, list | tuple) or not all(isinstance(message, dict) for message in messages):
            raise InputError(f"{where}: messages must be a list of turns")
        try:
            turns = tuple(Message.from_json(message) for message in messages)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        return super().from_json({**row, "messages": turns})


@dataclass(frozen=True)
class Question(_Record):
    """One benchmark item. `answer` is the reference; closed questions are those with a fixed option set.

    Where the options are asked as A, B, C ..., `letter` is the right one's, and an empty option is a letter that is
    not offered. Where several people answered, `answers` has what each said (or all that is accepted).
    """

    id: str
    image: str  # path below the benchmark's image folder; "" where the question has none
    question: str
    answer: str
    closed: bool
    options: tuple[str, ...] = ()  # e.g. ("yes", "no"); empty for open questions
    groups: dict[str, str] = field(default_factory=dict)  # e.g. {"organ": "CHEST", "type": "PRES"}
    letter: str = ""
    answers: tuple[str, ...] = ()
    more_images: tuple[str, ...] = ()  # those after the first

    @property
    def images(self) -> tuple[str, ...]:
        return (self.image, *self.more_images) if self.image else self.more_images

    @property
    def references(self) -> tuple[str, ...]:
        return self.answers or (self.answer,)

    @property
    def lettered(self) -> dict[str, str]:
        """Letter -> option, of those offered."""
        return {letter: text for letter, text in zip(ascii_uppercase, self.options, strict=False) if text}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Raises InputError naming the question for a missing or malformed field."""
        texts = ("id", "image", "question", "answer")
        wrong = [name for name in texts if not isinstance(row.get(name), str)]
        kinds: dict[str, tuple[Any, Any]] = {
            "closed": (bool, None),
            "groups": (dict, {}),
            "letter": (str, ""),
            **{name: (list | tuple, ()) for name in ("options", "answers", "more_images")},
        }
        wrong += [name for name, (kind, default) in kinds.items() if not isinstance(row.get(name, default), kind)]
        if wrong:
            raise InputError(f"question {row.get('id')!r}: {', '.join(wrong)} missing or of the wrong type")
        return super().from_json(row)


@dataclass(frozen=True)
class Prediction(_Record):
    """A model's answer to the question with the same id. `failed` says why there is none."""

    id: str
    text: str
    failed: str = ""
    control: str = "real"  # how it was asked: one of evaluate.controls.CONTROLS

    def __post_init__(self) -> None:
        if any("\ud800" <= letter <= "\udfff" for letter in self.text):  # half of an emoji, which UTF-8 cannot have
            whole = self.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            object.__setattr__(self, "text", whole)


def user(text: str, images: int = 0) -> Message:
    """A user turn with its images before the text, as LLaVA-Med v1.5 has them."""
    return Message("user", (*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}))


def assistant(text: str) -> Message:
    return Message("assistant", ({"type": "text", "text": text},))


def write_jsonl(path: Path, records: Iterable[_Record]) -> int:
    """Write one JSON object a line, in place by rename; keys in field order, so that equal records are equal bytes."""
    count = 0
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
            count += 1
    aside.replace(path)
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file. Raises InputError with file and line for anything else."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a .jsonl file")
    with path.open("rb") as lines:
        yield from parse_jsonl(lines, str(path))


def parse_jsonl(lines: Iterable[bytes], where: str) -> Iterator[dict[str, Any]]:
    """The same of lines that are open already; `where` names them in errors."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))  # Windows' mark before the first
        except UnicodeDecodeError:
            raise InputError(f"{where}:{number}: not UTF-8; save the file as UTF-8") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{where}:{number}: not JSON ({error.msg}); each line must be one object") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}:{number}: a {type(row).__name__}, not an object")
        yield row


def read_conversations(path: Path) -> Iterator[Conversation]:
    for row in read_jsonl(path):
        try:
            yield Conversation.from_json(row)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
