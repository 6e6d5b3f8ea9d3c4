"""The whole path against a server that is not ours: `transformers serve`, with a language model made here.

The model is a Llama whose weights are written by hand: each token is followed by one other, whatever came before. So it
answers every prompt with the same conversation, and with nothing to train there is nothing to download. The server is
what it is: it counts no tokens, refuses `response_format` and `stream_options` with 422, and streams.
"""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llavamed import manifest
from llavamed.demo.truth import Truth
from llavamed.errors import InputError
from llavamed.instruct.generate import generate
from llavamed.recipe import InstructSection
from llavamed.records import Pair, read_conversations, read_jsonl

for needed in ("fastapi", "uvicorn"):
    pytest.importorskip(needed, reason="transformers' server needs fastapi and uvicorn: pip install 'llavamed[serve]'")
serve = pytest.importorskip("transformers.cli.serve", reason="this transformers has no `serve` command")

SAID = ("Which organ is shown?", "This is the brain.", "Is there a nodule?", "No, there is none.")
TEXTS = {
    "json": json.dumps({"turns": [{"question": q, "answer": a} for q, a in zip(SAID[::2], SAID[1::2], strict=True)]}),
    "marks": "\n".join(f"{who}: {said}" for who, said in zip(("User", "Assistant") * 2, SAID, strict=True)),
    "prose": "I would rather write a poem about the brain.",
}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"


def parrot(folder: Path, text: str) -> Path:
    """A Llama that answers everything with `text`."""
    from tokenizers import Regex, Tokenizer, decoders, models
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = re.findall(r"\s*\S+|\s+", text)
    words = [f"{piece}\0{n}" for n, piece in enumerate(pieces)]  # each once, so that each has one successor
    vocabulary = {"<unk>": 0, "<go>": 1, "<end>": 2, **{word: n + 3 for n, word in enumerate(words)}}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("\0[0-9]+"), "")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", eos_token="<end>", additional_special_tokens=["<go>"],
        chat_template=TEMPLATE, model_max_length=100_000,
    )  # fmt: skip
    width = -(-len(vocabulary) // 16) * 16
    config = LlamaConfig(
        vocab_size=width, hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=100_000, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight.copy_(torch.eye(width))
        follows = [(1, 3), *((n, n + 1) for n in range(3, len(words) + 2)), (len(words) + 2, 2)]
        for token, after in follows:
            model.lm_head.weight[after, token] = 10.0
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, max_length=100_000)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: parrot(folder / name, text) for name, text in TEXTS.items()}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = serve.Serve(host="127.0.0.1", port=port, device="cpu", log_level="error", non_blocking=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"{url}/v1"
    finally:
        running.kill_server()


@pytest.fixture
def corpus(world: list[tuple[Truth, Pair]], make_corpus: Callable[..., Path]) -> Path:
    return make_corpus([pair for _, pair in world[:12]])


@pytest.mark.parametrize("how", ["json", "marks"])
def test_conversations_are_written_by_a_model_behind_a_server_of_others(
    how: str, server: str, models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    section = InstructSection(teacher=server, teacher_model=str(models[how]), count=6)
    made = generate(corpus, tmp_path / "out", section, seed=0)
    assert made.counts["instruct"] == 6
    for talk in read_conversations(tmp_path / "out" / "instruct.jsonl"):
        assert tuple(message.text for message in talk.messages) == SAID
        assert [message.num_images for message in talk.messages] == [1, 0, 0, 0]
    rows = list(read_jsonl(tmp_path / "out" / "journal.jsonl"))
    assert [row["answer"] for row in rows] == [TEXTS[how]] * 6
    asked: dict[str, Any] = manifest.require(tmp_path / "out", "instruct", "")["extra"]["asked"]
    assert (asked["calls"], asked["answered"]) == (6, 6)
    assert asked["tokens_out"] > 6 * 20


def test_a_model_that_does_not_obey_is_named_and_its_answers_are_kept(
    server: str, models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    section = InstructSection(teacher=server, teacher_model=str(models["prose"]))
    with pytest.raises(InputError, match="can its model do this"):
        generate(corpus, tmp_path / "out", section, seed=0)
    assert {row["answer"] for row in read_jsonl(tmp_path / "out" / "journal.jsonl")} == {TEXTS["prose"]}
    assert not (tmp_path / "out" / "manifest.json").exists()
