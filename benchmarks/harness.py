"""Our model inside lmms-eval and behind our server: do both give the answers that the engine gives?

    python benchmarks/harness.py MODEL BENCHMARK_FOLDER      # e.g. demo-run/train/instruct demo-run/world/benchmark

Needs lmms-eval in the same environment (`pip install lmms-eval`) and llavamed installed, for the entry point. A task is
made of the first questions of a folder in our format, backwards, so that lmms-eval's row numbers are not our order; its
rule is that an answer in which the reference occurs is right. The last row asks for a model that the server does not
have: every request fails.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import entry_points, version
from pathlib import Path

from llavamed.engine import Request, connect
from llavamed.evaluate import benchmarks, results
from llavamed.imaging.decode import read
from llavamed.records import user

SUFFIX = "\nAnswer the question using a single word or phrase."
TASK = """task: ours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function seen.visual
doc_to_text: !function seen.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false}}
process_results: !function seen.right
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
"""
SEEN = """from PIL import Image
def visual(doc): return [Image.open({images!r} + "/" + doc["image"]).convert("RGB")]
def text(doc, kwargs=None): return doc["question"] + {suffix!r}
def right(doc, results): return {{"right": float(doc["answer"].lower() in results[0].lower())}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("--questions", type=int, default=24)
    arguments = parser.parse_args()
    if not entry_points(group="lmms_eval.models", name="llavamed"):
        sys.exit("llavamed's entry point is not there: pip install -e . again")
    whole = benchmarks.load("phantom", arguments.benchmark)
    questions = whole.questions[: arguments.questions]
    requests = [Request((user(q.question + SUFFIX, 1),), (read(whole.images / q.image),), 16) for q in questions]
    engine = connect(str(arguments.model))
    own = engine.generate(requests)
    engine.close()
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        folder = Path(name)
        (folder / "ours.yaml").write_text(TASK.format(folder=folder))
        (folder / "seen.py").write_text(SEEN.format(images=str(whole.images.resolve()), suffix=SUFFIX))
        rows = [json.dumps({"image": q.image, "question": q.question, "answer": q.answer}) for q in reversed(questions)]
        (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
        server = subprocess.Popen(
            [sys.executable, "-m", "llavamed", "serve", str(arguments.model), "--port", str(port), "--no-page"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            served = _model_name(port)
            url = f"base_url=http://127.0.0.1:{port}/v1,api_key=none,timeout=120,max_retries=1"
            print(f"lmms-eval {version('lmms-eval')}, {len(questions)} questions")
            print("| way | answers as our engine's | failed | lmms-eval's own score, % | matched |")
            print("|---|---|---|---|---|")
            for way, model, given in (
                ("--model llavamed", "llavamed", f"pretrained={arguments.model}"),
                ("--model openai, our server", "openai", f"model={served},{url}"),
                ("--model openai, a wrong name", "openai", f"model=absent,{url}"),
            ):
                samples, score = _run(model, given, folder)
                found, how = results.match(results.read(samples), questions, way)
                same = sum(p.text == text for p, text in zip(found, own, strict=True))
                failed = sum(bool(p.failed) for p in found)
                print(f"| {way} | {same} of {len(own)} | {failed} | {100 * score:.1f} | {how} |")
        finally:
            server.terminate()
            server.wait()


def _model_name(port: int) -> str:
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as reply:
                return str(json.load(reply)["data"][0]["id"])
        except OSError:
            time.sleep(1)
    sys.exit("the server did not start within two minutes")


def _run(model: str, given: str, folder: Path) -> tuple[Path, float]:
    out = Path(tempfile.mkdtemp(dir=folder))
    subprocess.run(
        [sys.executable, "-m", "lmms_eval", "--model", model, "--model_args", given, "--include_path", str(folder),
         "--tasks", "ours", "--batch_size", "8", "--output_path", str(out), "--log_samples"],
        check=True, capture_output=True, env={**os.environ, "HF_DATASETS_CACHE": str(folder / "cache")},
    )  # fmt: skip
    (samples,), (scores,) = out.rglob("*_samples_ours.jsonl"), out.rglob("*_results.json")
    return samples, json.loads(scores.read_text())["results"]["ours"]["right,none"]


if __name__ == "__main__":
    main()
