"""Make the tiny base parts: a vision tower and a language model that have seen the phantom world before.

    python -m llavamed.demo.pretrain --out llavamed/demo/base

LLaVA-Med starts from a pretrained CLIP and a pretrained language model and learns only to join them.
For the demo to mean the same, its parts are pretrained too, apart from each other and apart from the
demo: from other seeds, in other words (`pretrain.yaml`, `pretrain_questions.yaml`).

- The tower is a CLIP vision transformer with two losses: CLIP's contrastive one against a bag-of-words text encoder,
  and, on the layer that LLaVA will read, linear classifiers of the facts that were drawn (in the manner of SuperClass,
  Huang et al., 2024, with facts for words), each time from a few random patches, so that every patch learns to tell the
  whole picture. The text encoder and the classifiers are thrown away. The image vector is the mean of the patches, as
  LLaVA has no use for the class token.
- The language model is a Mistral trained on texts about phantom pictures and on questions answered from such
  texts: it can read and answer, and has never seen an image. A real one has read all of English; this one knows the
  wordings that it has met, so there are four thousand of them, with synonyms. So that it can read what is not quite a
  word, which is what a projector will give it, most contexts are rows of mixed word embeddings, and all embeddings
  carry noise (as in NEFTune, Jain et al., 2023).
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from llavamed.demo import wording as w
from llavamed.demo.draw import draw
from llavamed.demo.truth import DOMAIN_NAMES, Truth, sample
from llavamed.progress import Progress

SEED = 20_240_229  # the demo's streams start from [purpose, its own seed]; see articles.py
IMAGE_SIZE, PATCH_SIZE, DRAWN_SIZE = 96, 16, 160  # pixels
VOCABULARY = 1024
NOISE = 0.3  # of the embeddings' standard deviation, at most
FEATURE_LAYER = -2  # what LLaVA reads
READ_PATCHES = 4  # of 36, drawn anew each step: what the classifiers see
POSITION_STD = 0.4  # of the position embeddings at first. CLIP's 0.02 drowns in patches of 0.5: sides are learned late
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>", "[INST]", "[/INST]")
HELD_OUT_SHAPES = {w.shape(question) for options in w.HELD_OUT.values() for question in options}
KINDS = ("modality", "organ", "finding", "side", "size", "count")
COMPOSED = 0.25  # of the questions, from an opening and what is asked; the others stand whole in the table
EXCHANGED = 0.3  # of the words that have synonyms
CARELESS = 0.1  # of the questions, typed without capitals and marks


def _table(name: str) -> Any:
    return yaml.load((Path(__file__).parent / name).read_text(encoding="utf-8"), _Loader)


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
WORDS: dict[str, Any] = {**_table("pretrain.yaml"), "questions": _table("pretrain_questions.yaml")}


# ---------------------------------------------------------------- text


def pretrain_caption(truth: Truth, rng: np.random.Generator) -> str:
    modality = w.choose(rng, (DOMAIN_NAMES[truth.domain], *w.CAPTION_MODALITY[truth.domain]))
    text = w.choose(rng, WORDS["heads"]).format(domain=modality, organ=truth.organ)
    if truth.normal:
        text += w.choose(rng, WORDS["normal"])
    else:
        forms = w.FINDING_FORMS[truth.finding][rng.integers(len(w.FINDING_FORMS[truth.finding]))]
        size = w.choose(rng, w.SIZE_FORMS[truth.size]) if truth.size else ""
        place = w.choose(rng, w.SIDE_PLACES[truth.organ]).format(side=truth.side) if truth.side else ""
        finding = w.finding_phrase(truth, forms, size, True, rng)
        text += w.choose(rng, WORDS["links"]).format(finding=finding, Finding=w.capital(finding), place=place)
    return w.capital(" ".join(text.split()).replace(" .", "."))


def general_sentence(rng: np.random.Generator) -> str:
    """Plain English that holds no fact, of random length."""
    parts = [w.choose(rng, WORDS["subjects"]), w.choose(rng, WORDS["verbs"])]
    parts += [w.choose(rng, WORDS["complements"]) for _ in range(rng.integers(1, 4))]
    if rng.random() < 0.3:
        parts += ["and", w.choose(rng, WORDS["subjects"]).lower(), w.choose(rng, WORDS["verbs"])]
    return " ".join(parts) + "."


def value_of(truth: Truth, kind: str) -> str:
    """The canonical word of a fact, "normal" where nothing was found; "" if the picture has no such fact."""
    return w.fact(truth, kind) or ("normal" if kind == "finding" else "")


def facts_of(truth: Truth) -> list[str]:
    """The canonical words of all facts, in the order of `KINDS`."""
    return [value for kind in KINDS if (value := value_of(truth, kind))]


def keywords(truth: Truth, rng: np.random.Generator) -> str:
    """The facts as a shuffled bag of words, some often and some once: what projected image tokens will look like."""
    values = facts_of(truth)
    share = rng.dirichlet(np.ones(len(values)))
    words = values + [values[i] for i in rng.choice(len(values), rng.integers(0, 24), p=share)]
    rng.shuffle(words)
    return " ".join(words)


def pretrain_question(kind: str, form: str, rng: np.random.Generator) -> str:
    """A whole question of the table, or one composed of an opening and what is asked; never one of the benchmark's."""
    while True:
        if rng.random() < COMPOSED:
            asked = w.choose(rng, WORDS["asked"][kind])
            opening = w.choose(rng, WORDS["openings"][form])
            question = opening.replace("{np}", asked).replace("{clause}", asked)
        else:
            question = w.choose(rng, WORDS["questions"][kind])
        question = exchange(question, rng)
        if w.shape(question) not in HELD_OUT_SHAPES:
            return question


