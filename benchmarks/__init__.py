"""Benchmarks beside the idioms that users write today; the engine is `fastunlearn.bench`."""
