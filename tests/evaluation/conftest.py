"""A tiny evaluation on real digits that the tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("sklearn")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: for models this small, more only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def raw_config() -> dict[str, Any]:
    """Return a valid configuration as YAML would give it; tests may change it."""
    return tiny_config()


@pytest.fixture(scope="session")
def digits() -> Any:
    """Return all of scikit-learn's digits."""
    from fastunlearn.evaluation.data import load_digits

    return load_digits()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Return the folder and the results of a whole run over two seeds."""
    from fastunlearn.evaluation.config import parse_config
    from fastunlearn.evaluation.runner import run

    out = tmp_path_factory.mktemp("finished")
    return out, run(parse_config(tiny_config()), out)


def tiny_config() -> dict[str, Any]:
    """Return a configuration that runs in a few seconds."""
    return {
        "name": "tiny",
        "dataset": "digits",
        "model": "small_cnn",
        "threads": 1,
        "scenario": {"kind": "random", "fraction": 0.1},
        "seeds": [0, 1],
        "train": {"epochs": 1},
        "repair": {"epochs": 1, "distill": 0.1},
        "methods": {
            "top_k": {"k": 0.01, "std": 0.1},
            "random_k": {"k": 50, "std": 0.1},
            "fine_tune": None,
            "gradient_ascent": {"steps": 3},
        },
    }
