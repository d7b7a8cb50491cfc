"""Runs whose objectives move or round weights, killed and resumed, end as if they had not been."""

import pytest

TINY = ("training.epochs=2", "training.limit=96", "training.batch_size=32", "training.checkpoint_seconds=0")


@pytest.mark.parametrize(
    "objective",
    [
        "{name: randbet, bits: 4, rate: 0.02, start: 100}",
        "{name: randbet, bits: 4, flips: 6, steps: 2, start: 100}",
        "{name: qat, bits: 4, activation_bits: 4, noise: 0.05}",
        "{name: forward-noise, eta: 0.1, mode: range}",
        "{name: entropy-sgd, steps: 2}",
        "{name: abcd, steps: 2}",
    ],
)
def test_a_resumed_run_is_the_same(objective, go, go_killed, same, tmp_path):
    words = ("digits-natural", *TINY, f"objective={objective}", "training.clip_weights=0.2", "training.ema=0.5")
    go(words, tmp_path / "whole")
    go_killed(words, tmp_path / "killed", 2)
    go(words, tmp_path / "killed", resume=True)
    same(tmp_path / "killed", tmp_path / "whole")
