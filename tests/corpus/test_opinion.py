"""What pixels say of a domain: a probe on the shipped tower against drawn truth, and zero-shot against transformers."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor
from typer.testing import CliRunner

from llavamed import manifest
from llavamed.cli import app
from llavamed.corpus import opinion, store
from llavamed.demo import draw, truth
from llavamed.errors import InputError
from llavamed.manifest import Manifest
from llavamed.model import parts
from llavamed.records import DOMAINS, Pair

WRONG = 0.1  # of the words that teach


def phantom(seed: int) -> tuple[str, bytes]:
    rng = np.random.default_rng(seed)
    shown = truth.sample(rng)
    out = io.BytesIO()
    Image.fromarray(draw.draw(shown, rng, 96)).save(out, "PNG")
    return shown.domain, out.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """300 phantoms of 60 articles and what they show; the words are wrong about one in ten."""
    folder = tmp_path_factory.mktemp("corpus")
    rng, shown = np.random.default_rng(1), {}
    with store.CorpusWriter(folder) as writer:
        for n in range(300):
            domain, image = phantom(n)
            words = str(rng.choice(DOMAINS[:5])) if rng.random() < WRONG else domain
            key = f"p{n}"
            pair = Pair(key, f"{key}.png", "A caption.", article=f"a{n // 5}", domain=words, domain_score=1.0)
            writer.add(pair, image)
            shown[key] = domain
    Manifest("corpus", {}, {}).write(folder)
    return folder, shown


def test_a_probe_taught_by_words_with_mistakes_tells_what_was_drawn(
    corpus: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, shown = corpus
    made = opinion.train(folder, tmp_path / "probe")
    assert made.counts["taught"] + made.counts["held_out"] == 300
    assert 30 <= made.counts["held_out"] <= 90
    found = list(opinion.opinions(folder, tmp_path / "probe"))
    assert [one.key for one in found] == list(shown)
    held = [one for n, one in enumerate(found) if hashlib.sha256(f"a{n // 5}".encode()).digest()[0] % 5 == 0]
    assert len(held) == made.counts["held_out"]
    right = sum(one.pixels == shown[one.key] for one in held)
    assert right >= 0.95 * len(held)  # better than its teacher, on articles that it has not seen
    assert sum(one.words == shown[one.key] for one in found) < 0.95 * len(found)


def test_a_probe_is_the_same_twice_and_survives_its_file(corpus: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    for name in ("a", "b"):
        opinion.train(corpus[0], tmp_path / name)
    a, b = (opinion.Probe.load(tmp_path / name) for name in ("a", "b"))
    assert torch.equal(a.weight, b.weight)
    assert a.classes == tuple(DOMAINS[:5])
    assert a.tower == "tiny"
    (tmp_path / "a" / opinion.PROBE).write_bytes(b"x")
    with pytest.raises(InputError, match="train it again"):
        opinion.Probe.load(tmp_path / "a")
    with pytest.raises(InputError, match="train-domain"):
        opinion.Probe.load(tmp_path / "none")


def test_a_probe_is_logistic_regression() -> None:
    """scikit-learn's, on the same standardised features with the same penalty."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    labels = [DOMAINS[n % 3] for n in range(90)]
    features = rng.normal(size=(90, 8)).astype(np.float32) + np.array([[n % 3] * 8 for n in range(90)])
    probe = opinion.fit(torch.tensor(features, dtype=torch.float32), labels, "tiny")
    # ours: mean loss + decay * w^2; theirs: C * summed loss + w^2 / 2
    theirs = linear_model.LogisticRegression(C=1 / (2 * opinion._DECAY * 90), tol=1e-8, max_iter=5000)
    scaled = (features - features.mean(0)) / features.std(0, ddof=1)
    expected = theirs.fit(scaled, labels).predict_proba(scaled)
    order = [list(theirs.classes_).index(name) for name in probe.classes]
    got = probe.probabilities(torch.tensor(features, dtype=torch.float32)).numpy()
    assert np.abs(got - expected[:, order]).max() < 5e-3


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights with both halves."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = parts._tokenizer(parts.ModelSection())
    torch.manual_seed(0)
    half = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**half, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 64}
    config = CLIPConfig(text_config=text, vision_config={**half, "image_size": 32, "patch_size": 8}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_zero_shot_is_what_transformers_says_summed_over_the_sentences_of_a_domain(clip: Path) -> None:
    images = [Image.open(io.BytesIO(phantom(n)[1])).convert("RGB") for n in range(3)]
    judge = opinion.ZeroShot(str(clip))
    got = judge.probabilities(images)
    assert torch.allclose(got.sum(-1), torch.ones(3), atol=1e-5)
    prompts = [prompt for domain in DOMAINS for prompt in opinion.PROMPTS[domain]]
    model, processor, tokenizer = parts.clip(str(clip))
    inputs = CLIPProcessor(processor, tokenizer)(text=prompts, images=images, return_tensors="pt", padding=True)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    with torch.inference_mode():
        likely = model(**inputs).logits_per_image.softmax(-1)
    assert torch.allclose(got[:, :5], likely[:, :5], atol=1e-5)
    assert torch.allclose(got[:, 5], likely[:, 5:].sum(-1), atol=1e-5)


def test_the_commands_say_what_is_missing_and_count_every_pair(
    corpus: tuple[Path, dict[str, str]], clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "domains.jsonl"
    run = CliRunner().invoke
    shown = run(app, ["corpus", "domains", str(corpus[0]), "--clip", str(clip), "--out", str(out), "--json"])
    assert sum(row["pairs"] for row in json.loads(shown.stdout)) == 300
    assert len(opinion.read(out)) == 300
    for arguments, message in ((["--clip", "tiny"], "no text half"), ([], "--probe FOLDER")):
        failed = run(app, ["corpus", "domains", str(corpus[0]), *arguments, "--out", str(out)])
        assert isinstance(failed.exception, InputError)
        assert message in str(failed.exception)
    one = tmp_path / "one"
    one.mkdir()
    with store.CorpusWriter(one) as writer:
        writer.add(Pair("p", "p.png", "A caption.", domain="mri", domain_score=1.0), phantom(0)[1])
    Manifest("corpus", {}, {}).write(one)
    with pytest.raises(InputError, match="two are needed"):
        opinion.train(one, tmp_path / "probe")
    assert manifest.read(tmp_path / "probe") is None
