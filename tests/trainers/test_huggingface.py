"""The callback and the trainer for Hugging Face: what they perturb, when, by which gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from trainers.models import (  # noqa: E402
    arguments,
    collate,
    gpt,
    items,
    kth,
    quiet,
    same,
    state,
)  # fmt: skip
from transformers import Trainer, TrainerCallback  # noqa: E402

import fastunlearn as fu  # noqa: E402
from fastunlearn.trainers.huggingface import PerturbCallback, UnlearnTrainer  # noqa: E402


class Watch(TrainerCallback):
    """Keeps the gradients and weights that a step ends with."""

    def __init__(self) -> None:
        self.gradients: list[list[Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_optimizer_step(self, args: Any, state_: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        self.weights.append(state(model))


def trainer_of(folder: Path, callbacks: list[Any], model: Any = None, **changes: Any) -> Trainer:
    return quiet(
        Trainer(
            gpt() if model is None else model, arguments(folder, **changes),
            train_dataset=items(16), data_collator=collate, callbacks=callbacks,
        )
    )  # fmt: skip


def unlearner(folder: Path, *, model: Any = None, **changes: Any) -> UnlearnTrainer:
    how = {"strategy": fu.TopK(20, std=0.1), "forget_dataset": items(6, seed=1), "unlearn_seed": 5}
    ours = {"strategy", "forget_dataset", "distill", "teacher", "teacher_steps", "teacher_args",
            "unlearn_seed", "train_dataset"}  # fmt: skip
    how |= {name: changes.pop(name) for name in ours & changes.keys()}
    how.setdefault("train_dataset", items(16))
    return quiet(
        UnlearnTrainer(
            gpt() if model is None else model, arguments(folder, **changes),
            data_collator=collate, **how,
        )
    )  # fmt: skip


def test_the_callback_ranks_the_step_s_own_gradient(tmp_path: Path) -> None:
    watch, callback = Watch(), PerturbCallback(fu.TopK(7, std=0.5), seed=1, every=2)
    how = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.05}
    trainer_of(tmp_path, [watch, callback], **how).train()
    receipts = callback.stepper.receipts
    assert len(watch.gradients) == 4  # steps, not batches
    assert [r.step for r in receipts] == [0, 1]
    for receipt, gradients in zip(receipts, watch.gradients[1::2], strict=True):
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        assert norm == pytest.approx(0.05, rel=1e-3)  # clipped
        assert receipt.threshold == kth(gradients, 7)
    model = gpt()
    model.load_state_dict(watch.weights[1], strict=False)
    for parameter, gradient in zip(model.parameters(), watch.gradients[1], strict=True):
        parameter.grad = gradient
    fu.perturb_(model, fu.TopK(7, std=0.5), seed=1)
    after = Watch()
    trainer_of(tmp_path, [PerturbCallback(fu.TopK(7, std=0.5), seed=1, every=2), after],
               max_steps=2, **how).train()  # fmt: skip
    assert same(after.weights[1], state(model))


def test_the_callback_leaves_frozen_parameters_alone(tmp_path: Path) -> None:
    model = gpt()
    for parameter in model.transformer.h.parameters():
        parameter.requires_grad_(False)
    before = state(model)
    callback = PerturbCallback(fu.RandomK(1.0, std=1.0))
    trainer_of(tmp_path, [callback], model=model).train()
    free = [name for name, p in model.named_parameters() if p.requires_grad]
    changed = [name for name, value in state(model).items() if not torch.equal(value, before[name])]
    assert changed == free
    assert {r.n for r in callback.stepper.receipts} == {
        sum(p.numel() for p in model.parameters() if p.requires_grad)
    }


def test_lora_perturbs_adapters_alone(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM",
                             fan_in_fan_out=True, init_lora_weights=False)  # fmt: skip
    model = peft.get_peft_model(gpt(), config)
    before = state(model)
    trainer = unlearner(tmp_path, model=model, learning_rate=0.0, strategy=fu.TopK(5))
    trainer.train()
    assert trainer.receipt is not None
    assert trainer.receipt.n == sum(v.numel() for n, v in before.items() if "lora_" in n)
    changed = [n for n, value in state(model).items() if not torch.equal(value, before[n])]
    assert changed and all("lora_" in name for name in changed)
    # a teacher shares what is frozen
    trainer = unlearner(tmp_path, model=model, distill=1.0, teacher="perturbed", teacher_steps=1)
    trainer.train()
    shared = {p.data_ptr() for p in trainer._teacher.parameters()}
    assert {p.data_ptr() for n, p in model.named_parameters() if "lora_" not in n} <= shared


def expected(strategy: Any) -> tuple[dict[str, Tensor], fu.Receipt]:
    """Perturb by hand: the mean over the forget set's batches of 4 and 2."""
    model, batches = gpt().eval(), [items(6, seed=1)[:4], items(6, seed=1)[4:]]
    for batch in batches:
        (model(**collate(batch)).loss / 2).backward()
    receipt = fu.perturb_(model, strategy, seed=5)
    return state(model), receipt


