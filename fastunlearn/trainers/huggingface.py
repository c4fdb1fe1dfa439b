"""Perturbation and unlearning for the Trainer of Hugging Face transformers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from fastunlearn._finetune import exchange_states, reference_copy
from fastunlearn.divergence import jensen_shannon
from fastunlearn.receipt import Receipt
from fastunlearn.strategies import RandomK, TopK
from fastunlearn.trainers.stepper import Stepper, gradients_are_finite, needs

try:
    from transformers import (
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
except ImportError as error:
    raise needs("transformers with accelerate", "huggingface") from error

__all__ = ["PerturbCallback", "UnlearnTrainer"]

_TEACHERS = ("original", "perturbed")
_HALVINGS = 40  # of a gradient scaler's factor, from 2**16 at the start


class PerturbCallback(TrainerCallback):
    """Perturbs the parameters that require gradients after every n-th step of the optimizer.

    Gradients are those of the step: accumulated, clipped, and no longer scaled. A step that the
    gradient scaler has left out is followed by no perturbation.

    Args:
        strategy, seed, every, keep_seed: see `Stepper`. The number of the perturbation follows from
            the trainer's number of steps; give a seed where a run is to be resumed.

    Attributes:
        stepper: has the receipts.

    Example:
        >>> import fastunlearn as fu
        >>> from fastunlearn.trainers.huggingface import PerturbCallback
        >>> callback = PerturbCallback(fu.TopK(0.01, std=0.01), every=10, seed=0)
        >>> # Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
    """

    def __init__(
        self,
        strategy: TopK | RandomK,
        *,
        seed: int | None = None,
        every: int = 1,
        keep_seed: bool = False,
    ) -> None:
        self.stepper = Stepper("PerturbCallback", strategy, seed, every, keep_seed)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Perturb where it is time; the trainer clears the gradients after this."""
        optimizer = kwargs.get("optimizer")
        taken = not getattr(optimizer, "step_was_skipped", False)
        self.stepper.after_step(kwargs["model"], state.global_step + 1, taken=taken)


