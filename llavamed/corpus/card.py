"""`README.md` of a corpus: what it is, and, in its head, how the `datasets` library is to read it.

Without the head `load_dataset` would take the index for data too, and would guess the columns of WebDataset shards from
the first five pairs: where one of these is a PNG among JPEGs, or none is cited, the guess fails later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from llavamed.corpus.shards import FIELDS, SUFFIXES
from llavamed.manifest import write_atomic

CARD = "README.md"
_IMAGES = ("jpg", "png", "gif", "webp")  # what `store.as_stored` keeps; of each pair one
_TEXT = """
# Figures and captions

Figure-caption pairs from open-access articles, made by `llavamed corpus build`. `manifest.json` has the funnel of what
was left out, `report.html` shows it, `ATTRIBUTION.md` names every article with its licence. Each pair has its own, in
its field `licence`. `load_dataset("THIS_FOLDER")` of the `datasets` library reads the shards. `index.parquet` has a row
a pair: in which shard its image lies, at which byte, and all that is known of it.
"""


def write(out: Path, fmt: str) -> None:
    head: dict[str, Any] = {
        "license": "other",
        "task_categories": ["image-to-text"],
        "configs": [{"config_name": "default", "data_files": f"shard-*{SUFFIXES[fmt]}"}],
    }
    if fmt == "webdataset":
        image = [{"name": kind, "dtype": "image"} for kind in _IMAGES]
        text = [{"name": name, "dtype": "string"} for name in ("txt", "__key__", "__url__")]
        pair = {"name": "json", "struct": [_feature(name, kind) for name, kind in [("key", pa.string()), *FIELDS]]}
        head["dataset_info"] = {"config_name": "default", "features": [*image, *text, pair]}
    write_atomic(out / CARD, f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{_TEXT}")


def _feature(name: str, kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"name": name, "list": [_feature(field.name, field.type) for field in kind.value_type]}
    return {"name": name, "dtype": {"double": "float64"}.get(str(kind), str(kind))}
