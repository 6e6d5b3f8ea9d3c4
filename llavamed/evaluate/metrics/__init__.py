"""One module a family of benchmarks: pure functions from (prediction, reference) to a number.

Each has its official scorer, quirks included, and a strict one: `OFFICIAL` and `STRICT` are their ids,
`WHY_THEY_DIFFER` is the sentence for the report. `docs/metrics.md` has them side by side.
"""
