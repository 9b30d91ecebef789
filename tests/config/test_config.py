"""Composition and checking of configs: defaults, ranges, all mistakes at once."""

from __future__ import annotations

import dataclasses

import pytest
from omegaconf import OmegaConf
from support import REPOSITORY

from sweepstack.config import composition, schema
from sweepstack.config import reading as config
from sweepstack.config.errors import InputError


def mistakes(*words: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        config.read(composition.compose(words))
    return caught.value.mistakes


OPTIONS = [
    (group, file.stem)
    for group in ("data", "model", "init", "optimizer", "schedule", "early_stopping")
    for file in sorted((REPOSITORY / "conf" / group).glob("*.yaml"))
    if file.stem not in ("custom", "hub")  # they need more
]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_passes_its_schema(group, option):
    required = {"arrays": ["train=a"], "table": ["train=a", "target=b"], "huggingface": ["path=a"]}
    needed = [f"data.{word}" for word in required.get(option, ())]
    read = config.read(composition.compose([f"{group}={option}", *needed]))
    chosen = getattr(read, group)
    assert option == (chosen.scheme if group == "init" else chosen.name)


@pytest.mark.parametrize(("group", "options"), schema.OPTIONS.items())
def test_every_option_of_the_schema_has_its_file(group, options):
    assert {file.stem for file in (REPOSITORY / "conf" / group).glob("*.yaml")} == set(options)


def test_defaults_are_a_run_on_digits():
    read = config.read(composition.compose())
    assert (read.data.name, read.model.name, read.init.scheme) == ("digits", "mlp", "he")
    assert read.objective == "auto"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=-1"], "optimizer.lr must be > 0, got -1"),
        (["regularization.dropout=1.5"], "regularization.dropout must be < 1, got 1.5"),
        (["optimizer.lr=inf"], "optimizer.lr must be a finite number, got inf"),
        (["optimizer.lr=fast"], "optimizer.lr must be a number, got 'fast'"),
        (["optimizer.lr=true"], "optimizer.lr must be a number, got True"),
        (["batch.size=2.5"], "batch.size must be a whole number, got 2.5"),
        (["batch.size=null"], "batch.size must be a whole number, got null"),
        (["model.hidden=[10,0]"], "model.hidden must hold numbers >= 1, got [10, 0]"),
        (["optimizer.betas=[nan,1]"], "optimizer.betas must hold finite numbers, got [nan, 1]"),
        (["model.hidden=wide"], "model.hidden must be a list of whole numbers, got 'wide'"),
        (["model.hidden=null"], "model.hidden must be a list of whole numbers, got null"),
        (["optimizer.betas=[0.9]"], "optimizer.betas must be a list of 2 numbers, got [0.9]"),
        (["training.deterministic=1"], "training.deterministic must be true or false, got 1"),
        (
            ["training.precision=fp16"],
            "training.precision must be one of fp32, tf32, bf16, got 'fp16'; did you mean 'bf16'?",
        ),
        (
            ["training.max_epochs=null"],
            "training.max_steps or training.max_epochs must be given, both are null",
        ),
        (
            ["data.normalization=minmax", "data.minmax_range=[1,0]"],
            "data.minmax_range must be two numbers, the lower first, got [1, 0]",
        ),
        (["optimizer.lrr=1"], "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        (["+optimizer.lrr=1"], "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        (["+modell=1"], "unknown key 'modell'; did you mean 'model'?"),
        (
            ["model=mpl"],
            "model must be one of convnet, custom, hub, mlp, resnet, torchvision, got 'mpl'; "
            "did you mean 'mlp'?",
        ),
        (
            ["init=he,xavier"],
            "init=he,xavier names several values: add -m to sweep over them",
        ),
        (
            ["optimizer.lr=[1"],
            "'optimizer.lr=[1' must have the form KEY=VALUE, in quotes if it has spaces or "
            "brackets: 'KEY=[1,2]'",
        ),
        (
            ["model.hidden=100,50"],
            "model.hidden=100,50 names several values: add -m to sweep over them, or write a "
            "list as 'model.hidden=[...]'",
        ),
        (["lr=0.1"], "unknown key 'lr'; did you mean 'optimizer.lr'?"),
        (["seed=1"], "unknown key 'seed'; did you mean 'training.seed'?"),
        (["epochs=5"], "unknown key 'epochs'; did you mean 'training.max_epochs'?"),
        (
            ["regularization.random_crop=4"],
            "unknown key 'regularization.random_crop'; did you mean "
            "'regularization.random_resized_crop' or 'regularization.crop_padding'?",
        ),
        (["data.resize=4"], "unknown key 'data.resize'; did you mean 'data.image_size'?"),
        (
            ["regularization.l2=1"],
            "unknown key 'regularization.l2'; did you mean 'regularization.weight_decay'?",
        ),
        (
            ["init=none"],
            "init must be one of he, he_uniform, keep, lecun, normal, ones, orthogonal, torch, "
            "uniform, xavier, xavier_uniform, zeros, got 'none'; did you mean 'keep'?",
        ),
        (
            ["training.init_from=x"],
            "unknown key 'training.init_from'; did you mean 'model.weights'?",
        ),
        (["model.weight=x"], "unknown key 'model.weight'; did you mean 'model.weights'?"),
        (["model.init=he"], "unknown key 'model.init'; did you mean 'init'?"),
        (["model=hub", "model.repo=x"], "model.entry must be given"),
        (
            ["training.unfreeze_at=3"],
            "training.unfreeze_at must be null where model.freeze names nothing, got 3",
        ),
        (
            ["training.unfreeze_at=3", "model.freeze=backbone", "model.cache_features=true"],
            "model.cache_features must be auto or false with training.unfreeze_at, got true",
        ),
        (["model.freeze=3"], "model.freeze must be a list of strings, got 3"),
        (["model.layers=3"], "unknown key 'model.layers'; did you mean 'model.hidden'?"),
        (
            ["data.root=x"],
            "unknown key 'data.root': data=digits has none, "
            "data=mnist|fashion_mnist|cifar10|image_folder have",
        ),
        (
            ["schedule.T_max=9"],
            "unknown key 'schedule.T_max'; schedule has schedule.name, schedule.warmup_steps",
        ),
        (
            [
                "optimizer=sgd",
                "optimizer.dampening=0.5",
                "optimizer.momentum=0.9",
                "optimizer.nesterov=true",
            ],
            "optimizer.dampening must be 0 with optimizer.nesterov=true, as in torch",
        ),
        (["batch.accumulate=0"], "batch.accumulate must be >= 1, got 0"),
        (
            ["batch.accumulation_steps=2"],
            "unknown key 'batch.accumulation_steps'; did you mean 'batch.accumulate'?",
        ),
        (["training.ema_decay=1"], "training.ema_decay must be < 1, got 1"),
        (
            ["schedule=exponential", "schedule.unit=epochs"],
            "schedule.unit must be one of step, epoch, got 'epochs'; did you mean 'epoch'?",
        ),
        (["optimizer=muon", "optimizer.lr=0"], "optimizer.lr must be > 0, got 0"),
        (
            ["optimizer=adam", "optimizer.dampening=0.5"],
            "unknown key 'optimizer.dampening': optimizer=adam has none, optimizer=sgd have",
        ),
        (
            ["batch=32"],
            "batch must be one of default, got '32' (its keys are batch.size, "
            "batch.accumulate, batch.lr_scaling, batch.base_size)",
        ),
        (
            ["init=kaiming"],
            "init must be one of he, he_uniform, keep, lecun, normal, ones, orthogonal, torch, "
            "uniform, xavier, xavier_uniform, zeros, got 'kaiming'; did you mean 'he'?",
        ),
        (
            ["data=MNIST"],
            "data must be one of arrays, cifar10, custom, digits, fashion_mnist, huggingface, "
            "image_folder, mnist, quadratic, table, got 'MNIST'; did you mean 'mnist'?",
        ),
        (
            ["model=custom"],
            "model._target_ must be given, for example model._target_=mypackage.Net",
        ),
        (
            ["schedule.name=[cosine]"],
            "schedule.name must be one of constant, step, exponential, cosine, one_cycle, "
            "plateau, got ['cosine']; did you mean 'cosine'?",
        ),
        (
            ["training.seed=9223372036854775807", "training.seeds=2"],
            "training.seed + training.seeds - 1 must be < 9223372036854775808, the last seed, "
            "got 9223372036854775808",
        ),
        (
            [f"data.order_seed={2**63}"],
            "data.order_seed must be < 9223372036854775808, got 9223372036854775808",
        ),
        (
            [f"model.hidden={[8] * 1001}".replace(" ", "")],
            "model.hidden must have at most 1000 numbers, got 1,001 of them",
        ),
        (
            ["model.hidden=[16777217]"],
            "model.hidden must hold numbers <= 16777216, got [16777217]",
        ),
        (
            [f"optimizer.lr=1{'0' * 400}"],
            f"optimizer.lr must be a number, got 1{'0' * 78}…",
        ),
    ],
)
def test_a_mistake_is_one_line_that_helps(words, message):
    assert mistakes(*words) == [message]