_SYNONYMS = {word: group for group in WORDS["synonyms"] for word in group}
_EXCHANGEABLE = re.compile(rf"\b(an? )?({'|'.join(map(re.escape, sorted(_SYNONYMS, key=len, reverse=True)))})\b")


def exchange(question: str, rng: np.random.Generator) -> str:
    """Some of the words that have synonyms exchanged, with the article that fits ("an image" -> "a picture")."""

    def other(found: re.Match[str]) -> str:
        if rng.random() >= EXCHANGED:
            return found[0]
        word = w.choose(rng, _SYNONYMS[found[2]])
        return w.with_article(word) if found[1] else word

    return _EXCHANGEABLE.sub(other, question)


def question_and_answer(truth: Truth, rng: np.random.Generator) -> tuple[str, str] | None:
    """A question in the pretraining's words with its answer, or None where the drawn kind does not apply."""
    kind = w.choose(rng, tuple(WORDS["questions"]))
    name, form = kind.split("_")
    question = pretrain_question(kind, form, rng)
    forms = w.FINDING_FORMS.get(truth.finding, (("finding", "findings"),))
    noun, nouns = forms[rng.integers(len(forms))]
    if name in ("abnormal", "normal"):
        answer = w.choose(rng, WORDS["answers"]["yes" if truth.normal == (name == "normal") else "no"][:1])
        return typed(question, rng), answer
    value = w.fact(truth, name)
    if form == "open":
        if not value:
            return None
        answer = w.choose(rng, WORDS["answers"]["open"]).format(x=w.candidate(name, value), kind=name)
    else:
        others = [v for v in w.plausible(truth, name) if v != value]
        if not others or (not value and name != "finding"):
            return None
        right = bool(value) and rng.random() < 0.5
        shown = value if right else w.choose(rng, tuple(others))
        question = question.replace("{nouns}", "{noun}") if shown == "one" else question
        question = question.replace("{x}", w.candidate(name, shown))
        wordings = WORDS["answers"]["yes" if right else "no"]
        answer = w.choose(rng, wordings if value else wordings[:1])
        answer = answer.format(x=w.candidate(name, value) if value else "", kind=name)
    return typed(question.replace("{noun}", noun).replace("{nouns}", nouns), rng), w.capital(answer)


def typed(question: str, rng: np.random.Generator) -> str:
    """As people type it: with a capital and its mark, or carelessly with neither."""
    return question.lower().rstrip("?.") if rng.random() < CARELESS else w.capital(question)


def pretrain_text(rng: np.random.Generator, soft: bool = False) -> tuple[str, Truth | None]:
    """One document: a caption, or a context with a description or questions and answers about it.

    With `soft` most contexts are a row of `<image>` marks instead of words, and the truth that the marks stand for
    is returned: `soft_words` puts it there.
    """
    truth = sample(rng)
    style, kind = rng.random(), rng.random()
    if style < 0.05:
        return " ".join(
            [pretrain_caption(truth, rng), *(general_sentence(rng) for _ in range(rng.integers(0, 3)))]
        ), None
    marks = soft and kind < 0.6
    if marks:
        context = "<image>" * int(rng.integers(4, 37))
    else:
        context = keywords(truth, rng) if kind < 0.8 else pretrain_caption(truth, rng)
    text = ""
    if style < 0.3:
        caption = pretrain_caption(truth, rng)
        if rng.random() < 0.2:
            caption += " " + general_sentence(rng)
        text = f"[INST] {context}\n{w.choose(rng, WORDS['describe'])} [/INST] {caption}</s>"
    turns = 0
    while not text or (style >= 0.3 and turns < 4):
        pair = question_and_answer(truth, rng)
        if pair:
            text += f"[INST] {context + chr(10) if not text else ''}{pair[0]} [/INST] {pair[1]}</s>"
            turns += 1
    return text, truth if marks else None


