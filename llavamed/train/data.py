"""A stage's examples: read once, checked before anything is trained, served in the order of the plan.

In: a conversations .jsonl and the images it names. Out: `Examples` (token ids, supervised masks, lengths:
all that planning needs) and, step by step, `Batch`es made in background threads while the model computes.

What is hard is to fail early. Everything that could stop a run at its ninth hour is looked at in its first
minutes: every record of every stage is encoded and every image is decoded once, and all problems are reported
together, by reason, with the first records of each (`BadRecords` has them all). Decoding ahead costs a few percent of
an epoch; when the images are few enough their pixels are kept (`PIXEL_CACHE_BYTES`), and then it costs nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llavamed import manifest
from llavamed.corpus.store import INDEX, Corpus, open_images
from llavamed.errors import InputError
from llavamed.imaging.decode import decode
from llavamed.model import pixels as preprocessing
from llavamed.model.chat import encode
from llavamed.progress import Progress, track
from llavamed.records import Conversation, read_jsonl
from llavamed.train.forward import Batch, collate
from llavamed.train.loss import token_weights
from llavamed.train.pack import Pack, Schedule, Step

PIXEL_CACHE_BYTES = 512 * 2**20  # preprocessed pixels kept in memory: all images that a stage adds, or none of them
_IMAGES_AT_ONCE = 16  # a call of the image processor is a quarter of what a small one takes, however many it is given
_NAMED = 3  # records named per reason
_THREADS = max(2, min(16, os.cpu_count() or 2))
_PACKS_AHEAD = 4


class BadRecords(InputError):
    """Records that cannot be trained on: (id, reason) each."""

    def __init__(self, data: Path, problems: list[tuple[str, str]], total: int) -> None:
        super().__init__(f"{data}: {_summary(problems, total)}")
        self.problems = problems


@dataclass(frozen=True)
class Examples:
    """N conversations as tokens, in the order of the file."""

    ids: list[str]
    images: list[tuple[str, ...]]
    input_ids: list[NDArray[np.int32]]  # each (tokens,)
    supervised: list[NDArray[np.bool_]]  # each (tokens,)
    lengths: NDArray[np.int64]  # (N,) tokens
    targets: NDArray[np.int64]  # (N,) supervised tokens


class Pictures(Protocol):
    """What is asked for pictures by key: `Pixels`, or `features.Features` in their place."""

    def load(self, key: str) -> NDArray[np.float32]: ...


class Pixels:
    """Preprocessed images by key, from a corpus or a folder of image files; stages may share it.

    `load` may be called from several threads.
    """

    def __init__(self, images: Path | None, processor: Any) -> None:
        self._open_image = _refuse if images is None else open_images(images)
        self._image_processor = processor.image_processor
        self._kept: dict[str, NDArray[np.float32]] = {}
        self._looked_at: dict[str, InputError | None] = {}

    def load(self, key: str) -> NDArray[np.float32]:
        """(3, height, width) as the vision tower takes it. Raises InputError naming the image."""
        if key in self._kept:
            return self._kept[key]
        return self._pixels([self._decode(key)])[0]

    def check(self, keys: Iterable[str]) -> dict[str, InputError]:
        """Decode every image once; return what was wrong, by key. Keeps the pixels if all fit."""
        wanted = list(dict.fromkeys(keys))
        new = [key for key in wanted if key not in self._looked_at]
        images = len(self._kept) + len(new)
        group_size = min(_IMAGES_AT_ONCE, max(1, len(new) // _THREADS))
        if not preprocessing.pads_and_resizes(self._image_processor):
            group_size = 1  # whole pictures are too large to be held

        fit = True

        def look(group: Sequence[str]) -> int:
            nonlocal fit
            decoded: dict[str, Image.Image] = {}
            for key in group:
                try:
                    image = self._decode(key)
                    self._looked_at[key] = None
                except InputError as error:
                    self._looked_at[key] = error
                    continue
                if fit:
                    decoded[key] = preprocessing.resized(self._image_processor, image) if group_size > 1 else image
            if decoded:
                pixels = self._pixels(list(decoded.values()))
                fit = fit and pixels[0].nbytes * images <= PIXEL_CACHE_BYTES
                if fit:
                    self._kept |= dict(zip(decoded, pixels, strict=True))
            return len(group)

        with Progress("checking images", total=len(new), unit="images") as progress:
            progress.advance(look(new[:1]))  # tells whether they all fit
            for looked_at in _ahead(look, [new[at : at + group_size] for at in range(1, len(new), group_size)]):
                progress.advance(looked_at)
        return {key: error for key in wanted if (error := self._looked_at[key]) is not None}

    def _decode(self, key: str) -> Image.Image:
        return decode(self._open_image(key), where=key)

    def _pixels(self, images: list[Image.Image]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = preprocessing.pixels(self._image_processor, images).numpy()
        return values


def read_examples(data: Path, pixels: Pixels, processor: Any, max_tokens: int) -> Examples:
    """Encode every conversation and look at every image.

    Raises one InputError that lists all records that cannot be trained on, by reason.
    """
    rows = list(read_jsonl(data))
    if not rows:
        raise InputError(f"{data}: no conversations in it; a stage needs at least one")
    problems: list[tuple[str, str]] = []  # (record id, reason)
    kept: list[tuple[Conversation, NDArray[np.int32], NDArray[np.bool_]]] = []
    for number, row in enumerate(track(rows, "encoding conversations", unit="conversations"), 1):
        try:
            conversation = Conversation.from_json(row)
            encoded = encode(processor, conversation)
        except InputError as error:
            record = str(row.get("id") or f"record {number}")
            problems.append((record, str(error).removeprefix(f"record {row.get('id')!r}: ")))
            continue
        if len(encoded.input_ids) > max_tokens:
            problems.append((conversation.id, f"longer than train.max_tokens = {max_tokens}"))
        elif not encoded.supervised[1:].any():
            problems.append((conversation.id, "no supervised token after the first token"))
        kept.append((conversation, encoded.input_ids.astype(np.int32), encoded.supervised))
    broken = pixels.check(key for conversation, _, _ in kept for key in conversation.images)
    for conversation, _, _ in kept:
        for key in conversation.images:
            if key in broken:
                problems.append((conversation.id, _image_reason(key, broken[key])))
    if problems:
        raise BadRecords(data, problems, len(rows))
    return Examples(
        ids=[conversation.id for conversation, _, _ in kept],
        images=[conversation.images for conversation, _, _ in kept],
        input_ids=[ids for _, ids, _ in kept],
        supervised=[supervised for _, _, supervised in kept],
        lengths=np.array([len(ids) for _, ids, _ in kept], dtype=np.int64),
        targets=np.array([int(supervised[1:].sum()) for _, _, supervised in kept], dtype=np.int64),
    )


def images_fingerprint(data: Path, images: Path) -> str:
    """Of the image folder that `data` names images of: a corpus has its own; of loose files the names and sizes."""
    if (images / INDEX).is_file():
        return Corpus(images).fingerprint
    named = (row.get("images") for row in read_jsonl(data))
    keys = {key for names in named if isinstance(names, list) for key in names if isinstance(key, str)}
    return manifest.files_fingerprint((images / key for key in keys if not Path(key).is_absolute()), images)


def batches(
    examples: Examples,
    pixels: Pictures,
    schedule: Schedule,
    first_step: int,
    loss: Literal["token", "example"],
    image_token_id: int,
    rank: int = 0,
) -> Generator[tuple[Step, list[Future[Batch]]], None, None]:
    """The steps from `first_step` to the last; of each, this rank's packs as they become ready.

    A few packs are always being made ahead in threads; the order is the plan's, whatever their speed.
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="llavamed-data") as pool:
        waiting: deque[tuple[Step, list[Future[Batch]]]] = deque()
        ahead = 0
        try:
            for number in range(first_step, schedule.total):
                step = schedule[number]
                weights = step_weights(examples, step, loss)
                idle = (step[0][:1], dict.fromkeys(weights, 0.0))  # a rank without an example takes part with weight 0
                mine = [(pack, weights) if pack else idle for pack in step[rank :: schedule.ranks]]
                packs = [pool.submit(make_batch, examples, pixels, *one, image_token_id) for one in mine]
                waiting.append((step, packs))
                ahead += len(packs)
                while ahead > max(_PACKS_AHEAD, len(waiting[0][1])):
                    ready = waiting.popleft()
                    ahead -= len(ready[1])
                    yield ready
            while waiting:
                yield waiting.popleft()
        finally:  # the reader has stopped early: nobody wants the rest
            for _, packs in waiting:
                for future in packs:
                    future.cancel()


