"""Evaluations shared among processes give the report of one process, to the bit, also when a process is killed."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from stalwart.core.errors import FileError
from stalwart.core.workers import LocalWorkers, RayWorkers
from stalwart.evaluation.blocks import one_by_one
from stalwart.evaluation.suites import Entry, Suite
from stalwart.recipes import load_recipe
from stalwart.recipes.judging import evaluate_run
from stalwart.recipes.runs import Source, load_run, train
from stalwart.recipes.sharing import Job, RunAt, shared_by

SOURCE = Source(download=False)
WORDS = ("model={name: mlp, widths: [16]}", "training.epochs=8", "training.limit=400", "evaluation.eps=0.1")
JUDGED = ("evaluation.samples=44", "evaluation.batch_size=12", "evaluation.curve=[0.05]", "evaluation.chips=0")
ENTRIES = (
    Entry("noise", "noise", {}, "noise"),
    Entry("pgd-ce", "pgd", {"steps": 5}, curve=True),
    Entry("square", "square", {"queries": 30}, curve=True, survivors=True),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a small run that gets most inputs right."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    train(load_recipe("digits-natural", [*WORDS, *JUDGED, "evaluation.suite=quick"]), folder, SOURCE, device="cpu")
    return folder


@pytest.fixture
def judge(run, monkeypatch):
    """Return a function that evaluates the run with the work of others and returns its table and its report."""
    monkeypatch.setattr("stalwart.evaluation.suites.QUICK", Suite("quick", ENTRIES, ENTRIES))

    def call(out, work=one_by_one):
        loaded = load_run(run, SOURCE)
        evaluate_run(run, SOURCE, loaded, loaded[0].evaluation, 0, out, work=work)
        return (out / "samples.csv").read_bytes(), timeless(json.loads((out / "report.json").read_text()))

    return call


def timeless(value):
    """Return a report without times and environment."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in {"seconds", "created", "environment"}}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def work_of(workers, run):
    section = load_run(run, SOURCE)[0].evaluation
    job = partial(Job, RunAt(run, SOURCE), section.samples, section.norm, section.eps, 0, section.batch_size, "cpu")
    return shared_by(workers, job)


class Killing:
    """Workers of which one that is at work is killed when the first answer comes."""

    def __init__(self, inner, victims):
        self.inner, self.victims, self.killed, self.answers = inner, victims, [], 0

    def __enter__(self):
        self.inner.__enter__()
        return self

    def __exit__(self, *problem):
        self.inner.__exit__(*problem)

    def map_shards(self, function, shards):
        for number, answer in self.inner.map_shards(function, shards):
            self.answers += 1
            patience = time.monotonic() + 10
            while not self.killed and time.monotonic() < patience:
                for process in self.victims(self.inner)[:1]:
                    os.kill(process, signal.SIGKILL)
                    self.killed.append(process)
            yield number, answer


def own_pool(workers):
    return list(workers._pool._processes)


def own_ray_tasks(workers):
    """Return processes below this one that are at a task of Ray."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(entry.name)] = (entry / "cmdline").read_bytes()
        except (ValueError, OSError):
            continue

    def is_own(process):
        while process in parents:
            if process == os.getpid():
                return True
            process = parents[process]
        return False

    return [process for process, title in titles.items() if title.startswith(b"ray::_with") and is_own(process)]


def check(judge, run, tmp_path, workers):
    table, report = judge(tmp_path / "alone")
    (one,) = report["runs"]
    assert one["evaluation"]["clean"]["correct"] > one["evaluation"]["worst"]["correct"] > 0, "nothing to tell apart"
    with workers:
        assert judge(tmp_path / "shared", work_of(workers, run)) == (table, report)
    # Four blocks each of noise, and of pgd-ce at two radii; then what is left, for square at two radii.
    assert 12 + 2 <= getattr(workers, "answers", 14) <= 12 + 2 * 4


def test_two_processes_of_which_one_is_killed(judge, run, tmp_path):
    workers = Killing(LocalWorkers(2), own_pool)
    check(judge, run, tmp_path, workers)
    assert workers.killed


def test_one_process(judge, run, tmp_path):
    check(judge, run, tmp_path, LocalWorkers(1))


@pytest.mark.filterwarnings("ignore")
def test_two_workers_of_a_ray_cluster_of_which_one_is_killed(judge, run, tmp_path):
    pytest.importorskip("ray", reason="no Ray: pip install 'stalwart[cluster]'")
    workers = Killing(RayWorkers("local", count=2), own_ray_tasks)
    check(judge, run, tmp_path, workers)
    assert workers.killed


def test_another_model_is_noticed(run):
    job = Job(RunAt(run, SOURCE), 44, "linf", 0.1, 0, 12, "cpu", "the fingerprint of another one")
    with pytest.raises(FileError, match="a worker found another model"):
        job.subject()
