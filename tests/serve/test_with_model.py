"""The server around a real model: the shipped tiny parts with an untrained projector."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from llavamed import recipe
from llavamed.engine.local import LocalEngine
from llavamed.model import folder
from llavamed.model.parts import build
from llavamed.serve.app import create_app

from .fake import data_url, png, running


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    path = tmp_path_factory.mktemp("model") / "tiny"
    folder.save(build(recipe.load("tiny").model, seed=0), path)
    return LocalEngine(path)


@pytest.fixture(scope="module")
def client(engine: LocalEngine) -> Iterator[openai.OpenAI]:
    with running(create_app(engine, page=False)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)


def test_streamed_and_whole_answers_are_the_same_and_counted(client: openai.OpenAI, engine: LocalEngine) -> None:
    image = {"type": "image_url", "image_url": {"url": data_url(png(64, 64, "gray"))}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What does this image show?"}]}]
    ask = {"model": engine.name, "messages": messages, "max_tokens": 12}
    whole = client.chat.completions.create(**ask)  # type: ignore[call-overload]
    events = list(client.chat.completions.create(**ask, stream=True))  # type: ignore[call-overload]
    assert whole.choices[0].message.content
    assert "".join(e.choices[0].delta.content or "" for e in events) == whole.choices[0].message.content
    assert len(events) > 3  # it came in pieces
    without = client.chat.completions.create(
        **{**ask, "messages": [{"role": "user", "content": "What does this image show?"}]}  # type: ignore[call-overload]
    )
    assert whole.usage.prompt_tokens > without.usage.prompt_tokens + 10  # the image's tokens count
    assert 1 <= whole.usage.completion_tokens <= 13


def test_a_prompt_longer_than_the_context_is_a_400_that_names_the_limit(
    client: openai.OpenAI, engine: LocalEngine
) -> None:
    with pytest.raises(openai.BadRequestError, match="2048"):
        client.chat.completions.create(
            model=engine.name, messages=[{"role": "user", "content": "lung " * 3000}], max_tokens=8, stream=True
        )