def train_tokenizer(documents: int = 20_000) -> PreTrainedTokenizerFast:
    rng = np.random.default_rng([SEED, 1])
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    special = tuple(t for t in SPECIAL_TOKENS if t.startswith("[") or t == "</s>")
    texts = (pretrain_text(rng)[0] for _ in range(documents))
    tokenizer.train_from_iterator((_without(text, special) for text in texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>", "[INST]", "[/INST]"],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _without(text: str, tokens: tuple[str, ...]) -> str:
    for token in tokens:
        text = text.replace(token, "\n")
    return text


# ---------------------------------------------------------------- vision tower


class BagOfWords(nn.Module):
    """The contrastive loss's text side: the mean of word vectors, one hidden layer. (batch, words) -> (batch, dim)."""

    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(vocabulary, dim, mode="mean", padding_idx=3)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, ids: Tensor) -> Tensor:
        vectors: Tensor = self.out(self.words(ids))
        return vectors


class FactClassifiers(nn.Module):
    """One linear classifier a kind of fact, on the mean of some patches (batch, patches, dim)."""

    def __init__(self, values: dict[str, list[str]], dim: int) -> None:
        super().__init__()
        self.values = values
        self.norm = nn.LayerNorm(dim)
        self.lines = nn.ModuleDict({kind: nn.Linear(dim, len(names)) for kind, names in values.items()})

    def loss(self, patches: Tensor, truths: list[Truth]) -> Tensor:
        """The sum over the kinds of the cross-entropy, mean over all pictures; a fact that a picture lacks costs 0."""
        seen = self.norm(patches).mean(1)
        total = seen.new_zeros(())
        for kind, names in self.values.items():
            found = [value_of(truth, kind) for truth in truths]
            target = torch.tensor([names.index(value) if value else -100 for value in found])
            total = total + F.cross_entropy(self.lines[kind](seen), target, reduction="sum")
        return total / len(truths)


def draw_examples(count: int, stream: int) -> tuple[list[Truth], Tensor]:
    """`count` truths and their pictures as the image processor sees them, (count, 3, 96, 96) uint8."""
    rng = np.random.default_rng([SEED, 2, stream])
    truths, pictures = [], np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    with Progress("drawing", count, "images") as progress:
        for index in range(count):
            truth = sample(rng)
            picture = Image.fromarray(draw(truth, rng, DRAWN_SIZE))
            pictures[index] = np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
            truths.append(truth)
            progress.advance()
    return truths, torch.from_numpy(pictures).permute(0, 3, 1, 2)


def normalise(pictures: Tensor, processor: CLIPImageProcessorPil) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std))
    return (pictures.float() / 255 - mean) / std


