"""The evaluation: train, unlearn by several methods, compare with retraining, over seeds.

- `config`, `audit_config`, `parsing`: the YAML configuration, checked key by key.
- `data`, `models`, `scenarios`, `training`: what is trained on what.
- `task`, `methods`, `retraining`: the registry of compared methods.
- `measure`: the figures of each method.
- `audit`, `anchors`: the forget set shifted by SPD-GAN, and what that instrument is worth.
- `one_seed`, `runner`: the steps of a seed; seeds, resuming, interruption.
- `results`: the results file.

`fastunlearn demo`, `run` and `audit` call it; nothing here is imported by `import fastunlearn`.
"""
