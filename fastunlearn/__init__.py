"""fastunlearn: remove what a trained model learned from some of its data, and measure how much.

Perturb the few parameters that carry it (Top-K by gradient, or Random-k), repair, evaluate.
"""

from fastunlearn import recipes
from fastunlearn._version import __version__
from fastunlearn.perturb import Perturber, perturb_
from fastunlearn.receipt import Receipt
from fastunlearn.repair import Repair
from fastunlearn.scores import score
from fastunlearn.selection import Selection, select
from fastunlearn.strategies import RandomK, TopK
from fastunlearn.unlearn import Result, unlearn

__all__ = [
    "Perturber",
    "RandomK",
    "Receipt",
    "Repair",
    "Result",
    "Selection",
    "TopK",
    "__version__",
    "perturb_",
    "recipes",
    "score",
    "select",
    "unlearn",
]