@pytest.mark.parametrize("score", ["grad", "taylor", "weight"])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_trainer_perturbs_by_the_forget_gradient(
    tmp_path: Path, score: Any, accumulated: int
) -> None:
    strategy = fu.TopK(20, std=0.1, score=score)
    how = {"per_device_eval_batch_size": 4, "gradient_accumulation_steps": accumulated}
    trainer = unlearner(tmp_path, strategy=strategy, learning_rate=0.0, **how)
    trainer.train()
    wanted, receipt = expected(strategy)
    assert same(state(trainer.model), wanted)
    assert trainer.receipt is not None and trainer.receipt.threshold == receipt.threshold
    assert trainer.receipt.seed_commitment == receipt.seed_commitment


def test_dropout_is_off_while_the_forget_set_is_scored(tmp_path: Path) -> None:
    model = gpt()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    trainer = unlearner(tmp_path, model=model, learning_rate=0.0, per_device_eval_batch_size=4)
    trainer.train()
    assert same(state(trainer.model), expected(fu.TopK(20, std=0.1))[0])


def test_the_trainer_repairs_on_the_retain_set(tmp_path: Path) -> None:
    """As a plain trainer does that begins with the perturbed weights."""
    trainer = unlearner(tmp_path, per_device_eval_batch_size=4)
    trainer.train()
    model = gpt()
    model.load_state_dict(expected(fu.TopK(20, std=0.1))[0], strict=False)
    plain = trainer_of(tmp_path, [], model=model)
    plain.train()
    assert same(state(trainer.model), state(plain.model))


@pytest.mark.parametrize("precision", [{}, {"bf16": True}])
def test_a_perturbed_teacher_learns_apart_from_the_model(tmp_path: Path, precision: Any) -> None:
    how = {"distill": 1.0, "teacher": "perturbed", "strategy": fu.RandomK(0.5, std=1.0)}
    trainer = unlearner(tmp_path, learning_rate=0.0, **how, **precision)
    trainer.train()
    assert same(state(trainer.model), state(gpt()))
    perturbed = gpt()
    fu.perturb_(perturbed, how["strategy"], seed=5)
    assert same(state(trainer._teacher), state(perturbed))
    x = collate(items(3))["input_ids"]
    assert not torch.equal(trainer._teacher(x).logits, trainer.model.eval()(x).logits)
    lesson = arguments(tmp_path, learning_rate=0.1, **precision)
    taught = unlearner(tmp_path, learning_rate=0.0, teacher_steps=3, teacher_args=lesson, **how,
                       **precision)  # fmt: skip
    taught.train()
    assert same(state(taught.model), state(gpt()))
    model = gpt()
    model.load_state_dict(state(perturbed), strict=False)
    plain = trainer_of(tmp_path, [], model=model, max_steps=3, **precision)
    plain.train()
    assert same(state(taught._teacher), state(plain.model))
    assert not any(p.requires_grad for p in taught._teacher.parameters())


def test_an_original_teacher_stays_as_the_model_was(tmp_path: Path) -> None:
    trainer = unlearner(tmp_path, distill=1.0)
    trainer.train()
    assert same(state(trainer._teacher), state(gpt()))


def gradient_of_step(folder: Path, model_kwargs: bool, **changes: Any) -> list[Tensor]:
    """The gradient of the first step, with one divergence term over the whole forget set."""
    watch = Watch()
    trainer = unlearner(folder, distill=3.0, teacher="perturbed", max_steps=1, **changes)
    trainer.model_accepts_loss_kwargs = model_kwargs
    trainer.add_callback(watch)
    forget = collate(items(6, seed=1))
    trainer._endless_forget = lambda: iter([dict(forget) for _ in range(9)])
    trainer.train()
    return watch.gradients[0]


