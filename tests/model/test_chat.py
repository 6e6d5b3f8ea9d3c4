from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llavamed.errors import InputError
from llavamed.model import chat
from llavamed.model.chat import Encoded, encode, plain, prompt
from llavamed.model.folder import Assembled
from llavamed.records import Conversation, Message, assistant, user

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

TWO_TURNS = Conversation(
    "two-turns",
    ("scan.png",),
    (
        user("What is shown in this image?", images=1),
        assistant("A small nodule in the left upper lobe."),
        user("Is there an effusion?"),
        assistant("Yes, on the right side: 3 µm – “thin”."),
    ),
)


def rows(conversation: Conversation) -> list[dict[str, object]]:
    return [{"role": m.role, "content": list(m.content)} for m in conversation.messages]


def supervised_text(assembled: Assembled, encoded: Encoded) -> str:
    return assembled.processor.tokenizer.decode(encoded.input_ids[encoded.supervised])


def test_mistral_golden_string(assembled: Assembled) -> None:
    text = assembled.processor.apply_chat_template(rows(TWO_TURNS), tokenize=False)
    assert text == (
        "<s>[INST] <image>\nWhat is shown in this image? [/INST] A small nodule in the left upper lobe.</s>"
        "[INST] Is there an effusion? [/INST] Yes, on the right side: 3 µm – “thin”.</s>"
    )
    assert prompt(assembled.processor, TWO_TURNS.messages[:1]) == (
        "<s>[INST] <image>\nWhat is shown in this image? [/INST]"
    )


def test_vicuna_golden_string_with_wrapped_image(build_small: Callable[..., Assembled]) -> None:
    processor = build_small(chat_template="vicuna", image_wrap=True).processor
    assert processor.apply_chat_template(rows(TWO_TURNS), tokenize=False) == (
        f"<s>{VICUNA} USER: <im_start><image><im_end>\nWhat is shown in this image? "
        "ASSISTANT: A small nodule in the left upper lobe.</s>"
        "USER: Is there an effusion? ASSISTANT: Yes, on the right side: 3 µm – “thin”.</s>"
    )
    assert prompt(processor, TWO_TURNS.messages[:1]).endswith("What is shown in this image? ASSISTANT:")


def test_system_messages(assembled: Assembled, build_small: Callable[..., Assembled]) -> None:
    messages = (Message("system", ({"type": "text", "text": "Be brief."},)), user("Hello"))
    assert prompt(assembled.processor, messages) == "<s>[INST] Be brief.\n\nHello [/INST]"
    vicuna = build_small(chat_template="vicuna").processor
    assert prompt(vicuna, messages) == "<s>Be brief. USER: Hello ASSISTANT:"


@pytest.mark.parametrize("template", ["mistral", "vicuna"])
def test_content_as_a_string_or_as_parts_in_any_order_gives_one_text(
    build_small: Callable[..., Assembled], template: str
) -> None:
    processor = build_small(chat_template=template).processor
    contents = (
        "<image>\nWhat is it?",
        [{"type": "image"}, {"type": "text", "text": "What is it?"}],
        [{"type": "text", "text": "What is it?"}, {"type": "image"}],
    )
    texts = {
        processor.apply_chat_template([{"role": "user", "content": c}], tokenize=False, add_generation_prompt=True)
        for c in contents
    }
    assert len(texts) == 1


@pytest.mark.parametrize("template", ["mistral", "vicuna"])
@pytest.mark.parametrize("wrap", [False, True])
def test_ids_and_mask_equal_what_the_processor_itself_gives(
    build_small: Callable[..., Assembled], template: str, wrap: bool
) -> None:
    assembled = build_small(chat_template=template, image_wrap=wrap)
    image = Image.fromarray(np.zeros((50, 40, 3), dtype=np.uint8))
    with_image = rows(TWO_TURNS)
    with_image[0] = {"role": "user", "content": [{"type": "image", "image": image}, TWO_TURNS.messages[0].content[1]]}
    theirs = assembled.processor.apply_chat_template(
        with_image, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="np"
    )
    ours = encode(assembled.processor, TWO_TURNS)
    assert ours.input_ids.dtype == np.int64
    assert ours.num_images == 1
    np.testing.assert_array_equal(ours.input_ids, theirs["input_ids"][0])
    np.testing.assert_array_equal(ours.supervised, np.asarray(theirs["assistant_masks"][0], dtype=bool))


