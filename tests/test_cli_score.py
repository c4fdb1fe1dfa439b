"""`fastunlearn score`: its files are what `fastunlearn perturb` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import fastunlearn as fu
from fastunlearn.checkpoint.scores import save_scores
from fastunlearn.cli import app

TEXTS = ["the cat sat on the mat", "a dog ran", "the dog sat"]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny causal language model with its tokenizer, as transformers save them."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for text in TEXTS for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*words, "?"])}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(words) + 1, n_positions=16, n_embd=8, n_layer=1, n_head=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "lm")
    fast.save_pretrained(tmp_path / "lm")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n\n")
    return tmp_path


@pytest.mark.parametrize(("kind", "size"), [("grad", 1), ("grad", 2), ("fisher", 1), ("ratio", 2)])
def test_scores_of_a_language_model(folder: Path, kind: str, size: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = folder / "scores.safetensors"
    done = invoke("score", folder / "lm", "--texts", folder / "texts.txt", "--out", out, "--kind",
                  kind, "--batch-size", size, "--retain", folder / "texts.txt")  # fmt: skip
    assert done.exit_code == 0 and "Scored" in done.stdout, done.output
    model = AutoModelForCausalLM.from_pretrained(folder / "lm").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    found = load_file(out)
    if kind == "grad":  # by hand: each batch's mean over its tokens, weighted by its texts
        for start in range(0, 3, size):
            group = [torch.tensor(tokenizer(t)["input_ids"]) for t in TEXTS[start : start + size]]
            losses = [
                nn.functional.cross_entropy(
                    model(ids[None]).logits[0, :-1], ids[1:], reduction="sum"
                )
                for ids in group
            ]
            mean = sum(losses) / sum(len(ids) - 1 for ids in group)
            (mean * len(group) / 3).backward()
        for name, parameter in model.named_parameters():
            # another order of float32 sums, and padding that gets no attention
            torch.testing.assert_close(found[name], parameter.grad.abs(), rtol=1e-4, atol=1e-6)
    if kind == "ratio":
        assert all(float(value.max()) <= 1 for value in found.values())
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"score": kind}
    done = invoke("perturb", folder / "lm/model.safetensors", "--scores", out, "--k", "0.1",
                  "--seed-file", folder / "seed", "--out", folder / "new.safetensors")  # fmt: skip
    assert done.exit_code == 0, done.output
    old, new = load_file(folder / "lm/model.safetensors"), load_file(folder / "new.safetensors")
    changed = sum(int((old[name] != new[name]).sum()) for name in old)
    assert changed == round(0.1 * sum(value.numel() for value in old.values()))


def test_json_lines(folder: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "texts.jsonl").write_text(lines)
    for name in ("texts.txt", "texts.jsonl"):
        out = folder / f"{name}.safetensors"
        assert invoke("score", folder / "lm", "--texts", folder / name, "--out", out).exit_code == 0
    one, other = (load_file(folder / f"{n}.safetensors") for n in ("texts.txt", "texts.jsonl"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_a_user_gets_wrong_is_one_line(folder: Path) -> None:
    out, lm = folder / "o.safetensors", folder / "lm"
    (folder / "bad.jsonl").write_text('{"words": 1}\n')
    (folder / "empty.txt").write_text("\n")
    for arguments, words in (
        ((folder / "none", "--texts", folder / "texts.txt"), "must be a folder"),
        ((lm, "--texts", folder / "bad.jsonl"), "must hold objects"),
        ((lm, "--texts", folder / "empty.txt"), "must hold texts"),
        ((lm,), "loader must be iterable"),
        ((lm, "--texts", folder / "texts.txt", "--kind", "no"), "kind must be one of"),
        ((lm, "--texts", folder / "texts.txt", "--dtype", "half_"), "--dtype must be"),
        (("json:nothing",), "must name a function"),
        (("no_such_module:f",), "no_such_module"),
    ):
        done = invoke("score", *arguments, "--out", out)
        assert done.exit_code == 2 and words in done.stderr, (arguments, done.output)
        assert len(done.stderr.strip().splitlines()) == 1
        assert not out.exists()


def test_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_model.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    model = torch.nn.Linear(3, 2)\n"
        "    data = [(torch.ones(4, 3), torch.tensor([0, 1, 1, 0]))]\n"
        "    return {'model': model, 'loader': data,\n"
        "            'loss_fn': torch.nn.functional.cross_entropy}\n"
        "def bad():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    done = invoke("score", "my_model:make", "--out", "s.safetensors", "--dtype", "bfloat16")
    assert done.exit_code == 0 and "Scored 8 parameters in 2 tensors" in done.stdout
    import my_model

    call = my_model.make()
    wanted = fu.score(call["model"], call["loader"], call["loss_fn"], dtype=torch.bfloat16)
    found = load_file("s.safetensors")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    again = invoke("score", "my_model:make", "--out", "s.safetensors")
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    done = invoke("score", "my_model:bad", "--out", "t.safetensors")
    assert done.exit_code == 2 and "must return a dict" in done.stderr


def test_scores_as_the_format_s_own_library_reads_them(tmp_path: Path) -> None:
    scores = {
        "b": torch.randn(3, 4).t(), "a": torch.tensor(2.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3, dtype=torch.float16), "c": torch.randn(5).bfloat16(),
    }  # fmt: skip
    save_scores(scores, tmp_path / "s")
    found = load_file(tmp_path / "s")
    assert found.keys() == scores.keys()
    assert all(torch.equal(found[name], value) for name, value in scores.items())
    with pytest.raises(FileExistsError):
        save_scores(scores, tmp_path / "s")
    with pytest.raises(TypeError, match="must be floating"):
        save_scores({"x": torch.ones(2, dtype=torch.int32)}, tmp_path / "t")
    assert not (tmp_path / "t").exists()
