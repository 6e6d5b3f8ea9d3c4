"""A conversation becomes token ids, and each token knows whether it is supervised.

In: a processor and a `Conversation`. Out: `Encoded`: the ids with every image placeholder already
repeated once per image token, and a mask that is true on the assistant's answers and the end-of-text
token after each. No pixels are read here.

The hard thing is the mask. The chat template alone says which characters the assistant wrote (its
`{% generation %}` blocks), so the conversation is rendered once, tokenised once, and the characters'
spans are carried to tokens by the tokenizer's offsets. Tokenising the pieces apart and adding up their
lengths, as LLaVA did, goes wrong wherever a tokenizer merges across a seam.

The second hard thing is text that looks like control: a caption with a literal `<image>` would become
a placeholder without an image. `plain` puts a space after the first character of every such string
(`< image>`), in what people wrote and only there, before the template adds its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils.chat_template_utils import render_jinja_template

from llavamed.errors import InputError
from llavamed.records import Conversation, Message

IMAGE_TOKEN = "<image>"
IMAGE_START, IMAGE_END = "<im_start>", "<im_end>"  # v1.0's wrap around the image tokens

# strings that steer a template even where the tokenizer has no special token for them (real Mistral v0.2 has none)
_TEMPLATE_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", IMAGE_TOKEN, IMAGE_START, IMAGE_END)


@dataclass(frozen=True)
class Encoded:
    """One training example. `input_ids` int64 (tokens,); `supervised` bool (tokens,): this token is a target."""

    input_ids: NDArray[np.int64]
    supervised: NDArray[np.bool_]
    num_images: int


def template(name: str, image_wrap: bool = False) -> str:
    """The text of a shipped chat template, "mistral" or "vicuna"."""
    text = (resources.files("llavamed") / "model" / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    if image_wrap:
        bare, wrapped = f"set picture = '{IMAGE_TOKEN}'", f"set picture = '{IMAGE_START}{IMAGE_TOKEN}{IMAGE_END}'"
        assert bare in text, name
        text = text.replace(bare, wrapped)
    return text


def image_tokens(processor: Any) -> int:
    """How many tokens one image takes: the tower's patches (with or without its class token)."""
    side = image_side(processor.image_processor)
    count: int = (side // processor.patch_size) ** 2 + processor.num_additional_image_tokens
    return count - 1 if processor.vision_feature_select_strategy == "default" else count


def image_side(image_processor: Any) -> int:
    """Side in pixels of the square that the image processor makes."""
    size = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
    side = size["height"] if size["height"] is not None else size["shortest_edge"]
    return int(side)


def plain(processor: Any, text: str) -> str:
    """`text` with every control string made harmless by a space after its first character."""
    added = processor.tokenizer.added_tokens_decoder.values()
    marks = frozenset({*_TEMPLATE_MARKS, *(token.content for token in added if token.special)})
    return _any_of(marks).sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


@lru_cache(maxsize=16)
def _any_of(marks: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))


def prompt(processor: Any, messages: Sequence[Message]) -> str:
    """The text to give to the processor for the assistant's next answer."""
    rows = _rows(processor, messages)
    text: str = processor.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    return text


def prompt_ids(processor: Any, messages: Sequence[Message]) -> NDArray[np.int64]:
    """The token ids of `prompt`, images expanded, as the processor gives them: int64 (tokens,).

    The tokenizer is asked for one text without padding, which changes nothing in it, so threads may share it.
    """
    text = prompt(processor, messages)
    ids = np.asarray(_tokenize(processor, text)["input_ids"], dtype=np.int64)
    _check_placeholders(processor, ids, messages, "the prompt")
    return np.repeat(ids, _repeats(processor, ids))


def encode(processor: Any, conversation: Conversation) -> Encoded:
    """The conversation as token ids with its supervised positions.

    Raises InputError naming the record if images and placeholders differ in number, or if no token would be
    supervised.
    """
    where = f"record {conversation.id!r}"
    messages = conversation.messages
    placeholders = sum(message.num_images for message in messages)
    if placeholders != len(conversation.images):
        raise InputError(
            f"{where}: {len(conversation.images)} images but {placeholders} image parts in its messages; "
            'give each image one {"type": "image"} part'
        )
    for number, message in enumerate(messages):
        if message.role == "assistant" and not message.text.strip():
            raise InputError(f"{where}: message {number} is an assistant's turn without text; leave it out")
        if message.role != "user" and message.num_images:
            raise InputError(f"{where}: message {number} ({message.role}) has an image; only users show images")
    return _encode(processor, messages, where)


def _encode(processor: Any, messages: Sequence[Message], where: str) -> Encoded:
    tokenizer = processor.tokenizer
    texts, spans = render_jinja_template(
        conversations=[_rows(processor, messages)],
        chat_template=processor.chat_template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    tokens = _tokenize(processor, texts[0])
    ids = np.asarray(tokens["input_ids"], dtype=np.int64)
    offsets = np.asarray(tokens["offset_mapping"], dtype=np.int64)  # (tokens, 2): characters [start, end)
    supervised = np.zeros(len(ids), dtype=np.bool_)
    for start, end in spans[0]:
        across = (offsets[:, 0] < start) & (offsets[:, 1] > start)
        if across.any():
            piece = tokenizer.convert_ids_to_tokens(int(ids[across][0]))
            raise InputError(
                f"{where}: the tokenizer joins the prompt and the answer in one token ({piece!r}); "
                "use a chat template that separates them"
            )
        supervised |= (offsets[:, 0] >= start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0])
    images = ids == processor.image_token_id
    supervised &= ~images
    if not supervised.any():
        raise InputError(
            f"{where}: no supervised token; it needs an assistant's turn, and the chat template "
            "{% generation %} blocks around the answers"
        )
    num_images = _check_placeholders(processor, ids, messages, where)
    repeats = _repeats(processor, ids)
    return Encoded(np.repeat(ids, repeats), np.repeat(supervised, repeats), num_images)


def _check_placeholders(processor: Any, ids: NDArray[np.int64], messages: Sequence[Message], where: str) -> int:
    """How many images the messages show, once it is sure that the template wrote one placeholder for each."""
    num_images = sum(message.num_images for message in messages)
    written = int((ids == processor.image_token_id).sum())
    if written != num_images:
        raise InputError(
            f"{where}: {written} image placeholders for {num_images} images; only users show images, and the chat "
            f"template must write {IMAGE_TOKEN} once for each"
        )
    return num_images


def _tokenize(processor: Any, text: str) -> Any:
    """Ids and character offsets; the template's own begin-of-text token is not doubled."""
    tokenizer = processor.tokenizer
    begins_itself = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not begins_itself, return_offsets_mapping=True)


def _repeats(processor: Any, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each id stands in the model's input: a placeholder once per image token."""
    return np.where(ids == processor.image_token_id, image_tokens(processor), 1)


def _rows(processor: Any, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as the templates read them: a turn's images, then its text with control strings made harmless.

    The text is one part: a template joins the parts, and "<im" with "age>" would become a placeholder.
    """
    return [
        {
            "role": message.role,
            "content": [
                *({"type": "image"} for _ in range(message.num_images)),
                {"type": "text", "text": plain(processor, message.text)},
            ],
        }
        for message in messages
    ]