def train_tower(
    tokenizer: PreTrainedTokenizerFast, images: int, steps: int, batch: int = 96
) -> tuple[CLIPVisionModel, CLIPImageProcessorPil]:
    torch.manual_seed(SEED)
    rng = np.random.default_rng([SEED, 3])
    processor = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_center_crop=False, resample=Image.Resampling.BICUBIC
    )
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )
    tower = CLIPVisionModel(config)
    nn.init.normal_(tower.embeddings.position_embedding.weight, std=POSITION_STD)
    truths, pictures = draw_examples(images, stream=0)
    values = {kind: sorted({v for t in truths if (v := value_of(t, kind))}) for kind in KINDS}
    text, classifiers, image_out = BagOfWords(len(tokenizer), 128), FactClassifiers(values, 128), nn.Linear(128, 128)
    scale = nn.Parameter(torch.tensor(math.log(10.0)))
    parameters = [*(p for m in (tower, text, classifiers, image_out) for p in m.parameters()), scale]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.02)
    schedule = _schedule(optimizer, steps)
    groups = {truth: number for number, truth in enumerate(dict.fromkeys(truths))}
    with Progress("vision tower", steps, "steps") as progress:
        for step in range(steps):
            chosen = rng.choice(images, batch, replace=False)
            chosen_truths = [truths[i] for i in chosen]
            captions = tokenizer(
                [pretrain_caption(t, rng) for t in chosen_truths], padding=True, return_tensors="pt", truncation=True
            ).input_ids
            group = torch.tensor([groups[t] for t in chosen_truths])
            same = (group[:, None] == group[None]).float()
            target = same / same.sum(1, keepdim=True)  # equal truths are all right answers
            shift = tuple(int(s) for s in rng.integers(-3, 4, 2))
            moved = torch.roll(pictures[torch.from_numpy(chosen)], shift, (2, 3))
            hidden = tower(normalise(moved, processor), output_hidden_states=True).hidden_states
            image_vector = F.normalize(image_out(hidden[-1][:, 1:].mean(1)), dim=-1)
            text_vector = F.normalize(text(captions), dim=-1)
            logits = scale.exp().clamp(max=100) * image_vector @ text_vector.T
            contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            contrast = contrast + (target * target.clamp_min(1e-9).log()).sum(1).mean()  # 0 is perfect
            patches = hidden[FEATURE_LAYER][:, 1:]
            facts = classifiers.loss(patches[:, torch.randperm(patches.shape[1])[:READ_PATCHES]], chosen_truths)
            _step(optimizer, schedule, contrast + facts, parameters)
            progress.advance(note=f"contrast {contrast.item():.3f}, facts {facts.item():.3f}")
            if step % 100 == 0:
                print(f"step {step} contrast {contrast.item():.3f} facts {facts.item():.3f}", flush=True)
    unit_features(tower, normalise(pictures[:256], processor))
    return tower.eval(), processor


@torch.no_grad()
def unit_features(tower: CLIPVisionModel, pixels: Tensor) -> None:
    """Scale the residual stream so that the features which LLaVA reads have standard deviation 1.

    Exact: every layer normalises what it reads, so dividing all that is written to the stream changes nothing else.
    """
    scale = tower(pixels, output_hidden_states=True).hidden_states[FEATURE_LAYER].std()
    written = [
        tower.pre_layrnorm,
        *(m for layer in tower.encoder.layers for m in (layer.self_attn.out_proj, layer.mlp.fc2)),
    ]
    for module in written:
        module.weight /= scale
        module.bias /= scale


@torch.no_grad()
def probe(tower: CLIPVisionModel, processor: CLIPImageProcessorPil, count: int = 3000) -> dict[str, float]:
    """Held-out accuracy of a linear probe on the features that LLaVA reads (layer -2, patches), per fact."""
    truths, pictures = draw_examples(count, stream=1)
    features = []
    for part in pictures.split(250):
        hidden = tower(normalise(part, processor), output_hidden_states=True).hidden_states[FEATURE_LAYER][:, 1:]
        features.append(torch.cat([hidden.mean(1), hidden.amax(1), hidden.amin(1)], 1))
    x = torch.cat(features)
    x = (x - x.mean(0)) / x.std(0)
    found = {}
    for kind in KINDS:
        values = [value_of(t, kind) for t in truths]
        rows = torch.tensor([i for i, v in enumerate(values) if v])
        names = sorted({values[i] for i in rows.tolist()})
        y = torch.tensor([names.index(values[i]) for i in rows.tolist()])
        cut = int(len(rows) * 0.7)
        with torch.enable_grad():
            line = nn.Linear(x.shape[1], len(names))
            optimizer = torch.optim.LBFGS(line.parameters(), max_iter=200)

            def closure(line: nn.Linear = line, rows: Tensor = rows, y: Tensor = y, cut: int = cut) -> Tensor:
                line.zero_grad()
                loss = F.cross_entropy(line(x[rows[:cut]]), y[:cut]) + 1e-4 * line.weight.square().sum()
                loss.backward()
                return loss

            optimizer.step(closure)
        found[kind] = (line(x[rows[cut:]]).argmax(1) == y[cut:]).float().mean().item()
    return found


# ---------------------------------------------------------------- language model


