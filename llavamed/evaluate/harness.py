"""The door for lmms-eval: it finds this function by the entry-point group `lmms_eval.models` (pyproject.toml).

    python -m lmms_eval --model llavamed --model_args pretrained=MODEL --tasks pope --output_path OUT --log_samples

Nothing here is imported unless lmms-eval is installed and asks. VLMEvalKit has no such door; it speaks to `llavamed
serve` as to any OpenAI-compatible endpoint, and so can lmms-eval (docs/evaluation.md has both command lines).
"""

from __future__ import annotations

from typing import Any


def lmms_eval_models() -> Any:
    """What lmms-eval needs to know of our model: its name there, and the class to load when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="llavamed", chat_class_path="llavamed.evaluate.lmms_eval_model.LlavaMed")
