"""Our model inside lmms-eval: its class by a stand-in of the two things it takes from there, and all of it for real."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from llavamed.engine import Unanswered
from llavamed.errors import InputError

ROOT = Path(__file__).parents[2]


class _Base:
    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


def _chat(messages: list[dict[str, Any]]) -> Any:
    turns = [SimpleNamespace(role=m["role"], content=[SimpleNamespace(**p) for p in m["content"]]) for m in messages]
    return SimpleNamespace(messages=turns)


@pytest.fixture
def model_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, held in (("api.model", {"lmms": _Base}), ("protocol", {"ChatMessages": _chat})):
        module = ModuleType(f"lmms_eval.{name}")
        module.__dict__.update(held)
        monkeypatch.setitem(sys.modules, f"lmms_eval.{name}", module)
    monkeypatch.delitem(sys.modules, "llavamed.evaluate.lmms_eval_model", raising=False)
    yield importlib.import_module("llavamed.evaluate.lmms_eval_model")
    sys.modules.pop("llavamed.evaluate.lmms_eval_model", None)


def instance(doc_id: int, part: dict[str, Any], **settings: Any) -> Any:
    def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [part, {"type": "text", "text": doc["question"]}]}]

    return SimpleNamespace(args=("ctx", messages, settings, doc_id, "task", "test"))


def test_requests_are_batched_by_their_settings_and_answered_in_order(
    model_class: Any, monkeypatch: pytest.MonkeyPatch, looker: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(model_class, "connect", lambda pretrained: looker)
    model = model_class.LlavaMed("folder", batch_size=2, device=None, max_batch_size=None)
    model.task_dict = {"task": {"test": [{"question": f"Which colour{'?' * i}"} for i in range(5)]}}
    red, blue = Image.new("RGB", (4, 4), (200, 20, 20)), Image.new("RGBA", (4, 4), (20, 20, 200, 255))
    red.save(tmp_path / "red.png")
    pictures: list[Any] = [red, blue, str(tmp_path / "red.png"), (tmp_path / "red.png").read_bytes(), blue]
    settings: list[dict[str, Any]] = [{"max_new_tokens": 8}] * 3 + [{"max_new_tokens": 9, "until": ["\n"]}] * 2
    asked = [
        instance(i, {"type": "image", "url": picture}, **settings[i], temperature=0, do_sample=False)
        for i, picture in enumerate(pictures)
    ]
    seen: list[Any] = []
    generate = looker.generate
    looker.generate = lambda requests: seen.extend(requests) or generate(requests)
    assert model.generate_until(asked) == [f"It is {c}" for c in ("red", "blue", "red", "red", "blue")]
    assert looker.batches == [2, 1, 2]
    assert {request.temperature for request in seen} == {0.0}
    assert [request.stop for request in seen] == [(), (), (), ("\n",), ("\n",)]


def test_a_failed_request_is_marked_and_the_run_goes_on(
    model_class: Any, monkeypatch: pytest.MonkeyPatch, looker: Any
) -> None:
    monkeypatch.setattr(model_class, "connect", lambda pretrained: looker)

    def fails(requests: Any) -> list[str]:
        raise Unanswered("busy", ["fine", Unanswered("timed out")])

    looker.generate = fails
    model = model_class.LlavaMed("folder", batch_size=2)
    model.task_dict = {"task": {"test": [{"question": "a"}, {"question": "a"}]}}
    picture = {"type": "image", "url": Image.new("RGB", (4, 4))}
    answers = model.generate_until([instance(0, picture), instance(1, picture)])
    assert answers == ["fine", "[LMMS_EVAL_REQUEST_FAILED] timed out"]


def test_what_it_cannot_do_is_refused(model_class: Any, monkeypatch: pytest.MonkeyPatch, looker: Any) -> None:
    monkeypatch.setattr(model_class, "connect", lambda pretrained: looker)
    with pytest.raises(InputError, match="model_args dtype: unknown"):
        model_class.LlavaMed("folder", dtype="float16")
    model = model_class.LlavaMed("folder")
    model.task_dict = {"task": {"test": [{"question": "a"}]}}
    with pytest.raises(InputError, match="shows video"):
        model.generate_until([instance(0, {"type": "video", "url": "a.mp4"})])
    with pytest.raises(InputError, match="likelihood"):
        model.loglikelihood([])
    with pytest.raises(InputError, match="multi-round"):
        model.generate_until_multi_round([])


def test_the_entry_point_names_a_function_that_is_there() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, _, name = points["llavamed"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.slow
def test_lmms_eval_itself_runs_a_task_on_our_model_and_its_samples_are_read(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looker: Any
) -> None:
    """Registered as the entry point does it; a task of ours, since its own need the network."""
    pytest.importorskip("lmms_eval")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.loggers import EvaluationTracker
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    from llavamed.evaluate import benchmarks, harness, results

    lmms_eval_model = importlib.import_module("llavamed.evaluate.lmms_eval_model")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lmms_eval_model, "connect", lambda pretrained: looker)
    MODEL_REGISTRY_V2.register_manifest(harness.lmms_eval_models(), overwrite=True)
    task = tmp_path / "tasks"
    task.mkdir()
    (task / "colours.yaml").write_text(
        "task: colours\ndataset_path: json\ntest_split: test\noutput_type: generate_until\n"
        f"dataset_kwargs:\n  data_files:\n    test: {colours / 'questions.jsonl'}\n"
        "doc_to_visual: !function seen.visual\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
        "generation_kwargs:\n  max_new_tokens: 8\n  temperature: 0\n  do_sample: false\n"
        "process_results: !function seen.right\n"
        "metric_list:\n  - metric: right\n    aggregation: mean\n    higher_is_better: true\n"
    )
    (task / "seen.py").write_text(
        "from PIL import Image\n"
        f"def visual(doc): return [Image.open({str(colours / 'images')!r} + '/' + doc['image'])]\n"
        "def right(doc, results): return {'right': float(doc['answer'].lower() in results[0].lower())}\n"
    )
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    found = simple_evaluate(
        model="llavamed", model_args="pretrained=folder", tasks=["colours"], batch_size=8, log_samples=True,
        task_manager=TaskManager(include_path=str(task)), evaluation_tracker=tracker,
        cli_args=SimpleNamespace(process_with_media=True),
    )  # fmt: skip
    assert found["results"]["colours"]["right,none"] == 1.0
    tracker.save_results_aggregated(results={}, samples=found["samples"], datetime_str="now")
    tracker.save_results_samples("colours", found["samples"]["colours"])
    (written,) = (tmp_path / "out").rglob("*_samples_colours.jsonl")
    assert json.loads(written.open().readline())["doc_id"] == 0
    questions = benchmarks.load("phantom", colours).questions
    predictions, _ = results.match(results.read(written), questions, str(written))
    assert all(q.answer in p.text.lower() for p, q in zip(predictions, questions, strict=True))
