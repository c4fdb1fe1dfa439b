"""Perturbation inside trainers: Hugging Face, Lightning, Accelerate.

Each needs its own package, and is imported on its own:

- `fastunlearn.trainers.huggingface`: `PerturbCallback` and `UnlearnTrainer` for a `Trainer`.
- `fastunlearn.trainers.lightning`: `PerturbCallback` for a Lightning `Trainer`.
- `fastunlearn.trainers.accelerate`: `Perturber` for a loop written with Accelerate.

All of them perturb the parameters that require gradients, so under LoRA those of the adapters. They
do so after the optimizer's step, when gradients are accumulated, clipped and no longer scaled, and
not after a step that the gradient scaler left out. DTensors get the operation for shards.
"""
