"""One module a family of benchmarks: pure functions from (prediction, reference) to a number."""
