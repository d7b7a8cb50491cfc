"""Sweeps: which runs they have, that each is done once, and that one that fails stops no other."""

from pathlib import Path

import pytest

from stalwart.core.errors import TrainingError, UsageError
from stalwart.core.workers import LostShardError
from stalwart.recipes import sweeping
from stalwart.recipes.load import dump_recipe
from stalwart.recipes.runs import Source
from stalwart.recipes.sweeping import combinations, sweep

SHORT = ("training.epochs=1", "training.limit=64", "evaluation.suite=quick", "evaluation.samples=8")
JUDGED = ("evaluation.curve=[]", "evaluation.chips=0", "model={name: mlp, widths: [8]}")


class Inline:
    """Workers that are this process; the shards ``lost`` are never answered."""

    def __init__(self, lost=()):
        self.lost, self.begun = lost, 0

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        return None

    def map_shards(self, function, shards):
        for number, shard in enumerate(shards):
            self.begun += 1
            yield number, LostShardError(f"{number} is lost") if number in self.lost else function(shard)


def test_all_combinations_with_names_of_their_own(tmp_path):
    over = ["seed=0,1", "data.augment={flip: true},{}"]
    found = combinations("digits-natural", over, SHORT, tmp_path)
    flip = "augment-flip-true"
    assert [one.name for one in found] == [
        f"seed-0_{flip}",
        "seed-0_augment-none",
        f"seed-1_{flip}",
        "seed-1_augment-none",
    ]
    assert [one.recipe.seed for one in found] == [0, 0, 1, 1]
    assert [one.recipe.augment.flip for one in found] == [True, False, True, False]
    assert found[2].recipe.name == "digits-natural_seed-1_augment-flip-true"
    assert found[2].folder == tmp_path / "seed-1_augment-flip-true"
    alike = combinations("digits-natural", ["data.name=digits", "model.name=mlp"], SHORT, tmp_path)
    assert [one.name for one in alike] == ["data.name-digits_model.name-mlp"]


@pytest.mark.parametrize(
    ("over", "fixed", "message"),
    [
        ([], [], "needs something to vary"),
        (["seed"], [], "does not name values"),
        (["seed="], [], "does not name values"),
        (["seed=1,,2"], [], "does not name values"),
        (["=1"], [], "does not name values"),
        (["seed=0", "seed=1"], [], "names 'seed' twice"),
        (["seed=0,1"], ["seed=3"], "both fixed and swept over"),
        (["seed=1,1"], [], "both be called 'seed-1'"),
        (["training.epoch=1"], [], "unknown key 'training.epoch'. Did you mean 'epochs'"),
        (["training.epochs=1,-1"], [], "training.epochs"),
    ],
)
def test_what_cannot_be_swept(over, fixed, message, tmp_path):
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        combinations("digits-natural", over, [*SHORT, *fixed], tmp_path)
    assert not list(tmp_path.iterdir())


def test_runs_are_done_once_and_those_that_fail_stop_no_other(tmp_path, monkeypatch):
    runs = combinations("digits-natural", ["seed=0,1", "training.batch_size=16,32"], [*SHORT, *JUDGED], tmp_path)
    inner = sweeping.train

    def fails(recipe: object, folder: Path, *rest: object, **more: object) -> object:
        if folder.name == "seed-1_batch_size-16":
            raise TrainingError("the loss is not finite.")
        return inner(recipe, folder, *rest, **more)

    monkeypatch.setattr(sweeping, "train", fails)
    outcomes = [outcome for _, outcome in sweep(runs, Source(download=False), Inline(lost=(3,)), "cpu")]
    assert [outcome.error for outcome in outcomes] == ["", "", "the loss is not finite.", "3 is lost"]
    assert [one.finished for one in runs] == [True, True, False, False]
    assert "epoch 1" in (runs[0].folder / "log.txt").read_text()
    monkeypatch.setattr(sweeping, "train", inner)
    again = Inline()
    assert [outcome.error for _, outcome in sweep(runs, Source(download=False), again, "cpu")] == ["", ""]
    assert again.begun == 2
    assert all(one.finished for one in runs)
    assert (runs[2].folder / "recipe.yaml").read_text() == dump_recipe(runs[2].recipe)
    with pytest.raises(UsageError, match="holds a run of another recipe"):
        combinations("digits-natural", ["seed=0,1", "training.batch_size=16,32"], SHORT, tmp_path)
