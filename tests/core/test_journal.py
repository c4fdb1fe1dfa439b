"""`Perturber(journal=True)`: undo gives back every bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core.cases import image
from torch import Tensor, nn

import fastunlearn as fu


def parameters() -> list[Tensor]:
    torch.manual_seed(0)
    found = [torch.randn(7, 9), torch.randn(5, 8).t(), torch.randn(()), torch.randn(0, 3)]
    found += [torch.randn(6, 4).to(torch.bfloat16), torch.randn(31).double()]
    found[0][0, 0], found[0][1, 1], found[0][2, 2] = -0.0, float("nan"), float("inf")
    for tensor in found:
        tensor.grad = torch.randn(tensor.shape, dtype=tensor.dtype)
    return found


@pytest.mark.parametrize("mode", ["add", "replace", "zero"])
@pytest.mark.parametrize("kind", [fu.TopK, fu.RandomK])
@pytest.mark.parametrize("k", [0, 0.3, 1.0])
def test_undo_gives_back_every_bit(kind: Any, k: Any, mode: str) -> None:
    tensors = parameters()
    images = [[image(t) for t in tensors]]
    perturber = fu.Perturber(tensors, kind(k, mode=mode), seed=1, journal=True)
    for _ in range(3):
        perturber.step()
        images.append([image(t) for t in tensors])
    assert k == 0 or mode != "add" or images[3] != images[2]
    for done in (2, 1, 0):
        perturber.undo()
        assert [image(t) for t in tensors] == images[done]
        assert perturber.steps_done == done
    perturber.step()  # the same once more
    assert [image(t) for t in tensors] == images[1]


def test_a_journal_changes_no_bit() -> None:
    one, other = parameters(), parameters()
    for _ in range(2):
        fu.Perturber(one, fu.TopK(9), seed=1, journal=True).step()
        fu.Perturber(other, fu.TopK(9), seed=1).step()
    assert [image(t) for t in one] == [image(t) for t in other]


def test_undo_refuses_what_was_written_to_since() -> None:
    model = nn.Linear(4, 4)
    model(torch.ones(1, 4)).sum().backward()
    perturber = fu.Perturber(model, fu.TopK(20), seed=1, journal=True)
    perturber.step()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    before = image(model.weight)
    with pytest.raises(RuntimeError, match="written to since"):
        perturber.undo()
    assert image(model.weight) == before and perturber.steps_done == 1
    perturber.step()
    perturber.undo()
    assert image(model.weight) == before
    with pytest.raises(RuntimeError, match="written to since"):
        perturber.undo()  # the optimizer's step is still between


def test_nothing_to_undo() -> None:
    tensors = parameters()
    for perturber in (
        fu.Perturber(tensors, fu.TopK(3)),
        fu.Perturber(tensors, fu.TopK(3), journal=True),
    ):
        with pytest.raises(RuntimeError, match="must be a step"):
            perturber.undo()


def test_a_refused_step_leaves_no_entry() -> None:
    tensors = parameters()
    perturber = fu.Perturber(tensors, fu.TopK(3, std=0.1), seed=1, journal=True)
    tensors[1].grad[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        perturber.step()
    assert perturber.journal == [] and perturber.steps_done == 0


def test_parameters_without_gradient_may_be_skipped() -> None:
    tensors = parameters()
    tensors[0].grad = None
    before = [image(t) for t in tensors]
    perturber = fu.Perturber(tensors, fu.TopK(0.5), seed=1, journal=True, missing_grad="skip")
    perturber.step()
    assert [image(t) for t in tensors] != before
    perturber.undo()
    assert [image(t) for t in tensors] == before
