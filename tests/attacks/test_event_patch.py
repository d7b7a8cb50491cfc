"""Universal patches of events: binary, under their disc alone, learned where the answer is known, kept and refused."""

import pytest
import torch
from torch import nn
from traces import InPlaceCounter, snapshot

from stalwart.attacks.event_patch import EventPatch, Patch
from stalwart.core.errors import FileError, InputError, UsageError
from stalwart.core.random import generator


def rasters(count=12, seed=0, share=0.2):
    return (torch.rand(count, 3, 2, 12, 12, generator=generator(seed)) < share).float()


class Counts(nn.Module):
    """Decides by events: class 0 by itself, 1 by those of the second polarity; those of the first speak against it."""

    def __init__(self):
        super().__init__()
        self.first = InPlaceCounter()
        self.weight = nn.Parameter(torch.tensor([-0.5, 0.5]))

    def forward(self, x):
        counts = self.first(x).sum((1, 3, 4))
        score = (counts * self.weight).sum(1) - 15
        return torch.stack([-score, score], 1) / 4


def test_the_disc_fills_with_what_the_target_wants():
    model, x, y = Counts(), rasters(), torch.zeros(12, dtype=torch.long)
    before = snapshot(model)
    patch = EventPatch(target=1, share=0.3, batch=4, steps=40, confidence=0.999).fit(model, x, y, seed=0)
    assert snapshot(model) == before
    values = patch.values[..., patch.mask]
    assert (values[:, 1] > 0.5).all()
    assert (values[:, 0] < 0.5).all()
    assert patch.bins == 6 * int(patch.mask.sum())
    assert patch.events == patch.bins // 2
    fresh = rasters(seed=1)
    with torch.no_grad():
        assert (model(fresh).argmax(1) == 0).all()
        assert (model(patch.apply(fresh)).argmax(1) == 1).all()
        assert (model(patch.shuffled().apply(fresh)).argmax(1) == 0).all()


def test_a_patch_replaces_what_lies_under_its_disc_and_nothing_else():
    x = rasters(40)
    ones = torch.ones(3, 2, 6, 6)
    ends = torch.arange(-3, 3) + 0.5
    mask = ends.square()[:, None] + ends.square() <= 9
    window = (2, 11, 1, 12)
    full, empty = Patch(ones, mask, 1, window), Patch(0 * ones, mask, 1, window)
    lit, dark = full.apply(x, seed=5), empty.apply(x, seed=5)
    assert ((lit == 0) | (lit == 1)).all()
    covered = lit != dark  # where both replace, the one by an event and the other by none
    assert (covered.flatten(1).sum(1) == full.bins).all()
    assert (lit[covered] == 1).all()
    assert torch.equal(lit[~covered], x[~covered])
    assert torch.equal(dark[~covered], x[~covered])
    rows, columns = covered.any(4).any(2).any(1), covered.any(3).any(2).any(1)
    assert rows[:, 2:11].any(0).all()  # every place of the window is taken by some sample
    assert columns[:, 1:12].any(0).all()
    assert not rows[:, [0, 1, 11]].any()
    assert not columns[:, 0].any()
    assert torch.equal(lit, full.apply(x, seed=5))
    assert not torch.equal(lit, full.apply(x, seed=6))


def test_one_input_after_the_other_is_the_published_rule():
    """One step with batch 1, by hand: patch - mask * gradient of -log p of the target at the rounded raster."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(864, 3))
    x = rasters(1)
    with torch.no_grad():
        y = model(x).argmax(1)
    target = int((y[0] + 1) % 3)
    whole = EventPatch(target=target, share=0.7, steps=1, confidence=1.0, step=2.0, window=(1, 11, 0, 10))
    patch = whole.fit(model, x, y, seed=0)
    place = patch.values.shape[-1]
    assert place == 10  # fills the window, so that its place is known
    leaf = x.clone()
    leaf[..., 1:11, 0:10][..., patch.mask] = 0
    leaf.requires_grad_()
    (gradient,) = torch.autograd.grad(-model(leaf).log_softmax(1)[0, target], leaf)
    expected = -2.0 * gradient[0, ..., 1:11, 0:10] * patch.mask
    assert torch.allclose(patch.values, expected, atol=1e-6)


def test_the_random_patch_has_the_same_disc_and_as_many_events():
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]]).bool()
    patch = Patch((torch.rand(5, 2, 4, 4, generator=generator(3)) < 0.3).float() * mask, mask, 2, (0, 9, 0, 9))
    other = patch.shuffled(1)
    assert other.events == patch.events > 0
    assert (other.values[..., ~mask] == 0).all()
    assert not torch.equal(other.values, patch.values)
    assert torch.equal(other.values, patch.shuffled(1).values)
    assert not torch.equal(other.values, patch.shuffled(2).values)


def test_patches_are_kept(tmp_path):
    patch = EventPatch(target=1, share=0.3, batch=6, steps=5, window=(0, 12, 1, 11)).fit(
        Counts(), rasters(), torch.zeros(12, dtype=torch.long)
    )
    patch.save(tmp_path / "patch.safetensors")
    back = Patch.load(tmp_path / "patch.safetensors")
    assert torch.equal(back.values, patch.values)
    assert torch.equal(back.mask, patch.mask)
    assert (back.target, back.window) == (1, (0, 12, 1, 11))
    assert torch.equal(back.apply(rasters(), 3), patch.apply(rasters(), 3))
    from stalwart.core.tensors import save_tensors

    save_tensors(tmp_path / "other.safetensors", {"values": patch.values})
    with pytest.raises(FileError, match="no patch of events"):
        Patch.load(tmp_path / "other.safetensors")


def test_the_same_seed_learns_the_same_patch():
    model, x, y = Counts(), rasters(), torch.zeros(12, dtype=torch.long)
    first, again, other = (
        EventPatch(target=1, share=0.2, batch=4, steps=6).fit(model, x, y, seed=n) for n in (0, 0, 1)
    )
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)


@pytest.mark.parametrize(
    ("options", "x", "error", "message"),
    [
        ({}, 0.5 * rasters(), InputError, "other than 0 and 1"),
        ({}, rasters().flatten(2), InputError, r"rasters \[B, ..., H, W\]"),
        ({"target": 2}, rasters(), UsageError, "classes 0 to 1, not 2"),
        ({"target": 0}, rasters(), InputError, "none rightly whose class is not 0"),
        ({"share": 0.001}, rasters(), UsageError, "has no bin"),
        ({"window": (0, 3, 0, 12)}, rasters(), UsageError, "does not fit into the window"),
        ({"window": (0, 13, 0, 12)}, rasters(), UsageError, "does not fit into the window"),
    ],
)
def test_what_cannot_be_learned_is_refused(options, x, error, message):
    wanted = {"target": 1, "share": 0.3, "steps": 1} | options
    with pytest.raises(error, match=message):
        EventPatch(**wanted).fit(Counts(), x, torch.zeros(12, dtype=torch.long))


def test_impossible_options_and_other_rasters_are_refused():
    for options, message in (({"share": 1.5}, "share"), ({"confidence": 2.0}, "confidence"), ({"steps": 0}, "steps")):
        with pytest.raises(UsageError, match=message):
            EventPatch(target=1, **options)
    patch = Patch(torch.zeros(3, 2, 4, 4), torch.ones(4, 4).bool(), 1, (0, 12, 0, 12))
    with pytest.raises(InputError, match="learn one for them"):
        patch.apply(rasters()[:, :2])
    with pytest.raises(InputError, match="learn one for them"):
        patch.apply(rasters()[..., :10])
