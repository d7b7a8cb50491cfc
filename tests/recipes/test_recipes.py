"""Recipes: what is shipped, how it is changed, and what is said where a recipe is wrong."""

import difflib
import math

import hypothesis
import pytest
import torch
import yaml
from hypothesis import strategies as st

from stalwart.attacks.table import ATTACKS
from stalwart.core.errors import FileError, StalwartError, UsageError
from stalwart.core.registry import build
from stalwart.data import load
from stalwart.objectives import OBJECTIVES
from stalwart.recipes import load_recipe, shipped
from stalwart.recipes.load import dump_recipe, parse_evaluation, parse_recipe
from stalwart.recipes.runs import make_model
from stalwart.training.schedules import factor

ALL = sorted(shipped())


def names(stem):
    return [name for name in ALL if name.startswith(stem)]


def test_the_shipped_recipes_are_all_there():
    assert len(ALL) >= 29
    assert all(shipped().values()), "a recipe without a description"
    for family in ("natural", "gaussian", "wca", "fgsm-rs", "pgd-at", "trades", "mart", "awp", "pni"):
        assert f"digits-{family}" in ALL


@pytest.mark.parametrize("name", ALL)
def test_each_loads_and_survives_the_round_trip(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    text = dump_recipe(recipe)
    assert parse_recipe(yaml.safe_load(text), name) == recipe
    assert dump_recipe(parse_recipe(yaml.safe_load(text), name)) == text
    assert yaml.safe_load(text)["seed"] == 0, "defaults are spelled out"


@pytest.mark.parametrize(
    ("name", "width", "mean", "std", "augmented"),
    [
        ("cifar10", 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), True),
        ("cifar100", 256, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), True),
        ("svhn", 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False),
    ],
)
@pytest.mark.parametrize("adversarial", [False, True])
def test_the_papers_hyper_parameters(name, width, mean, std, augmented, adversarial):
    recipe = load_recipe(f"{name}-resnet18-wca" + ("-at" if adversarial else ""))
    training, optimiser = recipe.training, recipe.training.optimiser
    assert (recipe.data.name, recipe.model.name) == (name, "resnet18")
    assert recipe.model.options == {"features": width}
    assert (tuple(recipe.model.mean), tuple(recipe.model.std)) == (mean, std)
    assert recipe.model.noise.name == "wca"
    assert recipe.model.noise.options.get("covariance", "full") == "full"
    assert recipe.model.noise.options["init"] == "uniform", "the authors start from the lower triangle of U(0, 1)"
    assert (optimiser.name, optimiser.lr, optimiser.weight_decay, optimiser.decay) == ("adam", 1e-2, 1e-4, "head")
    assert (training.batch_size, training.epochs, training.ema, training.limit) == (128, 600, 0.0, None)
    assert training.criterion == "last"
    rates = [factor(training.schedule, float(epoch), 600) for epoch in (0, 199, 200, 399, 400, 599)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert (recipe.augment.crop, recipe.augment.flip, recipe.augment.cutout) == (
        (4, True, 0) if augmented else (0, False, 0)
    )
    assert recipe.objective.name == "wca"
    assert recipe.objective.options.get("weight", 1.0) == 1.0
    if adversarial:
        assert recipe.objective.options["base"] == "pgd-at"
        assert recipe.objective.options["options"] == {"eps": 0.03, "steps": 10, "step": 0.01}
    else:
        assert recipe.objective.options.get("base", "natural") == "natural"
    assert recipe.evaluation.samples is None
    assert recipe.evaluation.eps == 8 / 255


def test_the_papers_fashion_mnist_run():
    recipe = load_recipe("fashion-mnist-lenet-wca")
    assert (recipe.model.name, recipe.model.options, recipe.model.mean) == ("lenet++", {"features": 32}, None)
    assert (recipe.training.optimiser.lr, recipe.training.epochs, recipe.training.batch_size) == (1e-4, 600, 128)
    assert (recipe.training.optimiser.weight_decay, recipe.training.optimiser.decay) == (1e-4, "head")
    assert recipe.training.schedule.milestones == (200, 400)


@pytest.mark.parametrize("activation", ["relu", "paramramp"])
@pytest.mark.parametrize(("method", "kappa"), [("ibp", 0), ("crown-ibp", 1)])
def test_certified_training_on_mnist_as_published(method, kappa, activation):
    recipe = load_recipe(f"mnist-dm-large-{method}-{activation}")
    objective = build("objective", OBJECTIVES, recipe.objective.name, recipe.objective.options)
    training = recipe.training
    assert (recipe.objective.name, recipe.model.name, recipe.model.mean) == (method, "dm-large", None)
    assert (objective.eps, objective.clean_epochs, objective.ramp_epochs, objective.growth) == (0.4, 10, 50, "linear")
    assert (objective.kappa_start, objective.kappa_end) == (kappa, 0)
    assert (training.epochs, training.batch_size) == (200, 256)
    assert (training.optimiser.lr, training.optimiser.weight_decay) == (5e-4, 0)
    assert (training.schedule.milestones, training.schedule.gamma) == ((130, 190), 0.1)
    assert training.criterion == "certified"
    if activation == "paramramp":
        assert (recipe.model.options["eta"], training.ramps.switch_on) == (0.01, 10)
        slope = [training.ramps.slope.at(epoch) for epoch in (0, 70, 140, 200)]
        assert slope == pytest.approx([0.01, 0.01, 0, 0])
        assert training.ramps.slope.shape == "smooth"


@pytest.mark.parametrize(
    ("name", "eps", "tested", "beta"),
    [
        ("ibp-relu", 8.8, 8, None),
        ("ibp-paramramp", 8.8, 8, None),
        ("crown-ibp-paramramp", 8.8, 8, 0),
        ("crown-ibp-paramramp-2", 2.2, 2, 1),
    ],
)
def test_certified_training_on_cifar_as_published(name, eps, tested, beta):
    recipe = load_recipe(f"cifar10-dm-large-{name}")
    objective = build("objective", OBJECTIVES, recipe.objective.name, recipe.objective.options)
    training = recipe.training
    assert objective.eps == pytest.approx(eps / 255)
    assert recipe.evaluation.eps == pytest.approx(tested / 255)
    assert training.validation.eps == recipe.evaluation.eps
    assert (objective.clean_epochs, objective.ramp_epochs) == (320, 1600)
    assert (objective.kappa_start, objective.kappa_end) == (0, 0)
    assert getattr(objective, "beta_end", None) == beta
    assert (training.epochs, training.batch_size, training.schedule.milestones) == (3200, 1024, (2600, 3040))
    assert (recipe.augment.crop, recipe.augment.flip) == (4, True)
    if "paramramp" in name:
        assert training.ramps.switch_on == 320
        slope = [training.ramps.slope.at(epoch) for epoch in (0, 1000, 2200)]
        assert slope == pytest.approx([0.01, 0.01, 0])


def test_certified_training_with_a_short_warm_up():
    recipe = load_recipe("cifar10-cnn7-ibp")
    objective = build("objective", OBJECTIVES, recipe.objective.name, recipe.objective.options)
    assert (recipe.model.name, recipe.model.init) == ("cnn7-bn", "ibp")
    assert (objective.clean_epochs, objective.ramp_epochs, objective.growth) == (1, 80, "smooth")
    assert (objective.regularise, objective.tau) == (0.5, 0.5)
    training = recipe.training
    assert (training.epochs, training.batch_size, training.schedule.milestones) == (160, 128, (120, 140))
    assert (training.optimiser.lr, training.optimiser.clip) == (5e-4, 10)


@pytest.mark.parametrize("name", names("digits"))
def test_the_models_of_digits_can_be_built_and_depend_on_the_seed_alone(name):
    from stalwart.data import Data, Split

    shape = (8, 2, 8, 8) if "events" in name else (1, 8, 8)
    none = Split(torch.zeros(0, *shape), torch.zeros(0, dtype=torch.long))
    data = Data("digits", none, none, none, tuple("0123456789"), shape)
    one, two, other = (make_model(load_recipe(name, [f"seed={s}"]), data).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        (["training.epochs=5"], "training.epochs", 5),
        (["training.epochs=5", "training.epochs=6"], "training.epochs", 6),
        (["evaluation.eps=8/255"], "evaluation.eps", 8 / 255),
        (["training.optimiser.lr=1e-3"], "training.optimiser.lr", 1e-3),
        (["training.schedule={name: step, milestones: [1, 2.5]}"], "training.schedule.milestones", (1.0, 2.5)),
        (["training.validation={eps: 1/10}"], "training.validation.eps", 0.1),
        (["evaluation.samples=null"], "evaluation.samples", None),
        (["evaluation.curve=[1/255, 0.1]"], "evaluation.curve", (1 / 255, 0.1)),
        (["model.noise.name=wca", "model.noise.covariance=diagonal"], "model.noise.name", "wca"),
        (["seed=7"], "seed", 7),
        (["training.ema=0.5"], "training.ema", 0.5),
    ],
)
def test_overrides(words, path, value):
    found = load_recipe("digits-natural", words)
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_an_override_reaches_options():
    recipe = load_recipe("digits-pgd-at", ["objective.eps=0.2", "model.features=16", "data.augment.flip=true"])
    assert recipe.objective.options == {"eps": 0.2, "steps": 5}
    assert recipe.model.options == {"features": 16}
    assert recipe.augment.flip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["training.epoks=3"], r"unknown key 'training\.epoks'\. Did you mean 'epochs'\?"),
        (["training.optimiser.rl=3"], r"unknown key 'training\.optimiser\.rl'"),
        (["training.validation={epz: 3}"], r"training\.validation\.ep"),
        (["trainin.epochs=3"], r"unknown key 'trainin'\. Did you mean 'training'\?"),
        (["model.name=smal-cnn"], r"unknown model 'smal-cnn'\. Did you mean 'small-cnn'\?"),
        (["model.featurs=3"], r"model 'small-cnn' has no option 'featurs'\. Did you mean 'features'\?"),
        (["objective.name=pgd"], r"unknown objective 'pgd'\. Did you mean 'pgd-at'\?"),
        (["objective.eps=0.1"], r"objective 'natural' has no option 'eps'"),
        (["data.name=digit"], r"unknown dataset 'digit'\. Did you mean 'digits'\?"),
        (["data.augment.flop=true"], r"has no option 'flop'\. Did you mean 'flip'\?"),
        (["data.augment=3"], r"'data\.augment'.*\(got 3\)"),
        (["model.noise.name=wac"], r"unknown noise 'wac'\. Did you mean 'wca'\?"),
        (["evaluation.suite=standart"], r"unknown suite 'standart'\. Did you mean 'standard'\?"),
        (["training.validation={attack: pdg, eps: 0.1}"], r"unknown attack 'pdg'\. Did you mean 'pgd'\?"),
        (
            ["training.validation={attack: weight-pgd, eps: 0.1}"],
            r"'weight-pgd' attacks weights; take one such as 'pgd'",
        ),
        (["training.validation={certify: ipb, eps: 0.1}"], r"unknown bounding method 'ipb'\. Did you mean 'ibp'\?"),
        (["evaluation.certify={methods: [ibp, ipb]}"], r"unknown bounding method 'ipb'\. Did you mean 'ibp'\?"),
        (["evaluation.certify={methods: []}"], r"'evaluation\.certify\.methods'"),
        (["evaluation.certify={timeout: 0}"], r"'evaluation\.certify\.timeout'.*\(got 0\.0\)"),
        (["evaluation.certify={strategy: tigth}"], r"'evaluation\.certify\.strategy'"),
        (["evaluation.certify={sampels: 3}"], r"unknown key 'evaluation\.certify\.sampels'\. Did you mean 'samples'\?"),
        (["training.epochs=abc"], r"'training\.epochs'.*\(got 'abc'\)"),
        (["training.epochs=0"], r"training\.epochs must be at least 1"),
        (["training.optimiser.lr=fast"], r"'fast' is not a number"),
        (["evaluation.eps=-0.1"], r"'evaluation\.eps'.*\(got -0\.1\)"),
        (["evaluation.eps=.inf"], r"not a finite number"),
        (["evaluation.curve=[0.1, -0.1]"], r"'evaluation\.curve\.1'.*\(got -0\.1\)"),
        (["training.schedule.name=step"], r"needs milestones"),
        (["training.select=robust"], r"needs a validation section"),
        (["name=../up"], r"'name'"),
        (["seed=-1"], r"'seed'"),
        (["training.epochs"], r"'training\.epochs' is not an override; write key=value"),
        (["=3"], r"'=3' is not an override"),
        (["training.epochs=[1"], r"'\[1' is not a YAML value"),
        (["seed.deep=1"], r"'seed': .*\(got \{'deep': 1\}\)"),
        (["name.a.b=1"], r"override 'name\.a\.b=1': there is nothing below"),
    ],
)
def test_mistakes_are_named(words, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe("digits-natural", words)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_certifiably_trained_recipes_are_certified_on_what_is_attacked():
    names = [name for name in shipped() if name.startswith(("digits-ibp", "fashion-mnist-ibp", "mnist-dm-small"))]
    names += [f"fashion-mnist-{name}" for name in ("crown-ibp", "paramramp", "mtl-ibp", "sabr")]
    assert len(names) == 8
    for name in names:
        section = load_recipe(name).evaluation
        assert section.certify.strategy == "tight"
        assert section.certify.samples <= (section.samples or 10_000)
        assert {"ibp", "crown-ibp", "alpha-crown"} <= set(section.certify.methods)
    assert load_recipe("digits-natural").evaluation.certify is None


def test_a_null_section_is_set_as_a_whole(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("name: own\ndata: {name: digits}\nmodel: {name: mlp, noise: null}\n")
    assert load_recipe(str(path)).model.noise is None
    with pytest.raises(UsageError, match="'noise' is null; set it as a whole"):
        load_recipe(str(path), ["model.noise.name=wca"])
    assert load_recipe(str(path), ["model.noise={name: wca}"]).model.noise.name == "wca"


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "3", "1: 2\n", "{1: 2, name: a}"])
@pytest.mark.parametrize("words", [[], ["seed=1"]])
def test_what_is_not_a_mapping_of_names_is_refused(text, words, tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(
        UsageError, match=r"odd\.yaml must be a YAML mapping with the keys name, description, seed, data"
    ):
        load_recipe(str(path), words)


def test_broken_and_missing_files(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: [a\ndata: }")
    with pytest.raises(FileError, match=r"broken\.yaml is not valid YAML"):
        load_recipe(str(path))
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(StalwartError, match=r"broken\.yaml"):
        load_recipe(str(path))
    with pytest.raises(FileError, match=r"cannot read recipe .*absent\.yaml: No such file"):
        load_recipe(str(tmp_path / "absent.yaml"))
    path.write_text("name: a\n")
    with pytest.raises(UsageError, match="'data'"):
        load_recipe(str(path))
    path.write_text("!!python/object/apply:os.system ['echo no']")
    with pytest.raises(FileError, match="not valid YAML"):
        load_recipe(str(path))


@pytest.mark.parametrize("name", ["digit-natural", "digits-pdg-at", "cifar10-resnet-18-wca"])
def test_unknown_names_suggest_the_nearest(name):
    near = difflib.get_close_matches(name, ALL, n=1)[0]
    with pytest.raises(UsageError, match=rf"unknown recipe '{name}'\. Did you mean '{near}'\?"):
        load_recipe(name)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.integers(1, 10**6),
    st.floats(1e-12, 1e6),
    st.integers(0, 1000),
    st.integers(1, 255),
    st.floats(0, 0.999),
    st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20),
)
def test_any_recipe_survives_the_round_trip(epochs, lr, seed, eps, ema, description):
    values = {
        "name": "x",
        "description": description,
        "seed": seed,
        "data": {"name": "digits", "validation": "1/3"},
        "model": {"name": "mlp", "widths": [3, 4]},
        "training": {"epochs": epochs, "optimiser": {"lr": lr}, "ema": ema},
        "evaluation": {"eps": f"{eps}/255"},
    }
    recipe = parse_recipe(values, "made")
    again = parse_recipe(yaml.safe_load(dump_recipe(recipe)), "made")
    assert again == recipe
    assert again.training.optimiser.lr == lr
    assert math.isclose(again.evaluation.eps, eps / 255, rel_tol=1e-15)


