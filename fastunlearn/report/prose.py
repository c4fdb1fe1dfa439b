"""The fixed texts of a report: words, origins, what the method is, what is promised."""

from __future__ import annotations

MARKS = {
    "paper": "named or stated by the source paper: Zuo, Tang, Li and Datta, Machine Unlearning "
    "Through Fine-Grained Model Parameters Perturbation, IEEE TKDE 37(4), 2025",
    "peer": "stated by a later publication that re-implements the method",
    "paper via peer": "the paper's, as a later publication states it",
    "ours": "our own definition, because the paper's formula was not at hand or there is none",
    "field": "in common use in unlearning research; the exact form is the one written here",
}

WORDS = (
    ("w₀", "original model, trained on all training data"),
    ("w₁", "model after unlearning"),
    ("w*", "retrained model, trained on the kept data only: the reference"),
    ("Dᵤ", "forget set, the data to unlearn"),
    ("Dᵣ", "retain set, the rest of the training data"),
    ("Dₜ", "test set"),
    ("P(w, S)", "accuracy of model w on data S"),
)

AUDIT_WORDS = (
    (
        "G(Dᵤ)",
        "the forget set as SPD-GAN shifts it; here the original model was trained on it, "
        "and Dᵤ stands for it in all figures but those on unshifted data",
    ),
)

METHOD = (
    ("Top-K selects the K parameters most sensitive to the data to forget.", "paper"),
    ("Random-k selects parameters uniformly at random.", "paper"),
    ("Random-k here takes exactly K parameters, every K-subset alike.", "ours"),
    ("Noise is added to the selected parameters only.", "paper"),
    ("Normal noise of scale 0.1 on 1 % of the parameters is the usual setting.", "peer"),
    (
        "A repair follows the noise: fine-tuning on the kept data, with a Jensen-Shannon term that "
        "holds the outputs on the data to forget near those of the original model.",
        "paper via peer",
    ),
    ("Fine-tuning, gradient ascent and leaving the model alone are baselines.", "field"),
)

AUDIT_METHOD = (
    (
        "SPD-GAN (Slightly Perturbed Distribution GAN) moves the data to forget slightly off the "
        "training distribution, so that only a model that learned the shifted data itself does "
        "well on it.",
        "paper",
    ),
    (
        "Its shift is bounded, works against reference models that are trained on the kept data "
        "with seeds of their own, and keeps the labels.",
        "ours",
    ),
    (
        "Partly retrained models keep a share of the data to forget: their degree must lie between "
        "the original and the retrained models', in order.",
        "ours",
    ),
)

PROMISES = (
    "Exact selection: exactly K parameters, and the same ones for the same scores and seed.",
    "Reproducible noise: the same seed gives the same bits.",
    "A complete receipt: what was selected, where, which noise, a commitment to the seed.",
)

LIMITS = (
    "No differential privacy.",
    "No certified removal.",
    "No proof of erasure. A figure says what this measurement could see; a stronger attack may "
    + "see more.",
    "The noise is not secret: Philox is not a cryptographic generator, and whoever has the seed "
    + "and the changed model can subtract the noise.",
    "The figures hold for these data, this model and these seeds.",
)
