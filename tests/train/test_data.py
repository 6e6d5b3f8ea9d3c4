from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from llavamed.errors import InputError
from llavamed.model.chat import encode
from llavamed.model.parts import Assembled
from llavamed.records import Conversation, assistant, user
from llavamed.train import data as data_module
from llavamed.train.data import Examples, Pixels, batches, images_fingerprint, make_batch, read_examples, step_weights
from llavamed.train.pack import Schedule

Write = Callable[[list[Conversation]], Path]


@pytest.fixture
def read(assembled: Assembled, data: Path, images: Path) -> tuple[Examples, Pixels]:
    pixels = Pixels(images, assembled.processor)
    return read_examples(data, pixels, assembled.processor, max_tokens=128), pixels


def test_examples_are_the_encoded_conversations_in_order(
    read: tuple[Examples, Pixels], assembled: Assembled, conversations: list[Conversation]
) -> None:
    examples, _ = read
    assert examples.ids == [conversation.id for conversation in conversations]
    for index, conversation in enumerate(conversations):
        encoded = encode(assembled.processor, conversation)
        assert np.array_equal(examples.input_ids[index], encoded.input_ids)
        assert np.array_equal(examples.supervised[index], encoded.supervised)
        assert examples.lengths[index] == len(encoded.input_ids)
        assert examples.targets[index] == encoded.supervised.sum()


def test_a_batch_lays_the_documents_one_behind_the_other(read: tuple[Examples, Pixels], assembled: Assembled) -> None:
    examples, pixels = read
    pack, image = (2, 7, 0), assembled.model.config.image_token_id
    batch = make_batch(examples, pixels, pack, {2: 0.5, 7: 0.25, 0: 0.125}, image)
    assert batch.input_ids.tolist() == [i for index in pack for i in examples.input_ids[index].tolist()]
    assert batch.cu_seq_lens.diff().tolist() == [len(examples.input_ids[index]) for index in pack]
    assert batch.position_ids[batch.cu_seq_lens[:-1].long()].tolist() == [0, 0, 0]
    assert (batch.input_ids[batch.image_positions] == image).all()
    assert len(batch.image_positions) == 2 * 4  # two images of four tokens; example 7 has none
    assert batch.pixels is not None
    assert torch.equal(batch.pixels[1], torch.from_numpy(pixels.load("red.png")))
    assert torch.equal(batch.targets, batch.input_ids[batch.predict_from + 1])
    counts = [int((batch.weights == weight).sum()) for weight in (0.5, 0.25, 0.125)]
    assert counts == [examples.targets[index] for index in pack]
    texts = assembled.processor.tokenizer.decode(batch.targets)
    assert texts.replace(" It", "It") == "It is blue.</s>It is grey.</s>It is red.</s>"


def test_steps_come_in_the_plans_order_from_any_step_on(read: tuple[Examples, Pixels], assembled: Assembled) -> None:
    examples, pixels = read
    schedule = Schedule(examples.lengths, 3, 40, seed=0, epochs=4)
    image = assembled.model.config.image_token_id
    whole = list(batches(examples, pixels, schedule, 0, "token", image))
    assert [step for step, _ in whole] == [schedule[number] for number in range(schedule.total)]
    rest = list(batches(examples, pixels, schedule, 5, "token", image))
    for (step, packs), (_, again) in zip(whole[5:], rest, strict=True):
        weights = step_weights(examples, step, "token")
        for pack, one, other in zip(step, packs, again, strict=True):
            assert torch.equal(one.result().input_ids, other.result().input_ids)
            assert torch.equal(one.result().weights, make_batch(examples, pixels, pack, weights, image).weights)


def test_pixels_are_kept_only_if_all_fit(
    assembled: Assembled, data: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "_THREADS", 2)  # or seven images are seven groups
    kept, not_kept = (Pixels(images, assembled.processor) for _ in range(2))
    read_examples(data, kept, assembled.processor, max_tokens=128)
    monkeypatch.setattr(data_module, "PIXEL_CACHE_BYTES", 7 * 3 * 32 * 32 * 4 - 1)
    read_examples(data, not_kept, assembled.processor, max_tokens=128)
    assert kept.load("red.png") is kept.load("red.png")
    assert not_kept.load("red.png") is not not_kept.load("red.png")
    assert np.array_equal(kept.load("red.png"), not_kept.load("red.png"))