def test_options_of_an_evaluation():
    section = parse_evaluation({"eps": "8/255", "norm": "l2", "curve": ["1/255"], "rule": "mean-softmax"})
    assert (section.eps, section.norm, section.curve, section.rule) == (8 / 255, "l2", (1 / 255,), "mean-softmax")
    with pytest.raises(UsageError, match="unknown suite 'quik'. Did you mean 'quick'"):
        parse_evaluation({"suite": "quik"})
    with pytest.raises(UsageError, match="'norm'.*l7"):
        parse_evaluation({"norm": "l7"})


def test_spiking_adversarial_training_as_published():
    recipe = load_recipe("cifar10-vgg11-rat")
    objective = build("objective", OBJECTIVES, recipe.objective.name, recipe.objective.options)
    training, neurons = recipe.training, recipe.model.neurons
    assert (objective.eps, objective.steps, objective.beta) == (2 / 255, 1, 5e-4)
    assert (neurons.steps, neurons.leak, neurons.reset, neurons.surrogate) == (8, 1.0, "hard", {"name": "triangle"})
    assert (training.optimiser.name, training.optimiser.lr, training.schedule.name) == ("sgd", 0.1, "cosine")
    assert training.epochs == 200
    attacked = training.validation
    assert (attacked.eps, attacked.options["steps"]) == (8 / 255, 7)
    assert build("attack", ATTACKS, "pgd", attacked.options).step == pytest.approx(2.55 / 255)
    recipe = load_recipe("cifar10-vgg5-hire")
    assert (recipe.model.neurons.trained, recipe.model.neurons.steps) == (("leak", "threshold"), 8)
    objective = build("objective", OBJECTIVES, recipe.objective.name, recipe.objective.options)
    assert (objective.eps, objective.periods) == (8 / 255, 2)


def test_fluctuation_driven_weights_are_measured_on_training_inputs():
    words = ["model.init=fluctuation", "model.spiking.xi=2.0"]
    recipe = load_recipe("digits-spiking", words)
    data = load("digits", recipe.data.options, recipe.seed, None, False)
    one, two = make_model(recipe, data), make_model(recipe, data)
    plain = make_model(load_recipe("digits-spiking"), data)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    ratio = one.backbone.layers[0].weight.detach().std() / plain.backbone.layers[0].weight.detach().std()
    # A constant input over four steps of leak 0.9: σ_W = 1 / (ξ 3.439 sqrt(n ν̂)), against 1.6 sqrt(2 / n).
    x = data.train.batch(slice(0, 256))[0]
    assert float(ratio) == pytest.approx(1 / (2 * 3.439 * 1.6 * (2 * float(x.square().mean())) ** 0.5), rel=0.1)
    with pytest.raises(UsageError, match="give the model a spiking section"):
        load_recipe("digits-natural", ["model.init=fluctuation"])
