import errno
import json
import os
import tempfile

import numpy as np
import pydantic
import pytest

from stalwart.core.errors import FileError, UsageError
from stalwart.evaluation.results import Picture
from stalwart.report import Report, RunReport, environment


def test_round_trip_through_the_folder_and_the_file(full, tmp_path):
    assert full.save(tmp_path / "new" / "out") == tmp_path / "new" / "out"
    assert Report.load(tmp_path / "new" / "out") == full
    assert Report.load(str(tmp_path / "new" / "out" / "report.json")) == full
    assert sorted(os.listdir(tmp_path / "new" / "out")) == ["index.html", "report.json"]


def test_saving_again_replaces_both_files(bare, make_run, tmp_path):
    bare.save(tmp_path)
    Report(title="Later", runs=[make_run("later")]).save(tmp_path)
    assert Report.load(tmp_path).title == "Later"
    assert "<title>Later</title>" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_diverged_epoch_is_kept_as_missing(make_run, tmp_path):
    training = [{"epoch": 1, "train_loss": float("nan")}, {"epoch": 2, "train_loss": float("inf")}]
    run = RunReport(name="diverged", evaluation=make_run().evaluation, training=training)
    report = Report(title="x", runs=[run])
    assert [entry["train_loss"] for entry in run.training] == [None, None]
    assert Report.load(report.save(tmp_path)) == report


def test_records_are_frozen_and_refuse_unknown_keys(bare):
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        bare.title = "other"
    with pytest.raises(pydantic.ValidationError, match="Extra"):
        Report(title="x", runs=bare.runs, verdict="robust")
    with pytest.raises(pydantic.ValidationError, match="created"):
        Report(title="x", runs=bare.runs, created="yesterday")
    with pytest.raises(pydantic.ValidationError, match="at least 1"):
        Report(title="x", runs=[])


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent.json"):
        with pytest.raises(FileError, match="cannot read the report"):
            Report.load(path)


@pytest.mark.parametrize("text", ["", "{", '{"title": "x", "runs"', "\x00\x01"])
def test_corrupt_json(text, tmp_path):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(FileError, match="not valid JSON"):
        Report.load(tmp_path)


@pytest.mark.parametrize("value", [[], 3, "report", {}, {"title": "x", "runs": []}, {"title": "x", "runs": [{}]}])
def test_json_that_is_not_a_report(value, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(value))
    with pytest.raises(FileError, match="not a stalwart report"):
        Report.load(tmp_path)


def test_picture_whose_pixels_do_not_fit_its_shape(full, tmp_path):
    value = full.model_dump(mode="json")
    value["runs"][0]["evaluation"]["pictures"][0]["clean"] = Picture.pack(np.zeros(3))
    (tmp_path / "report.json").write_text(json.dumps(value))
    with pytest.raises(FileError, match=r"runs\.0\.evaluation"):
        Report.load(tmp_path)


def test_newer_schema_is_refused_and_named(bare, tmp_path):
    value = bare.model_dump(mode="json") | {"schema_version": 2, "something_new": True}
    (tmp_path / "report.json").write_text(json.dumps(value))
    with pytest.raises(FileError, match=r"schema version 2.*install a newer"):
        Report.load(tmp_path)


@pytest.mark.parametrize("name", ["report.json", "index.html"])
def test_a_folder_in_the_way_changes_nothing(name, bare, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(FileError, match="is a folder"):
        bare.save(tmp_path)
    assert os.listdir(tmp_path) == [name]


def test_a_file_where_the_folder_should_be(bare, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileError, match="cannot write"):
        bare.save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_read_only_folder(bare, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    # Permissions would not stop the superuser, so the refusal is put in by hand.
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(FileError, match="Read-only"):
        bare.save(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing_call", [1, 2, 3, 4])
def test_full_disk_leaves_whole_files(failing_call, bare, make_run, tmp_path, monkeypatch):
    bare.save(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    calls = []

    def full_disk(handle: int) -> None:
        calls.append(handle)
        if len(calls) == failing_call:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    later = Report(title="Later", runs=[make_run("later")])
    with pytest.raises(FileError, match="No space left"):
        later.save(tmp_path)
    after = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    assert after.keys() == before.keys()
    # From the third call on both new files are whole on the disk, so that either may already have its name.
    if failing_call <= 3:
        assert after == before
    else:
        assert Report.load(tmp_path).title in ("One run", "Later")


def test_combine_keeps_the_order_and_tells_equal_names_apart(make_run):
    def one(*names: str) -> Report:
        return Report(title="t", runs=[make_run(name) for name in names])

    report = Report.combine([one("a", "b"), one("a"), one("a (2)", "a")], "All")
    assert [run.name for run in report.runs] == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]
    assert report.title == "All"
    with pytest.raises(UsageError, match="no report"):
        Report.combine([], "None")


def test_environment_names_no_person_host_or_path():
    found = environment()
    assert set(found) == {"stalwart", "python", "torch", "numpy", "platform", "threads", "gpu"}
    private = {os.sep, os.uname().nodename, os.environ.get("USER") or os.sep}
    assert not [word for word in private for value in found.values() if word in value]
