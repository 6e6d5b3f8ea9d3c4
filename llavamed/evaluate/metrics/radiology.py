"""What a generated report says, and not only in which words: CheXbert, RadGraph and GREEN, by RadEval.

BLEU does not see a "no". These three do, each with a model of its own: CheXbert F1 compares 14 findings that a
classifier reads from both reports, RadGraph F1 the entities and relations that a tagger finds (*partial* is what papers
call RadGraph F1), GREEN a language model's count of matching findings and significant errors.

The models are the field's, so the numbers are RadEval's (extra `[radiology]`; read: 2.2.1) and not ours. It fetches the
models from the hub when it first needs them, GREEN's are 7 billion parameters for a GPU; so nothing of this is done
unless it is asked for by name. What goes wrong in one of them is said in its place and costs no other score.

RadGraph and GREEN have a value a report, and so an interval; CheXbert's F1 is of the whole and RadEval does not give
what it is made of, so it has none. A report that GREEN's model did not grade in a form that can be read is left out and
counted. A request that failed has the credit 0; for CheXbert it is the empty report, which has no finding.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Any

from llavamed.errors import InputError
from llavamed.evaluate.statistics import bootstrap

# RadEval's name -> its keys that are reported, and what we call them; with a value a report or of the whole
PER_REPORT = {
    "radgraph": {
        "radgraph_simple": "RadGraph F1, simple",
        "radgraph_partial": "RadGraph F1, partial",
        "radgraph_complete": "RadGraph F1, complete",
    },
    "green": {"green": "GREEN"},
}
OF_THE_WHOLE = {
    "f1chexbert": {
        "f1chexbert_all_micro_f1": "CheXbert F1, 14 findings, micro",
        "f1chexbert_all_macro_f1": "CheXbert F1, 14 findings, macro",
        "f1chexbert_5_micro_f1": "CheXbert F1, 5 findings, micro",
        "f1chexbert_5_macro_f1": "CheXbert F1, 5 findings, macro",
    }
}
NAMES = (*OF_THE_WHOLE, *PER_REPORT)
_INSTALL = "pip install 'llavamed[radiology]'"


def require(names: Sequence[str]) -> None:
    """Raises InputError, before anything is scored, for what is unknown or cannot be done on this machine."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise InputError(f"--radiology {','.join(unknown)}: unknown; give some of {','.join(NAMES)}")
    if names and importlib.util.find_spec("radeval") is None:
        raise InputError(f"--radiology: RadEval is not installed; {_INSTALL}")
    if "green" in names:
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "--radiology green: asks a model of 7 billion parameters and needs a GPU; leave it out here"
            )


def measure(
    names: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[str],
    failed: Sequence[bool],
    images: Sequence[str],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """{title: {"value", "n", "scorer", and "low", "high" where there are values of single reports}}, in per cent; in
    place of a measure that failed {"error"} under its name. Raises InputError as `require` does."""
    require(names)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            scores = _radeval(name, predictions, references)
            scorer = f"RadEval {importlib.metadata.version('radeval')} {name}"
            for key, title in OF_THE_WHOLE.get(name, {}).items():
                found[title] = {"value": round(100 * float(scores[key]), 4), "n": len(predictions), "scorer": scorer}
            for key, title in PER_REPORT.get(name, {}).items():
                found[title] = {**_mean(scores[key], failed, images, draws, seed), "scorer": scorer}
        except Exception as error:  # noqa: BLE001 - a download, a checkpoint, CUDA: whatever models raise
            found[name] = {"error": f"not computed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"}
    return found


def _radeval(name: str, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    from radeval import RadEval

    ask = RadEval(metrics=[name], per_sample=name in PER_REPORT, show_progress=False)
    scores: dict[str, Any] = ask(refs=list(references), hyps=list(predictions))
    return scores


def _mean(
    values: Sequence[float | None], failed: Sequence[bool], images: Sequence[str], draws: int, seed: int
) -> dict[str, Any]:
    credits = [0.0 if lost else value for value, lost in zip(values, failed, strict=True)]
    graded = [(100 * float(credit), image) for credit, image in zip(credits, images, strict=True) if credit is not None]
    drawn = bootstrap([credit for credit, _ in graded], draws, seed, images=[image for _, image in graded])
    entry = {"value": round(drawn.value, 4), "n": drawn.n, "low": round(drawn.low, 4), "high": round(drawn.high, 4)}
    return entry if len(graded) == len(credits) else {**entry, "not_graded": len(credits) - len(graded)}


def lines(found: dict[str, dict[str, Any]]) -> list[str]:
    """For a person to read, a line a number."""
    told = []
    for title, entry in found.items():
        if "error" in entry:
            told.append(f"{title}: {entry['error']}")
            continue
        interval = f" ({entry['low']:.1f}-{entry['high']:.1f})" if "low" in entry else ", no interval"
        left_out = f", {entry['not_graded']} not graded" if "not_graded" in entry else ""
        told.append(f"{title}: {entry['value']:.1f}{interval}, n = {entry['n']}{left_out} ({entry['scorer']})")
    return told
