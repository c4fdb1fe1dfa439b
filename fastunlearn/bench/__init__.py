"""Benchmarks beside the idioms that people write today and beside the memory floor.

`fastunlearn bench` runs what fits in a minute; `benchmarks/` of the source tree runs the rest on
the same engine. `patterns` and `models` say what is measured on, `cases` what is measured, `peers`
and `floors` against what, `measure` and `child` how.
"""
