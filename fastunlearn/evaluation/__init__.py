"""The evaluation: train, unlearn by several methods, compare with retraining, over seeds.

- `config`: the YAML configuration, checked key by key.
- `data`, `models`, `scenarios`, `training`: what is trained on what.
- `methods`: the registry of compared methods.
- `measure`: the figures of each method.
- `runner`: seeds, resuming, interruption.
- `results`: the results file.

`fastunlearn demo` and `fastunlearn run` call it; nothing here is imported by `import fastunlearn`.
"""