def train_language_model(tokenizer: PreTrainedTokenizerFast, steps: int, batch: int = 40) -> MistralForCausalLM:
    torch.manual_seed(SEED)
    rng = np.random.default_rng([SEED, 4])
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = MistralForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = _schedule(optimizer, steps)
    with Progress("language model", steps, "steps") as progress:
        for step in range(steps):
            documents = [pretrain_text(rng, soft=True) for _ in range(batch)]
            texts = ["<s>" + text for text, _ in documents]
            encoded = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
            marks = encoded.input_ids == tokenizer.convert_tokens_to_ids("<image>")
            labels = encoded.input_ids.masked_fill(~answers(encoded.input_ids, tokenizer), -100)
            words = model.get_input_embeddings()
            embeddings = words(encoded.input_ids).clone()
            for row, (_, truth) in enumerate(documents):
                if truth is not None:
                    embeddings[row, marks[row]] = soft_words(truth, int(marks[row].sum()), tokenizer, words, rng)
            noise = torch.randn_like(embeddings) * embeddings.detach().std() * NOISE * torch.rand(len(texts), 1, 1)
            out = model(inputs_embeds=embeddings + noise, attention_mask=encoded.attention_mask, labels=labels)
            loss, closed = out.loss, closed_accuracy(out.logits, labels, tokenizer)
            _step(optimizer, schedule, loss, list(model.parameters()))
            progress.advance(note=f"loss {loss.item():.3f}, closed {closed:.2f}")
            if step % 100 == 0:
                print(f"step {step} loss {loss.item():.3f} closed {closed:.2f}", flush=True)
    return model.eval()


def answers(ids: Tensor, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """(batch, tokens) bool: what the model is to say, from after [/INST] to </s>; all of a document without turns.

    Contexts and questions are drawn at random: learning to predict them drowns what there is to learn.
    """
    begin, end = (ids == tokenizer.convert_tokens_to_ids(token) for token in ("[/INST]", "</s>"))
    inside = begin.cumsum(1) > (end.cumsum(1) - end.long())
    plain = ~begin.any(1, keepdim=True)
    return ((inside & ~begin) | plain) & (ids != tokenizer.pad_token_id)


def closed_accuracy(logits: Tensor, labels: Tensor, tokenizer: PreTrainedTokenizerFast) -> float:
    """Share of the answers that begin with Yes or No, of a batch, whose first word is right."""
    first = [tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in ("Yes", "No")]
    at = torch.isin(labels[:, 1:], torch.tensor(first))
    return float((logits[:, :-1][at].argmax(-1) == labels[:, 1:][at]).float().mean())


def soft_words(
    truth: Truth, slots: int, tokenizer: PreTrainedTokenizerFast, words: nn.Module, rng: np.random.Generator
) -> Tensor:
    """(slots, dim): in each slot a random mixture of the embeddings of the facts' words."""
    text = "".join(f" {value}" for value in facts_of(truth))
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
    shares = rng.dirichlet(np.full(len(ids), 0.5), slots)
    mixed: Tensor = torch.from_numpy(shares).float() @ words(ids)
    return mixed


def reading_accuracy(model: MistralForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 400) -> float:
    """Share of closed questions about a held-out text that the language model answers right (chance 0.5)."""
    rng = np.random.default_rng([SEED, 5])
    right = total = 0
    while total < count:
        truth = sample(rng)
        pair = question_and_answer(truth, rng)
        if pair is None or not pair[1].startswith(("Yes", "No")):
            continue
        prompt = f"<s>[INST] {keywords(truth, rng)}\n{pair[0]} [/INST]"
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        answer = tokenizer.decode(model.generate(ids, max_new_tokens=2, do_sample=False)[0, ids.shape[1] :])
        right += answer.strip().startswith(pair[1].split(".")[0].split(",")[0])
        total += 1
    return right / total


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    warm = max(1, steps // 20)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 * (1 + math.cos(math.pi * s / steps)) + 0.01)
    )


def _step(optimizer: Any, schedule: Any, loss: Tensor, parameters: list[Any]) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


# ---------------------------------------------------------------- the shipped folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
    parser.add_argument("--only", choices=("vision_tower", "language_model"), help="remake one part")
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--vision-steps", type=int, default=4_000)
    parser.add_argument("--language-steps", type=int, default=6_500)
    args = parser.parse_args()
    began = time.monotonic()
    tokenizer = train_tokenizer()
    if args.only in (None, "vision_tower"):
        tower, processor = train_tower(tokenizer, args.images, args.vision_steps)
        _save(tower.half(), args.out / "vision_tower", processor)
        print({k: round(v, 3) for k, v in probe(tower.float(), processor).items()})
    if args.only in (None, "language_model"):
        model = train_language_model(tokenizer, args.language_steps)
        _save(model.half(), args.out / "language_model", tokenizer)
        print("reading accuracy", reading_accuracy(model.float(), tokenizer))
    print(f"took {(time.monotonic() - began) / 60:.1f} minutes")


def _save(model: Any, folder: Path, companion: Any) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    companion.save_pretrained(folder)


if __name__ == "__main__":
    main()
