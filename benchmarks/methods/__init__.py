"""Other people's methods, to compare with: own implementations from their papers.

One file for each; the function in it is a `Core`, which changes any `nn.Module` in place. Call
`register_all` once, and configurations of an evaluation may name them as kinds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch.nn.functional import cross_entropy

from benchmarks.methods._common import Core
from benchmarks.methods.bad_teacher import BadTeacherOptions, bad_teacher
from benchmarks.methods.fisher_forgetting import FisherForgettingOptions, fisher_forgetting
from benchmarks.methods.l1_sparse import L1SparseOptions, l1_sparse
from benchmarks.methods.neg_grad_plus import NegGradPlusOptions, neg_grad_plus
from benchmarks.methods.random_labels import RandomLabelsOptions, random_labels
from benchmarks.methods.salun import SalUnOptions, salun
from benchmarks.methods.scrub import ScrubOptions, scrub
from benchmarks.methods.ssd import SSDOptions, ssd
from fastunlearn.evaluation.config import MethodConfig
from fastunlearn.evaluation.data import derive_seed
from fastunlearn.evaluation.methods import METHODS, MethodKind, register
from fastunlearn.evaluation.task import Outcome, Task

Run = Callable[[Task, MethodConfig], Outcome]


def adapted(core: Core, options_type: Any) -> Run:
    """Return a method of the evaluation that runs `core` on a copy of the original model.

    The copy is in evaluation mode, as the original is, and a core puts the mode back. The loaders
    are those of every other method: the same batches in the same order. The seconds cover all
    that the core does.
    """

    def run(task: Task, method: MethodConfig) -> Outcome:
        options = options_type(**method.options)
        model = task.copy_of_original()
        forget = task.forget_loader(options.batch_size)
        retain = task.retain_loader(options.batch_size)
        seed = derive_seed(task.seed, method.kind)
        started = time.perf_counter()
        core(model, forget, retain, cross_entropy, options, seed=seed)
        seconds = time.perf_counter() - started
        return Outcome(model, seconds)

    return run


def _kind(label: str, options_type: type, core: Core) -> MethodKind:
    return MethodKind(label, options_type, None, adapted(core, options_type))


KINDS: dict[str, MethodKind] = {
    "neg_grad_plus": _kind("NegGrad+", NegGradPlusOptions, neg_grad_plus),
    "random_labels": _kind("Random labels", RandomLabelsOptions, random_labels),
    "salun": _kind("SalUn", SalUnOptions, salun),
    "ssd": _kind("SSD", SSDOptions, ssd),
    "scrub": _kind("SCRUB", ScrubOptions, scrub),
    "bad_teacher": _kind("Bad teacher", BadTeacherOptions, bad_teacher),
    "l1_sparse": _kind("L1-sparse", L1SparseOptions, l1_sparse),
    "fisher_forgetting": _kind("Fisher forgetting", FisherForgettingOptions, fisher_forgetting),
}


def register_all() -> None:
    """Add every kind to the evaluation's registry; a second call changes nothing.

    Raises:
        ValueError: a name is taken by another method.
    """
    for name, kind in KINDS.items():
        if METHODS.get(name) is not kind:
            register(name, kind)
