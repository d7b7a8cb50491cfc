"""What users hand in is refused with a message that names the problem."""

import pytest
import torch

from stalwart.core.checks import check_images, check_labels, check_logits
from stalwart.core.errors import InputError

NAN, INF = float("nan"), float("inf")


def images(value=0.5, sample=0):
    x = torch.full((3, 2, 2), 0.5)
    x[sample, 1, 0] = value
    return x


@pytest.mark.parametrize("x", [images(), images(0.0), images(1.0), images(-9e-6), images(1 + 9e-6), images().double()])
def test_good_images_pass(x):
    check_images(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images(NAN, 2), "NaN or infinity, first in sample 2"),
        (images(INF, 1), "NaN or infinity, first in sample 1"),
        (images(-0.01), r"must lie in \[0, 1\] but span \[-0.01, 0.5\]"),
        (images(1.01), r"but span \[0.5, 1.01\].*first layer"),
        (images(255.0), r"x / 255"),
        (images().mul(255).byte(), r"got torch.uint8.*/ 255"),
        (torch.zeros(3), r"shape \[B, ...\] with B >= 1, got \[3\]"),
        (torch.zeros(0, 3), r"got \[0, 3\]"),
        (torch.zeros(3, 0), r"got \[3, 0\]"),
    ],
)
def test_bad_images_are_refused(x, message):
    with pytest.raises(InputError, match=message):
        check_images(x)


def test_another_range_is_used():
    check_images(torch.tensor([[-1.0, 2.0]]), -1.0, 2.0)
    with pytest.raises(InputError, match=r"^frames must lie in \[-1, 1\]"):
        check_images(torch.tensor([[-1.0, 2.0]]), -1.0, 1.0, "frames")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_good_labels_pass(dtype):
    check_labels(torch.tensor([0, 2], dtype=dtype), 2, 3)
    check_labels(torch.tensor([0, 99], dtype=dtype), 2)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0.0, 1.0]), "integers .*got torch.float32"),
        (torch.tensor([True, False]), "integers .*got torch.bool"),
        (torch.tensor([[0], [1]]), r"shape \[2, 1\]"),
        (torch.tensor(1), r"shape \[\]"),
        (torch.tensor([0, 1, 2]), "3 labels for 2 inputs"),
        (torch.tensor([0, 3]), r"in \[0, 3\), but sample 1 has label 3"),
        (torch.tensor([-1, 0]), r"in \[0, 3\), but sample 0 has label -1"),
    ],
)
def test_bad_labels_are_refused(y, message):
    with pytest.raises(InputError, match=message):
        check_labels(y, 2, 3)


def test_negative_labels_are_refused_before_the_classes_are_known():
    with pytest.raises(InputError, match="non-negative, but sample 1 has label -5"):
        check_labels(torch.tensor([0, -5]), 2)


def test_logits():
    check_logits(torch.zeros(2, 2), 2)
    for bad in ([2], [2, 1], [3, 2], [2, 3, 1]):
        with pytest.raises(InputError, match=rf"for 2 inputs it gave \[{', '.join(map(str, bad))}\]"):
            check_logits(torch.zeros(bad), 2)
    with pytest.raises(InputError, match="returned tuple"):
        check_logits((torch.zeros(2, 2),), 2)
    with pytest.raises(InputError, match=r"returned torch.int64"):
        check_logits(torch.zeros(2, 2, dtype=torch.long), 2)
