"""The callback for Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning")

import lightning.pytorch as pl  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from trainers.models import kth, same, state  # noqa: E402

import fastunlearn as fu  # noqa: E402
from fastunlearn.trainers.lightning import PerturbCallback  # noqa: E402


class Net(pl.LightningModule):
    def __init__(self, blow: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.net = nn.Linear(5, 5).requires_grad_(False), nn.Linear(5, 3)
        self.blow = blow
        self.seen: list[list[Tensor]] = []

    def training_step(self, batch: Any, number: int) -> Tensor:
        loss = self.net(self.frozen(batch[0])).square().mean()
        return loss * (1e30 if number == self.blow else 1)

    def on_train_batch_end(self, *_: Any) -> None:  # after the callbacks
        self.seen.append([p.grad.clone() for p in self.net.parameters()])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


def fit(folder: Path, net: Net, callback: Any, resume: Any = None, **changes: Any) -> Any:
    torch.manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(32, 5))
    usual: dict[str, Any] = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    usual |= {"max_epochs": 1, "accelerator": "cpu", "devices": 1}
    trainer = pl.Trainer(
        default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[callback],
        **{**usual, **changes},
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(data, 4)
    trainer.fit(net, loader, ckpt_path=resume)
    return trainer


def test_perturbs_after_steps_by_their_gradient(tmp_path: Path) -> None:
    net, callback = Net(), PerturbCallback(fu.TopK(4, std=0.1), seed=2, every=2)
    before = state(net.frozen)
    fit(tmp_path, net, callback)
    receipts = callback.stepper.receipts
    assert [receipt.step for receipt in receipts] == [0, 1]
    assert {receipt.n for receipt in receipts} == {18}
    for receipt, gradients in zip(receipts, (net.seen[3], net.seen[7]), strict=True):
        assert receipt.threshold == kth(gradients, 4)
        assert torch.cat([g.flatten() for g in gradients]).norm() <= 0.1001
    assert same(before, state(net.frozen))


def test_no_perturbation_after_a_step_that_was_left_out(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    callback = PerturbCallback(fu.TopK(4, std=0.1), seed=2)
    fit(tmp_path, Net(blow=2), callback, plugins=[plugin])
    assert callback.stepper.skipped == 1
    assert [receipt.step for receipt in callback.stepper.receipts] == [0, 2, 3]


def test_a_resumed_run_goes_on_with_seed_and_number(tmp_path: Path) -> None:
    callback = PerturbCallback(fu.RandomK(4, std=0.1), keep_seed=True)
    trainer = fit(tmp_path, Net(), callback)
    trainer.save_checkpoint(tmp_path / "at.ckpt")
    after = PerturbCallback(fu.RandomK(4, std=0.1), keep_seed=True)
    fit(tmp_path, Net(), after, tmp_path / "at.ckpt", max_epochs=2)
    assert [receipt.step for receipt in after.stepper.receipts] == [4, 5, 6, 7]
    assert {r.seed for r in after.stepper.receipts} == {callback.stepper.receipts[0].seed}
