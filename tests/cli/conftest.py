"""The command line in this process: exit code, what it printed, and no traceback."""

from dataclasses import dataclass

import pytest

from stalwart.cli.main import run

QUICK = ("--suite", "quick", "--samples", "12", "--device", "cpu")
TINY = (
    "training.epochs=2", "training.limit=64", "training.batch_size=32", "evaluation.curve=[]", "evaluation.chips=0"
)  # fmt: skip


@dataclass
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def stalwart(capsys):
    """Return a function that runs the command line with the given words."""

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run(["--system-malloc", *map(str, words)])
        out, err = capsys.readouterr()
        return Said(left.value.code or 0, out, err)

    return call


@pytest.fixture
def refused(stalwart):
    """Return a function that runs a command which must fail with one readable message, and returns that message."""

    def call(code, *words):
        said = stalwart(*words)
        assert said.code == code, said
        assert "Traceback" not in said.err
        assert said.err.startswith("error: "), said.err
        assert said.err.count("error: ") == 1
        assert said.err.count("\n") == 1, said.err
        assert "STALWART_DEBUG" not in said.err, "an error that nobody foresaw"
        return said.err.removeprefix("error: ").strip()

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Return the folder of a tiny finished run; do not change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.raises(SystemExit) as left:
        run(["--system-malloc", "train", "digits-natural", *TINY, "--out", str(folder), "--device", "cpu"])
    assert not left.value.code
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """Return a copy of the tiny run that may be damaged."""
    import shutil

    return shutil.copytree(trained, tmp_path / "copied")


@pytest.fixture(scope="session")
def quick():
    return QUICK


@pytest.fixture(scope="session")
def tiny():
    return TINY
