"""Benchmarks beside the idioms that users write today."""
