"""What a fetch of a whole inventory keeps in memory, without the fetching: the inventory, the ledger, the counts.

    python benchmarks/fetch_memory.py [--articles 500000]

Twice over the same articles, as a mirror is kept up: the second run has the first one's rows beside its own.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import tempfile
import time
from pathlib import Path

from llavamed.corpus import fetched, wanted
from llavamed.corpus.bucket import Name
from llavamed.corpus.ledger import FETCHED, Ledger, Row
from llavamed.manifest import Manifest


def mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(out: Path, articles: int, settings: str) -> None:
    rows = ((Name(i, 1), hashlib.md5(str(i).encode()).hexdigest()) for i in range(1, articles + 1))
    asked = wanted.Inventory(rows).wanted(False, None, 0)
    with Ledger(out, wanted.fingerprint(asked) + settings) as ledger:
        for one, _ in ledger.join(asked):
            assert one.versions is not None
            ledger.settle(one.pmcid, [Row(f"PMC{one.pmcid}.1", FETCHED, one.versions[0][1], "CC-BY-4.0", 5, 10**6)])
        ledger.finish()
    result = Manifest("fetch", {"base_url": "", "licence": ""}, extra={"changes": {}, "traffic": {}})
    fetched.finish(out, result, ledger, None)
    assert result.counts["articles"] == articles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--articles", type=int, default=500_000)
    count = parser.parse_args().articles
    bare = mebibytes()
    print("| run | seconds | peak, MiB | over the bare program, bytes an article |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "second"):
            began = time.monotonic()
            run(Path(folder), count, name)
            over = (mebibytes() - bare) * 2**20 / count
            print(f"| {name} | {time.monotonic() - began:.0f} | {mebibytes():,.0f} | {over:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
