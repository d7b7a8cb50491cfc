"""What all tests share: run-time type checks of the whole package, few threads, the shared data folder."""

import os
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import torch

# Before the first import of the package: every annotation below src/ is checked at every call.
jaxtyping.install_import_hook("stalwart", "beartype.beartype")

torch.set_num_threads(1)

# Explaining a failure traces every line of torch and takes minutes; a shrunk example says enough.
hypothesis.settings.register_profile(
    "stalwart", deadline=None, phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain]
)
hypothesis.settings.load_profile("stalwart")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of shared data: $STALWART_SHARED, or ``shared`` beside the checkout."""
    named = os.environ.get("STALWART_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set STALWART_SHARED to its folder")
    return folder