@pytest.mark.parametrize("model_kwargs", [True, False])
def test_accumulation_gives_the_gradient_of_the_whole_batch(
    tmp_path: Path, model_kwargs: bool
) -> None:
    whole = gradient_of_step(tmp_path, model_kwargs, per_device_train_batch_size=8)
    parts = gradient_of_step(tmp_path, model_kwargs, gradient_accumulation_steps=2)
    plain = gradient_of_step(
        tmp_path, model_kwargs, per_device_train_batch_size=8, strategy=fu.RandomK(0)
    )  # the teacher is the model, so there is no divergence
    # Sums of some ten thousand float32 products in another order: a few units in the last place.
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    distance = max(float((a - b).abs().max()) for a, b in zip(whole, plain, strict=True))
    assert distance > 1e-3  # so that the divergence is seen


def test_the_divergence_is_over_tokens_that_count(tmp_path: Path) -> None:
    trainer = unlearner(tmp_path, distill=1.0, max_steps=1)
    trainer.train()
    model, batch = gpt(seed=9), collate(items(3))
    found = trainer._divergence(model, dict(batch))
    logits, aim = model(batch["input_ids"]).logits, trainer._teacher(batch["input_ids"]).logits
    every = fu.divergence.jensen_shannon(logits[:, :-1], aim[:, :-1], "none")
    assert found.item() == pytest.approx(every.mean().item(), rel=1e-5)
    batch["labels"][:, 3:] = -100
    found = trainer._divergence(model, dict(batch))
    assert found.item() == pytest.approx(every[:, :2].mean().item(), rel=1e-5)


def scaled(trainer: Any, factor: float) -> Any:
    """Give a trainer a gradient scaler, which the CPU has no other way to get."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=factor)
    return trainer


def test_a_scaler_changes_no_bit(tmp_path: Path) -> None:
    """Factors of a power of two: exact."""
    trainer = scaled(unlearner(tmp_path, learning_rate=0.0, per_device_eval_batch_size=4), 2.0**12)
    trainer.train()
    wanted, receipt = expected(fu.TopK(20, std=0.1))
    assert same(state(trainer.model), wanted)
    assert trainer.receipt is not None and trainer.receipt.threshold == receipt.threshold


def test_a_scaler_that_overflows_is_turned_down(tmp_path: Path) -> None:
    trainer = unlearner(tmp_path, learning_rate=0.0, per_device_eval_batch_size=4)
    scaled(trainer, 2.0**127).train()
    assert same(state(trainer.model), expected(fu.TopK(20, std=0.1))[0])
    assert trainer.accelerator.scaler.get_scale() < 2.0**127


def test_no_perturbation_after_a_step_that_was_left_out(tmp_path: Path) -> None:
    callback = PerturbCallback(fu.TopK(7), seed=1)
    trainer = scaled(trainer_of(tmp_path, [callback]), 2.0**127)
    trainer.train()
    assert callback.stepper.skipped >= 1
    assert len(callback.stepper.receipts) + callback.stepper.skipped == 4


def test_a_gradient_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = gpt()
    with torch.no_grad():
        model.transformer.wpe.weight[0, 0] = float("nan")
    trainer = unlearner(tmp_path, model=model)
    before = state(model)
    with pytest.raises(FloatingPointError, match="must be finite"):
        trainer.train()
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in
               zip(state(model).values(), before.values(), strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "top"}, "strategy must be"),
        ({"strategy": fu.TopK(3, score="mas")}, "a score that a gradient gives"),
        ({"distill": -1.0}, "distill must be"),
        ({"distill": True}, "distill must be"),
        ({"teacher": "no"}, "teacher must be"),
        ({"teacher": "perturbed"}, "distill must be > 0"),
        ({"teacher_steps": 2}, "teacher_steps must be 0"),
        ({"teacher_steps": -2}, "teacher_steps must be an int >= 0"),
        ({"forget_dataset": None}, "forget_dataset must be"),
        ({"train_dataset": None}, "train_dataset must be"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, changes: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        unlearner(tmp_path, **changes)


def test_a_resumed_run_is_not_perturbed_again(tmp_path: Path) -> None:
    how: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = unlearner(tmp_path, **how)
    whole.train()
    resumed = unlearner(tmp_path, **how)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.receipt is None
    assert same(state(whole.model), state(resumed.model))
    with pytest.raises(ValueError, match="checkpoints hold no teacher"):
        unlearner(tmp_path, distill=1.0, **how).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )
