"""What this machine can do: a table of (what, found, what to do) for `llavamed doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

EXTRAS = {  # extra -> the modules that show it is installed
    "serve": ("fastapi", "gradio", "uvicorn"),
    "fast": ("torchao",),
    "ray": ("ray",),
    "lora": ("peft", "bitsandbytes"),
    "track": ("tensorboard", "wandb", "mlflow", "trackio"),
}


def examine(folder: Path = Path()) -> list[list[str]]:
    """One row a finding; the last cell is empty where nothing is to be done."""
    import torch
    import transformers

    rows = [
        ["python", f"{sys.version.split()[0]} on {platform.system()}", ""],
        ["torch, transformers", f"{torch.__version__}, {transformers.__version__}", ""],
        ["CPU", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}", ""],
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            rows.append([f"GPU {index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB", ""])
    else:
        rows.append(
            ["GPU", "none", "the tiny recipe runs on the CPU; a 7B model needs a GPU and a CUDA build of torch"]
        )
    free = shutil.disk_usage(folder.resolve()).free / 2**30
    rows.append(["disk", f"{free:.0f} GiB free", "" if free > 5 else "the demo needs 1 GiB, a 7B run about 60"])
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if find_spec(name) is None]
        found = f"without {', '.join(missing)}" if missing else "installed"
        rows.append([f"extra [{extra}]", found, f"pip install 'llavamed[{extra}]'" if missing else ""])
    return rows
