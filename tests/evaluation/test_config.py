"""Configurations: strictness, defaults, round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastunlearn.evaluation.config import ConfigError, load_config, parse_config

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("fastunlearn/evaluation/**/*.yaml")])


def put(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set one value in nested dicts; "a.b" means raw["a"]["b"]."""
    *parents, last = path.split(".")
    place = raw
    for parent in parents:
        place = place[parent]
    place[last] = value
    return raw


def test_resolved_config_reads_back_to_itself(raw_config):
    config = parse_config(raw_config)
    assert parse_config(config.to_dict()) == config
    assert list(config.methods) == [
        "original", "retrain", "top_k", "random_k", "fine_tune", "gradient_ascent",
    ]  # fmt: skip
    assert config.methods["random_k"].options["k"] == 50


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path):
    config = load_config(path)
    assert parse_config(config.to_dict()) == config


def test_there_are_shipped_configs():
    assert {"demo.yaml", "mnist-5-seeds.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("epochs", 3, ["config", "'epochs'", "'train'"]),
        ("train.epoch", 3, ["train", "'epoch'", "'epochs'"]),
        ("train.epochs", "3", ["train.epochs", "whole number", "'3'"]),
        ("train.epochs", True, ["train.epochs", "whole number", "True"]),
        ("train.epochs", 2.0, ["train.epochs", "whole number", "2.0"]),
        ("train.epochs", 0, ["train.epochs", "at least 1", "0"]),
        ("train.lr", 0, ["train.lr", "above 0"]),
        ("train.lr", float("nan"), ["train.lr", "finite", "nan"]),
        ("train.momentum", 1.0, ["train.momentum", "below 1"]),
        ("train.batch_size", -1, ["train.batch_size", "-1"]),
        ("train.optimizer", "adamw", ["train.optimizer", "'sgd'", "'adamw'"]),
        ("train", [1], ["train", "mapping", "[1]"]),
        ("dataset", "mnist", ["dataset", "'mnist5k'", "'mnist'"]),
        ("model", None, ["model", "string", "None"]),
        ("test_fraction", 1.0, ["test_fraction", "below 1"]),
        ("threads", 0, ["threads", "at least 1", "0"]),
        ("threads", "two", ["threads", "whole number", "'two'"]),
        ("seeds", [], ["seeds", "at least one"]),
        ("seeds", 3, ["seeds", "list", "3"]),
        ("seeds", [1, 1], ["seeds", "different"]),
        ("seeds", [-1], ["seeds", "at least 0", "-1"]),
        ("scenario.fraction", 0, ["scenario.fraction", "above 0"]),
        ("scenario.class", 3, ["scenario", "'class'"]),
        ("scenario", {}, ["scenario.kind", "'mislabelled'", "nothing"]),
        ("scenario", {"kind": "class"}, ["scenario", "'class'"]),
        ("scenario", {"kind": "class", "class": 10}, ["scenario.class", "at most 9", "10"]),
        ("scenario", {"kind": "memorised"}, ["scenario", "'fraction'"]),
        ("scenario.models", 3, ["scenario", "'models'"]),
        (
            "scenario",
            {"kind": "memorised", "fraction": 0.1, "models": 1},
            ["scenario.models", "at least 2", "1"],
        ),
        ("repair.distill", -0.1, ["repair.distill", "at least 0"]),
        ("repair.divergence", "kl", ["repair.divergence", "'jeffreys'", "'kl'"]),
        ("methods", [], ["methods", "mapping"]),
        ("methods.magic", {}, ["methods.magic.kind", "top_k", "'magic'"]),
        ("methods.top_k.kay", 1, ["methods.top_k", "'kay'", "std"]),
        ("methods.top_k.k", 1.5, ["methods.top_k", "1.5"]),
        ("methods.top_k.std", -1.0, ["methods.top_k", "std"]),
        ("methods.top_k.label", 3, ["methods.top_k.label", "string"]),
        ("methods.top_k.repair", {"epoch": 1}, ["methods.top_k.repair", "'epoch'"]),
        ("methods.retrain", {"epochs": 1}, ["methods.retrain", "'epochs'"]),
        (
            "methods.fine_tune",
            {"repair": {"distill": 0.0}},
            ["methods.fine_tune.repair", "'distill'"],
        ),
        (
            "methods.fine_tune",
            {"repair": {"masked": True}},
            ["methods.fine_tune.repair", "'masked'"],
        ),
        ("original", 3, ["original", "string", "3"]),
        ("save_models", 1, ["save_models", "true or false", "1"]),
        ("methods.retrain", {"repair": {}}, ["methods.retrain", "'repair'"]),
        ("methods.retrain", {"kind": "fine_tune"}, ["methods.retrain.kind", "'fine_tune'"]),
        ("methods.gradient_ascent.steps", 0, ["steps", "at least 1"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(raw_config, path, value, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(put(raw_config, path, value))
    for word in words:
        assert word in str(caught.value)


def test_missing_required_keys_are_named(raw_config):
    del raw_config["dataset"], raw_config["model"]
    with pytest.raises(ConfigError, match="'dataset', 'model' must be given"):
        parse_config(raw_config)


def test_methods_default_to_all(raw_config):
    del raw_config["methods"]
    assert len(parse_config(raw_config).methods) == 7


def test_a_row_may_have_its_own_kind_label_and_repair(raw_config):
    entry = {"kind": "top_k", "label": "Masked", "k": 5, "repair": {"masked": True}}
    config = parse_config(put(raw_config, "methods.masked", entry))
    row = config.methods["masked"]
    assert (row.kind, row.label, row.repair.masked, row.repair.distill) == (
        "top_k", "Masked", True, 0.1,
    )  # fmt: skip
    assert not config.methods["top_k"].repair.masked


def test_fine_tuning_records_only_what_it_applies(raw_config):
    form = parse_config(put(raw_config, "repair.lr", 0.01)).to_dict()["methods"]
    assert form["top_k"]["repair"] == {**form["fine_tune"]["repair"], **_ONLY_REPAIR}
    assert form["fine_tune"]["repair"]["lr"] == 0.01
    assert not set(_ONLY_REPAIR) & set(form["fine_tune"]["repair"])


_ONLY_REPAIR = {"distill": 0.1, "divergence": "js", "masked": False}


def test_digest_ignores_seeds_and_title_only(raw_config):
    config = parse_config(raw_config)
    same = parse_config({**raw_config, "name": "other", "seeds": [7], "save_models": True})
    assert parse_config({**raw_config, "original": "a"}).digest() != config.digest()
    other = parse_config(put(raw_config, "repair.lr", 0.01))
    assert config.digest() == same.digest() != other.digest()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


BASE = "dataset: digits\nmodel: small_cnn\nscenario: {kind: random, fraction: 0.1}\n"


def test_yaml_exponent_without_a_dot_is_a_number(tmp_path):
    config = load_config(write(tmp_path, BASE + "train: {lr: 1e-3, weight_decay: 5E-4}\n"))
    assert (config.train.lr, config.train.weight_decay) == (1e-3, 5e-4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BASE + "train: {lr: 0.1, lr: 0.2}\n", ["'lr'", "twice", "line 4"]),
        (BASE + "train: {lr: 0.1\n", ["must be YAML"]),
        (BASE + "x: !!python/object/apply:os.system [ls]\n", ["must be YAML"]),
        ("", ["mapping", "None"]),
        ("- 1\n", ["mapping", "[1]"]),
    ],
)
def test_bad_yaml_is_refused(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