class _Begin(TrainerCallback):
    """Unlearns when everything is prepared and nothing is trained."""

    def __init__(self, trainer: UnlearnTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Unlearn, but not again in a run that is resumed."""
        if state.global_step == 0:
            self.trainer.perturb()
        elif self.trainer.distill:
            raise ValueError(
                "UnlearnTrainer: distill must be 0 to resume a run, since checkpoints hold no "
                f"teacher, got {self.trainer.distill}"
            )


class UnlearnTrainer(Trainer):
    """Unlearns a forget set when training begins, and repairs on the retain set as it trains.

    For causal language models, and any other model whose outputs have `logits`. `train()` takes the
    gradient of the loss on the forget set, perturbs what the strategy selects, and then trains on
    `train_dataset`, the retain set, as the arguments say: gradient accumulation, mixed precision,
    clipping, logging, several processes. Each step minimises

        loss(retain batch) + distill * divergence(model(x) || teacher(x)), x from a forget batch

    with the Jensen-Shannon divergence over the tokens whose label counts. See `fastunlearn.Repair`
    for the two teachers; "perturbed" is the recommended one, with `teacher_steps`. Only parameters
    that require gradients take part: under LoRA those of the adapters.

    Args:
        model, args, ...: as for `transformers.Trainer`; `train_dataset` is the retain set.
        strategy: what to select and how to perturb it. Top-K ranks the gradient of the mean loss
            of the forget set's batches ("fisher" squares it, "taylor" takes the weight times it).
        forget_dataset: the forget set, of items that the collator takes.
        distill: weight of the divergence, >= 0. 0 keeps no teacher.
        teacher: "original": the model begins perturbed and is held near the original one.
            "perturbed": the model begins as it was and is drawn towards the perturbed one.
        teacher_steps: steps that a perturbed teacher takes on the retain set alone before it
            teaches.
        teacher_args: how it takes them; None: as `args` says. `max_steps` and what writes to the
            disk or to loggers is set here.
        unlearn_seed: of noise and random selection, in [0, 2**64); None draws one.
        keep_seed: write it into the receipt. Whoever has it can subtract the noise.

    Attributes:
        receipt: what the perturbation did, from the beginning of `train()` on.

    Raises:
        TypeError, ValueError: an argument is out of its range, or goes with none of these:
            a teacher takes models that are whole on every process.
        FloatingPointError: the gradient of the forget set is not finite.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
        >>> import fastunlearn as fu
        >>> from fastunlearn.trainers.huggingface import UnlearnTrainer
        >>> config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2,
        ...                     bos_token_id=None, eos_token_id=None)
        >>> items = [{"input_ids": [i, 3, 5, i], "labels": [i, 3, 5, i]} for i in range(8)]
        >>> args = TrainingArguments("runs/doc", max_steps=2, report_to=[], use_cpu=True,
        ...                          save_strategy="no", logging_strategy="no")
        >>> trainer = UnlearnTrainer(
        ...     GPT2LMHeadModel(config), args, train_dataset=items[2:], forget_dataset=items[:2],
        ...     strategy=fu.TopK(0.1), distill=1.0, teacher="perturbed", unlearn_seed=0)
        >>> trainer.train().global_step, trainer.receipt.count  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        (2, 104)
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        *,
        strategy: TopK | RandomK,
        forget_dataset: Any,
        distill: float = 0.0,
        teacher: str = "original",
        teacher_steps: int = 0,
        teacher_args: TrainingArguments | None = None,
        unlearn_seed: int | None = None,
        keep_seed: bool = False,
        **options: Any,
    ) -> None:
        _check(distill, teacher, teacher_steps, forget_dataset, options.get("train_dataset"))
        super().__init__(model, args, **options)
        if getattr(self, "is_deepspeed_enabled", False):
            raise ValueError("UnlearnTrainer: DeepSpeed must be off: it keeps weights of its own")
        self.stepper = Stepper("UnlearnTrainer", strategy, unlearn_seed, 1, keep_seed)
        self.forget_dataset, self.distill = forget_dataset, float(distill)
        self.teacher_kind, self.teacher_steps = teacher, teacher_steps
        self.teacher_args = teacher_args
        self.receipt: Receipt | None = None
        self._teacher: nn.Module | None = None
        self._forget: Iterator[Any] | None = None
        self.add_callback(_Begin(self))

    def perturb(self) -> Receipt:
        """Perturb the model as the strategy says, and get the teacher ready. `train()` calls it."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        if self.distill and any(hasattr(p, "placements") for p in model.parameters()):
            raise ValueError("UnlearnTrainer: distill must be 0 for sharded parameters")
        self._teacher = reference_copy(model) if self.distill else None
        strategy = self.stepper.strategy
        if isinstance(strategy, TopK) and strategy.score != "weight":
            self._forget_gradients()
        self.receipt = self.stepper.perturb(model, 0).check()
        self.model_wrapped.zero_grad()
        if self._teacher is not None:
            self._forget = self._endless_forget()
            if self.teacher_kind == "perturbed":
                with torch.no_grad():
                    exchange_states(model, self._teacher)
                self._teach()
        return self.receipt

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Add the divergence from the teacher on a forget batch, while training."""
        found = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        if self._teacher is None or self._forget is None or not model.training:
            return found
        term = self.distill * self._divergence(model, self._prepare_inputs(next(self._forget)))
        if self._is_normalised(num_items_in_batch):
            term = term / self.current_gradient_accumulation_steps
        if return_outputs:
            return found[0] + term, found[1]
        return found + term

    def _is_normalised(self, num_items_in_batch: Any) -> bool:
        """Whether the loss is over the whole accumulated batch, so that none will divide it."""
        if getattr(self, "loss_is_scaled_for_ga", None) is not None:
            return bool(self.loss_is_scaled_for_ga)
        by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(by_model or self.compute_loss_func is not None)

    def _divergence(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        labels = inputs.pop("labels", None)
        assert self._teacher is not None
        with torch.no_grad():
            aim = self._teacher(**inputs).logits
        logits = model(**inputs).logits
        if labels is not None and labels.shape == logits.shape[:-1]:
            # the logits of a place are of the token after it
            counts = torch.zeros_like(labels, dtype=torch.bool)
            counts[:, :-1] = labels[:, 1:] != -100
            logits, aim = logits[counts], aim[counts]
        return jensen_shannon(logits, aim, "mean")

    def _endless_forget(self) -> Iterator[Any]:
        """Batches of the forget set without end, this process's part of them."""
        like, seed = self.get_test_dataloader(self.forget_dataset), self.args.seed
        # not prepared by accelerate, which would take its end for that of the retain set
        ranks = (max(self.args.world_size, 1), self.args.process_index)
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.forget_dataset, *ranks, shuffle=True, seed=seed
        )
        size = self.args.train_batch_size
        loader = DataLoader(like.dataset, size, sampler=sampler, collate_fn=like.collate_fn)
        for epoch in itertools.count():
            sampler.set_epoch(epoch)
            yield from loader

    def _forget_gradients(self) -> None:
        """Leave in `.grad` the gradient of the mean loss over the forget set's batches."""
        scaler = getattr(self.accelerator, "scaler", None)
        for _ in range(_HALVINGS):
            self._accumulate()
            finite = gradients_are_finite(self.model_wrapped)
            if finite or scaler is None:
                break
            scaler.update(scaler.get_scale() / 2)
        if not finite:
            raise FloatingPointError(
                "UnlearnTrainer: the gradient of the forget set must be finite, got an infinity or "
                "a NaN"
            )
        if scaler is not None:
            for parameter in self.model_wrapped.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(scaler.get_scale())

    def _accumulate(self) -> None:
        model = self.model_wrapped
        loader = self.get_eval_dataloader(self.forget_dataset)
        batches = len(loader)
        if not batches:
            raise ValueError("UnlearnTrainer: forget_dataset must hold an example, got none")
        model.zero_grad()
        was = model.training
        model.eval()
        held, self._teacher = self._teacher, None
        try:
            for inputs in loader:
                inputs = self._prepare_inputs(inputs)
                with self.compute_loss_context_manager():
                    loss = super().compute_loss(model, inputs)
                loss = cast(Tensor, loss) / batches
                # not by the accelerator, which would divide by its own number of steps
                scaler = getattr(self.accelerator, "scaler", None)
                (loss if scaler is None else scaler.scale(loss)).backward()
        finally:
            self._teacher = held
            model.train(was)

    def _teach(self) -> None:
        """Let the perturbed teacher learn from the retain set."""
        teacher = self._teacher
        assert teacher is not None
        if not self.teacher_steps:
            return
        model = self.accelerator.unwrap_model(self.model_wrapped)
        for own, other in zip(teacher.parameters(), model.parameters(), strict=True):
            own.requires_grad_(other.requires_grad)
        args = replace(
            self.teacher_args or self.args,
            max_steps=self.teacher_steps,
            disable_tqdm=True,
            eval_strategy="no",
            save_strategy="no",
            report_to=[],
            push_to_hub=False,
            load_best_model_at_end=False,
        )
        lesson = Trainer(
            teacher,
            args,
            data_collator=self.data_collator,
            train_dataset=self.train_dataset,
            processing_class=self.processing_class,
        )
        lesson.remove_callback(PrinterCallback)
        lesson.train()
        teacher.requires_grad_(False).eval()


def _check(distill: Any, teacher: Any, teacher_steps: Any, forget: Any, retain: Any) -> None:
    op = "UnlearnTrainer"
    number = isinstance(distill, (int, float)) and not isinstance(distill, bool)
    if not number or not (math.isfinite(distill) and distill >= 0):
        raise ValueError(f"{op}: distill must be a finite number >= 0, got {distill!r}")
    if teacher not in _TEACHERS:
        raise ValueError(f"{op}: teacher must be 'original' or 'perturbed', got {teacher!r}")
    if teacher == "perturbed" and distill == 0:
        raise ValueError(f"{op}: distill must be > 0 with teacher='perturbed', got 0")
    if isinstance(teacher_steps, bool) or not isinstance(teacher_steps, int) or teacher_steps < 0:
        raise ValueError(f"{op}: teacher_steps must be an int >= 0, got {teacher_steps!r}")
    if teacher_steps and teacher != "perturbed":
        raise ValueError(f"{op}: teacher_steps must be 0 unless teacher='perturbed'")
    for name, data in (("forget_dataset", forget), ("train_dataset", retain)):
        if data is None:
            raise ValueError(f"{op}: {name} must be a data set, got None")
