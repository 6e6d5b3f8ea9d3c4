"""A second opinion on a figure's domain: what its pixels say, beside what its words said (`domain`).

Two ways, both on a CLIP-type tower:

- *zero-shot* (Radford et al. 2021, section 3.1): a CLIP or SigLIP with both halves compares the picture with one
  sentence for each domain, "a CT scan". Nothing is trained; it is as good as the CLIP (BiomedCLIP knows medicine).
- *linear probe* (`train`): one linear layer on a tower's features, taught on the pairs of a corpus whose words are
  sure. It needs only the tower that the assistant sees with, and takes minutes on one core.

The hard thing is that the teacher of the probe is the words' own verdict, with its mistakes. So only pairs are taken
whose words all speak for one domain, no chart and no compound figure; articles, not pairs, are held out to tell how
often both agree (pictures of one article look alike); and the opinion is written beside the corpus, not into it: where
the two differ a person may look, or the pair be left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llavamed import manifest
from llavamed.corpus.store import Corpus
from llavamed.errors import InputError
from llavamed.imaging.decode import decode
from llavamed.manifest import Manifest
from llavamed.model import parts
from llavamed.progress import track
from llavamed.records import DOMAINS, Pair, read_jsonl

PROBE = "probe.safetensors"
_HINT = "`llavamed corpus train-domain CORPUS --out FOLDER` makes one"
_LAYER = -2  # as LLaVA reads the tower
_DECAY = 0.02  # L2 on the weights, for features of deviation 1; with less, the words' mistakes are learnt by heart
_BATCH = 32
_HELD_OUT = 5  # one article of so many
_LEAST = 2  # pairs of a domain, to be taught at all

# One sentence each; those of "other" are the kinds of picture it is made of, and its probability is their sum.
PROMPTS = {
    "chest_xray": ("a chest X-ray",),
    "mri": ("an MRI scan",),
    "ct_scan": ("a CT scan",),
    "histology": ("a histology slide, stained tissue under a microscope",),
    "gross": ("a photograph of a surgical specimen or an organ",),
    "other": (
        "an ultrasound image",
        "an endoscopy image",
        "a fundus photograph",
        "a photograph of a patient",
        "a fluorescence microscopy image",
        "an electron microscopy image",
        "a chart or a diagram",
        "an X-ray of bones or teeth",
    ),
}


@dataclass(frozen=True)
class Opinion:
    """What the pixels say of a pair, beside what the words said."""

    key: str
    words: str
    words_score: float
    pixels: str
    probability: float


@dataclass(frozen=True)
class Probe:
    """One linear layer on standardised features. `tower` names what made these."""

    weight: torch.Tensor  # (classes, dim)
    bias: torch.Tensor  # (classes)
    mean: torch.Tensor  # (dim)
    deviation: torch.Tensor  # (dim)
    classes: tuple[str, ...]
    tower: str

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """(images, dim) -> (images, classes)."""
        return (((features - self.mean) / self.deviation) @ self.weight.T + self.bias).softmax(-1)

    def save(self, path: Path) -> None:
        tensors = {name: getattr(self, name).contiguous() for name in ("weight", "bias", "mean", "deviation")}
        save_file(tensors, path, {"classes": json.dumps(self.classes), "tower": self.tower})

    @classmethod
    def load(cls, folder: Path) -> Probe:
        """Raises InputError if there is no probe, or a damaged one."""
        manifest.require(folder, "domain probe", _HINT)
        try:
            with safe_open(folder / PROBE, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in ("weight", "bias", "mean", "deviation")}
                about = file.metadata()
            return cls(**tensors, classes=tuple(json.loads(about["classes"])), tower=about["tower"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{folder / PROBE}: cannot be read ({error}); train it again") from None


def fit(features: torch.Tensor, labels: Sequence[str], tower: str) -> Probe:
    """The probe of least loss on features (images, dim), every class weighing the same. Deterministic: the problem is
    convex, and L-BFGS starts at zero."""
    classes = tuple(name for name in DOMAINS if name in set(labels))
    target = torch.tensor([classes.index(label) for label in labels])
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    inputs = (features - mean) / deviation
    weight = torch.zeros(len(classes), features.shape[1], requires_grad=True)
    bias = torch.zeros(len(classes), requires_grad=True)
    each = len(labels) / (len(classes) * torch.bincount(target, minlength=len(classes)).float())
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (
            torch.nn.functional.cross_entropy(inputs @ weight.T + bias, target, each) + _DECAY * weight.square().sum()
        )
        value.backward()
        return value

    optimizer.step(loss)
    return Probe(weight.detach(), bias.detach(), mean, deviation, classes, tower)


class Tower:
    """A vision tower as a function of images. `name`: "tiny", a folder or a hub id."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._model, self._processor = parts.tower(name)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """float32 (images, dim): the mean and the maximum over the patches of the layer that LLaVA reads."""
        pixels = self._processor(list(images), return_tensors="pt")["pixel_values"]
        hidden = self._model(pixels, output_hidden_states=True).hidden_states[_LAYER].float()  # (images, tokens, dim)
        return torch.cat([hidden.mean(1), hidden.amax(1)], 1)


class ZeroShot:
    """A CLIP or SigLIP with both halves. Raises InputError for a tower without a text half."""

    def __init__(self, name: str) -> None:
        self._model, self._processor, tokenizer = parts.clip(name)
        prompts = [prompt for domain in DOMAINS for prompt in PROMPTS[domain]]
        self._tokens = tokenizer(prompts, padding=True, return_tensors="pt")
        self._of = torch.tensor([n for n, domain in enumerate(DOMAINS) for _ in PROMPTS[domain]])

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(images, domains), in the order of `records.DOMAINS`."""
        pixels = self._processor(list(images), return_tensors="pt")["pixel_values"]
        likely = self._model(**self._tokens, pixel_values=pixels).logits_per_image.float().softmax(-1)
        return torch.zeros(len(images), len(DOMAINS)).index_add_(1, self._of, likely)


def train(corpus: Path, out: Path, tower: str = "tiny", least_score: float = 0.9) -> Manifest:
    """Teach a probe on a corpus's pairs whose words are sure, and write it to `out` with how often it agrees with the
    words on articles that it was not taught on. Raises InputError if fewer than two domains can be taught."""
    source = Corpus(corpus)
    result = Manifest("domain probe", {"tower": tower, "least_score": least_score}, {"corpus": source.fingerprint})
    if manifest.is_done(out, result):
        return Manifest.of(manifest.read(out) or {})
    sure = [p for p in source.pairs() if p.domain_score >= least_score and not p.is_plot and not p.is_compound]
    held = [pair for pair in sure if _is_held_out(pair)]
    taught = [pair for pair in sure if not _is_held_out(pair)]
    enough = {name for name, count in Counter(pair.domain for pair in taught).items() if count >= _LEAST}
    if len(enough) < 2:
        raise InputError(
            f"{corpus}: pairs of {len(enough)} domain(s) are sure enough, two are needed; build a larger corpus"
        )
    taught = [pair for pair in taught if pair.domain in enough]
    see = Tower(tower)
    manifest.begin(out, result.stage)
    features = torch.cat([see(images) for _, images in _batches(source, taught, len(taught))])
    probe = fit(features, [pair.domain for pair in taught], tower)
    probe.save(out / PROBE)
    agreed, asked = Counter[str](), Counter[str]()
    for pairs, images in _batches(source, held, len(held)):
        for pair, (name, _) in zip(pairs, _best(probe.probabilities(see(images)), probe.classes), strict=True):
            asked[pair.domain] += 1
            agreed[pair.domain] += name == pair.domain
    result.counts = {"pairs": len(source), "taught": len(taught), "held_out": len(held)}
    result.extra = {"held_out": {name: [agreed[name], asked[name]] for name in DOMAINS if asked[name]}}
    result.write(out)
    return result


def opinions(corpus: Path, probe: Path | None = None, clip: str | None = None) -> Iterator[Opinion]:
    """The second opinion on every pair of a corpus, by a trained probe or a CLIP with both halves."""
    source = Corpus(corpus)
    classes: Sequence[str] = DOMAINS
    if probe is not None:
        judge = Probe.load(probe)
        see, classes = Tower(judge.tower), judge.classes
    else:
        assert clip is not None
        zero_shot = ZeroShot(clip)
    for pairs, images in _batches(source, source.pairs(), len(source)):
        likely = zero_shot.probabilities(images) if probe is None else judge.probabilities(see(images))
        for pair, (name, probability) in zip(pairs, _best(likely, classes), strict=True):
            yield Opinion(pair.key, pair.domain, pair.domain_score, name, round(probability, 4))


def write(found: Iterable[Opinion], out: Path) -> Counter[tuple[str, str]]:
    """Write one opinion a line; returns how often words and pixels said what."""
    table: Counter[tuple[str, str]] = Counter()
    aside = out.with_name(out.name + ".tmp")
    with aside.open("w", encoding="utf-8") as lines:
        for one in found:
            table[one.words, one.pixels] += 1
            lines.write(json.dumps(vars(one)) + "\n")
    aside.replace(out)
    return table


def read(path: Path) -> list[Opinion]:
    return [Opinion(**row) for row in read_jsonl(path)]


def _is_held_out(pair: Pair) -> bool:
    return hashlib.sha256(pair.article.encode()).digest()[0] % _HELD_OUT == 0


def _batches(source: Corpus, pairs: Iterable[Pair], total: int) -> Iterator[tuple[list[Pair], list[Image.Image]]]:
    """Some pairs at a time, with their images."""
    shown = iter(track(pairs, "looking at images", total=total, unit="images"))
    while batch := list(islice(shown, _BATCH)):
        yield batch, [decode(source.image(pair.key), pair.key) for pair in batch]


def _best(probabilities: torch.Tensor, classes: Sequence[str]) -> list[tuple[str, float]]:
    values, indices = probabilities.max(-1)
    return [(classes[int(at)], float(value)) for value, at in zip(values, indices, strict=True)]


def tables(body: dict[str, Any]) -> list[tuple[str, int, int, str]]:
    """(domain, held-out pairs, agreed, share) of a trained probe's manifest."""
    return [(name, n, right, f"{right / n:.3f}") for name, (right, n) in body["extra"]["held_out"].items()]