def test_stages_that_share_a_folder_decode_each_image_once(
    assembled: Assembled, data: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    original = data_module.decode
    monkeypatch.setattr(data_module, "decode", lambda raw, where: decoded.append(where) or original(raw, where))
    pixels = Pixels(images, assembled.processor)
    for _ in range(2):
        read_examples(data, pixels, assembled.processor, max_tokens=128)
    assert sorted(decoded) == sorted(set(decoded))
    assert len(decoded) == 7


def test_all_problems_are_reported_together_by_reason_before_training(
    assembled: Assembled, images: Path, tmp_path: Path, write_data: Write, conversations: list[Conversation]
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    whole = (images / "red.png").read_bytes()
    (folder / "red.png").write_bytes(whole)
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "page.png").write_bytes(b"<html>not found</html>")
    ask, answer = user("What colour?", images=1), assistant("Red.")
    bad = [
        Conversation("no-answer", ("red.png",), (ask,)),
        Conversation("two-images", ("red.png", "red.png"), (ask, answer)),
        Conversation("long", ("red.png",), (ask, assistant("red " * 200))),
        *(Conversation(f"gone-{n}", (f"gone-{n}.png",), (ask, answer)) for n in range(5)),
        Conversation("cut", ("cut.png",), (ask, answer)),
        Conversation("page", ("page.png",), (ask, answer)),
    ]
    path = write_data([conversations[0], *bad])
    with pytest.raises(InputError) as caught:
        read_examples(path, Pixels(folder, assembled.processor), assembled.processor, max_tokens=128)
    message = str(caught.value)
    assert message.startswith(f"{path}: 10 of 11 records cannot be trained on")
    assert "no such file" in message
    assert "5 ('gone-0', 'gone-1', 'gone-2', ...)" in message
    assert "longer than train.max_tokens = 128: 1 ('long')" in message
    assert "image not an image: 1 ('page')" in message
    assert "('cut')" in message
    assert "1 ('no-answer')" in message
    assert "1 ('two-images')" in message
    assert "\n" not in message


def test_a_malformed_record_does_not_hide_the_others(
    assembled: Assembled, images: Path, write_data: Write, conversations: list[Conversation]
) -> None:
    path = write_data([*conversations, Conversation("mute", (), (user("?"),))])
    bad = [
        {"id": "robot", "images": [], "messages": [{"role": "robot", "content": "hi"}]},
        {"images": [], "messages": []},
        {"id": "stringy", "images": "red.png", "messages": []},
    ]
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in bad))
    with pytest.raises(InputError) as caught:
        read_examples(path, Pixels(images, assembled.processor), assembled.processor, max_tokens=128)
    message = str(caught.value)
    assert message.startswith(f"{path}: 4 of 12 records cannot be trained on")
    assert "role 'robot'; it must be one of system, user, assistant: 1 ('robot')" in message
    assert "the id must be text: 1 ('record 11')" in message
    assert "images must be a list of keys or paths: 1 ('stringy')" in message
    assert "1 ('mute')" in message


def test_loose_images_are_known_by_the_names_and_sizes_of_those_that_the_data_name(
    images: Path, tmp_path: Path, data: Path
) -> None:
    shutil.copytree(images, tmp_path / "images")
    before = images_fingerprint(data, tmp_path / "images")
    assert before == images_fingerprint(data, images)
    (tmp_path / "images" / "notes.txt").write_text("not named by the data")
    assert before == images_fingerprint(data, tmp_path / "images")
    (tmp_path / "images" / "red.png").write_bytes((images / "red.png").read_bytes() + b"\0")
    assert before != images_fingerprint(data, tmp_path / "images")


def test_images_without_an_image_folder_name_the_key_to_set(assembled: Assembled, data: Path) -> None:
    with pytest.raises(InputError, match=r"7 of 8 records.*set the stage's `images`"):
        read_examples(data, Pixels(None, assembled.processor), assembled.processor, max_tokens=128)


def test_an_empty_file_is_an_error(assembled: Assembled, write_data: Write) -> None:
    path, pixels = write_data([]), Pixels(None, assembled.processor)
    with pytest.raises(InputError, match="no conversations"):
        read_examples(path, pixels, assembled.processor, max_tokens=128)