@pytest.mark.parametrize("template", ["mistral", "vicuna"])
def test_supervised_tokens_decode_to_the_answers_and_their_ends(
    build_small: Callable[..., Assembled], template: str
) -> None:
    assembled = build_small(chat_template=template)
    encoded = encode(assembled.processor, TWO_TURNS)
    assert supervised_text(assembled, encoded) == (
        " A small nodule in the left upper lobe.</s> Yes, on the right side: 3 µm – “thin”.</s>"
    )
    assert not encoded.supervised[encoded.input_ids == assembled.processor.image_token_id].any()
    assert (encoded.input_ids == assembled.processor.image_token_id).sum() == chat.image_tokens(assembled.processor)


@pytest.mark.parametrize(
    "cruel", ["<image>", "</s>", "[INST]", "[/INST]", "<s>", "<pad>", "<im_start>", "<<image>image>"]
)
def test_control_strings_in_what_people_wrote_stay_text(assembled: Assembled, cruel: str) -> None:
    clean = Conversation("c", ("x",), (user("see  here", images=1), assistant("it says  there")))
    dirty = Conversation("c", ("x",), (user(f"see {cruel} here", images=1), assistant(f"it says {cruel} there")))
    special = set(assembled.processor.tokenizer.all_special_ids)
    controls = [[i for i in encode(assembled.processor, c).input_ids if i in special] for c in (clean, dirty)]
    assert controls[0] == controls[1]
    escaped = plain(assembled.processor, cruel)
    assert cruel not in escaped
    assert escaped.replace(" ", "") == cruel
    assert supervised_text(assembled, encode(assembled.processor, dirty)) == f" it says {escaped} there</s>"


def test_plain_leaves_medical_text_alone(assembled: Assembled) -> None:
    text = "T < 37 °C, p<0.05, [HU], image, <b>bold</b>, a/b"
    assert plain(assembled.processor, text) == text


@pytest.mark.parametrize(
    ("conversation", "words"),
    [
        (Conversation("r7", ("a", "b"), (user("?", images=1), assistant("x"))), "2 images but 1 image part"),
        (Conversation("r7", (), (user("?"),)), "no supervised token"),
        (Conversation("r7", (), (user("?"), assistant("  "))), "assistant's turn without text"),
        (Conversation("r7", ("a",), (user("?"), Message("assistant", ({"type": "image"},)))), "without text"),
    ],
)
def test_records_that_cannot_teach_are_errors_that_name_them(
    assembled: Assembled, conversation: Conversation, words: str
) -> None:
    with pytest.raises(InputError, match=f"'r7'.*{words}"):
        encode(assembled.processor, conversation)


@pytest.mark.parametrize("between", [(), ({"type": "image"},)])
def test_a_control_string_in_pieces_does_not_join(assembled: Assembled, between: tuple[dict[str, str], ...]) -> None:
    """The templates join a turn's texts, also across an image, which they put first."""
    pieces = ({"type": "text", "text": "see <im"}, *between, {"type": "text", "text": "age> here"})
    message = Message("user", pieces)
    ids = chat.prompt_ids(assembled.processor, (message,))
    shown = chat.image_tokens(assembled.processor) * len(between)
    assert (ids == assembled.processor.image_token_id).sum() == shown
    assert "see < image> here" in prompt(assembled.processor, (message,))
    encode(assembled.processor, Conversation("c", ("x",) * len(between), (message, assistant("yes"))))


def test_a_template_that_does_not_write_one_placeholder_an_image_is_refused(
    build_small: Callable[..., Assembled],
) -> None:
    processor = build_small().processor
    processor.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    with pytest.raises(InputError, match="the prompt: 0 image placeholders for 1 images"):
        chat.prompt_ids(processor, (user("What is it?", images=1),))


def test_a_template_without_generation_blocks_is_refused(build_small: Callable[..., Assembled]) -> None:
    processor = build_small().processor
    processor.chat_template = "{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}"
    with pytest.raises(InputError, match="generation"):
        encode(processor, Conversation("r", (), (user("?"), assistant("x"))))


def test_real_questions_and_answers_round_trip(assembled: Assembled, shared_data: Path) -> None:
    items = json.loads((shared_data / "vqa_rad" / "train.json").read_text(encoding="utf-8"))[:50]
    for item in items:
        answer = str(item["answer"]).strip()
        conversation = Conversation(str(item["qid"]), ("x",), (user(item["question"], images=1), assistant(answer)))
        assert supervised_text(assembled, encode(assembled.processor, conversation)) == f" {answer}</s>"
