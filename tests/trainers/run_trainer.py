"""One rank of `test_the_trainer_under_ddp`: python run_trainer.py FOLDER DISTILL."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trainers.models import arguments, collate, gpt, items, state  # noqa: E402

import fastunlearn as fu  # noqa: E402
from fastunlearn.trainers.huggingface import UnlearnTrainer  # noqa: E402


def main() -> None:
    folder, distill = Path(sys.argv[1]), float(sys.argv[2])
    args = arguments(
        folder, learning_rate=0.05 if distill else 0.0, per_device_train_batch_size=2,
        per_device_eval_batch_size=2, ddp_backend="gloo",
    )  # fmt: skip
    strategy = fu.TopK(20, std=0.1)
    trainer = UnlearnTrainer(
        gpt(), args, strategy=strategy, train_dataset=items(16), forget_dataset=items(8, seed=1),
        data_collator=collate, distill=distill,
    )  # fmt: skip
    assert args.world_size == 2
    trainer.train()
    own = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    both = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(both, own)
    assert torch.equal(*both), "replicas differ"
    assert trainer.receipt is not None
    if not distill:  # the set that one process selects by the mean over four batches of two
        model = gpt().eval()
        forget = items(8, seed=1)
        for start in range(0, 8, 2):
            (model(**collate(forget[start : start + 2])).loss / 4).backward()
        selected = fu.select(model, strategy)
        before = state(gpt())
        found = {name: (value != before[name]) for name, value in state(trainer.model).items()}
        assert all(torch.equal(found[n], selected.mask(n)) for n in found), "another selection"
        assert abs(trainer.receipt.threshold / selected.threshold - 1) < 1e-4
    print("alike")


if __name__ == "__main__":
    main()
