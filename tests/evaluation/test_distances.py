"""What a suite shows of attacks that look for the nearest adversarial point: the median distance, also after a kill."""

import torch
from torch import nn

import stalwart as sw
from stalwart.core.random import generator
from stalwart.evaluation import evaluate, suites
from stalwart.evaluation.blocks import Subject
from stalwart.evaluation.kept import Kept
from stalwart.evaluation.suites import Entry, Suite


def still(model, within):
    """Return a foreign attack that changes nothing."""
    return lambda x, y: x


def test_the_median_distance_is_in_the_row(monkeypatch):
    entries = (
        Entry("pgd-ce", "pgd"),
        Entry("deepfool", "deepfool", curve=True),
        Entry("theirs", "foreign", {"attack": still}),
    )
    monkeypatch.setattr(suites, "QUICK", Suite("quick", entries, entries))
    torch.manual_seed(0)
    model = nn.Linear(5, 2)
    x = torch.rand(9, 5, generator=generator(0))
    y = model(x).argmax(1)
    evaluation, _ = evaluate(model, x, y, sw.Linf(0.01), "quick", curve=[0.3])
    direct = sw.attack("deepfool")(model, x, y, within=sw.Linf(0.01))
    rows = {(row.name, row.eps): row for row in evaluation.attacks}
    expected = float(direct.distance.median())
    assert rows["deepfool", 0.01].distance == expected
    assert rows["deepfool", 0.3].distance == expected
    assert rows["pgd-ce", 0.01].distance is None
    assert rows["theirs", 0.01].options == {"attack": "still"}
    assert '"distance":' in evaluation.model_dump_json()


def test_kept_results_keep_their_distances(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Linear(5, 2), torch.rand(4, 5, generator=generator(0))
    store, subject = Kept(tmp_path, "print"), Subject(model, x, model(x).argmax(1), sw.Linf(0.1), 0)
    for name in ("deepfool", "pgd"):
        (block,) = subject.blocks(Entry(name, name), 0.1, torch.ones(4, dtype=torch.bool))
        found = subject.attack(block)
        store.write(block, found)
        back = store.read(block, torch.device("cpu"))
        assert back.seconds == found.seconds
        assert (back.result.distance is None) == (name == "pgd")
        if name == "deepfool":
            assert torch.equal(back.result.distance, found.result.distance)