def test_all_mistakes_come_at_once():
    found = mistakes(
        "optimizer.lrr=1", "model=mpl", "optimizer.lr=-1", "batch.size=0", "init=he,xavier"
    )
    assert len(found) == 5
    assert {line.split()[0] for line in found} >= {"optimizer.lr", "batch.size", "model"}


def test_one_value_is_a_list_of_one():
    assert config.read(composition.compose(["model.hidden=7"])).model.hidden == (7,)
    assert config.read(composition.compose(["trust=mine"])).trust == ("mine",)


def test_a_config_dir_adds_groups(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text(
        "name: sgd\nlr: 0.5\nmomentum: 0.9\nnesterov: true\n"
    )
    read = config.read(composition.compose(["optimizer=mine"], config_dir=str(tmp_path)))
    assert (read.optimizer.name, read.optimizer.lr) == ("sgd", 0.5)
    with pytest.raises(InputError, match="--config-dir must be a folder"):
        composition.compose([], config_dir=str(tmp_path / "no"))


def test_keys_that_change_nothing_are_named():
    read = config.read(composition.compose(["optimizer.momentum=0.9", "optimizer.nesterov=true"]))
    assert config.inert(read) == [
        "optimizer.momentum has no effect with optimizer=adam",
        "optimizer.nesterov has no effect with optimizer=adam",
    ]
    read = config.read(composition.compose(["optimizer=sgd", "optimizer.momentum=0.9"]))
    assert config.inert(read) == []


def test_yaml_and_schema_hold_the_same_keys():
    for group, option in OPTIONS:
        plain = OmegaConf.to_container(composition.compose([f"{group}={option}"])[group])
        cls = schema.OPTIONS[group][option] if group in schema.OPTIONS else schema.PLAIN[group]
        assert set(plain) == {item.name for item in dataclasses.fields(cls)}, (group, option)


def test_words_that_are_no_overrides_are_refused():
    with pytest.raises(InputError, match="overrides must be strings"):
        composition.compose("optimizer.lr=1")
    with pytest.raises(InputError, match="overrides must be strings"):
        composition.compose([{"optimizer.lr": 1}])


def test_a_broken_file_of_the_user_is_one_line(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("name: [sgd\nlr: 1")
    with pytest.raises(InputError) as caught:
        composition.compose(["optimizer=mine"], str(tmp_path))
    (line,) = caught.value.mistakes
    assert "mine.yaml" in line


def test_a_file_of_the_user_that_lacks_keys_says_how_to_get_them(tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("name: sgd\nlr: 1\nmomentum: 0.5\n")
    with pytest.raises(InputError, match=r"`defaults: \[sgd\]` in a file of your own has it"):
        config.read(composition.compose(["optimizer=mine"], str(tmp_path)))


def test_every_value_of_a_sweep_is_checked():
    words = ["optimizer.lr=0.1,-1,0", "init=he,xavir", "training.seed=range(0,3)"]
    with pytest.raises(InputError) as caught:
        composition.check_sweep(words, {"model": "mlp,mpl", "optimizer.lr": "7,8"})
    found = caught.value.mistakes
    assert len(found) == 4
    assert sum("optimizer.lr must be > 0" in line for line in found) == 2
    composition.check_sweep(["optimizer.lr=interval(0,1)", "init=he,xavier"], {})