def step_weights(examples: Examples, step: Step, loss: Literal["token", "example"]) -> dict[int, float]:
    """Example index -> the weight of each of its supervised tokens in this step's loss."""
    members = [index for pack in step for index in pack]
    return dict(zip(members, token_weights(examples.targets[members], loss).tolist(), strict=True))


def make_batch(
    examples: Examples, pixels: Pictures, pack: Pack, weights: dict[int, float], image_token_id: int
) -> Batch:
    """One pack as tensors; `weights` as `step_weights` gives them for the whole step."""
    arrays = [pixels.load(key) for index in pack for key in examples.images[index]]
    return collate(
        [examples.input_ids[index] for index in pack],
        [examples.supervised[index] for index in pack],
        np.array([weights[index] for index in pack]),
        np.stack(arrays) if arrays else None,
        image_token_id,
    )


def _ahead(work: Callable[[Sequence[str]], int], items: Iterable[Sequence[str]]) -> Iterator[int]:
    """`work` on every item in threads, done in order and never more than a few ahead."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="llavamed-data") as pool:
        running: deque[Future[int]] = deque()
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > 64:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _refuse(key: str) -> bytes:
    raise InputError(f"{key}: no image folder is given; set the stage's `images`")


def _image_reason(key: str, error: InputError) -> str:
    """One wording per kind of damage, so that the records of a kind are listed together."""
    reason = getattr(error, "reason", None)
    return f"image {reason.replace('_', ' ')}" if reason else str(error).replace(key, "<image>")


def _summary(problems: list[tuple[str, str]], total: int) -> str:
    by_reason: dict[str, list[str]] = {}
    for record, reason in problems:
        by_reason.setdefault(reason, []).append(record)
    listed = [
        f"{reason}: {len(records)} ({', '.join(map(repr, records[:_NAMED]))}{', ...' if len(records) > _NAMED else ''})"
        for reason, records in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    ]
    bad = len({record for record, _ in problems})
    return f"{bad} of {total} records cannot be trained on; mend or remove them. " + "; ".join(listed)
