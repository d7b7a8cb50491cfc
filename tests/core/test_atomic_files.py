"""Files are whole or absent, whatever happens in between."""

import errno
import json
import os

import pytest

from stalwart.core import files
from stalwart.core.errors import FileError
from stalwart.core.files import atomic, read_bytes, read_json, require_writable, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_text_and_json_round_trip_and_missing_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "x.json"
    value = {"ö": [1, 2.5, None, True]}
    write_json(path, value)
    assert read_json(path, "record") == value
    write_text(path, "naïve ∞")
    assert read_bytes(path, "text") == "naïve ∞".encode()
    assert names(path.parent) == ["x.json"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with atomic(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt, OSError, FileError])
def test_a_crash_in_the_block_leaves_the_folder_as_it_was(tmp_path, existing, problem):
    path = tmp_path / "x"
    if existing:
        path.write_bytes(b"old")

    def crash():
        with atomic(path) as stream:
            stream.write(b"half of the new")
            raise problem("stop")

    with pytest.raises(FileError if issubclass(problem, OSError) else problem):
        crash()
    assert names(tmp_path) == (["x"] if existing else [])
    assert not existing or path.read_bytes() == b"old"


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path, monkeypatch, call):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(FileError, match=r"cannot write .*x: No space left on device.*free space"):
        write_text(path, "new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_write_that_fails_late_in_the_buffer_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    real = files.tempfile.mkstemp

    def on_full_disk(**options):
        handle, name = real(**options)
        os.close(handle)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(files.tempfile, "mkstemp", on_full_disk)
    with pytest.raises(FileError, match="No space left"):
        write_text(path, "new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match=r"cannot write .*another output folder"):
        write_text(tmp_path / "file" / "x", "new")
    with pytest.raises(FileError, match="cannot write"):
        require_writable(tmp_path / "file" / "folder")


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):  # root may write anywhere

        def denied(**_):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(files.tempfile, "mkstemp", denied)
    try:
        with pytest.raises(FileError, match="Permission denied"):
            write_text(tmp_path / "x", "new")
        with pytest.raises(FileError, match="Permission denied"):
            require_writable(tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    folder = require_writable(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert names(folder) == []


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileError, match=r"cannot read recipe .*gone"):
        read_bytes(tmp_path / "gone", "recipe")
    (tmp_path / "x").write_text(json.dumps({"a": [1, 2]})[:-3])
    with pytest.raises(FileError, match="not valid JSON.*truncated"):
        read_json(tmp_path / "x", "report")
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match="not valid JSON"):
        read_json(tmp_path / "x", "report")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"a": float("-inf")}]])
def test_json_knows_no_nan(tmp_path, value):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x", value)
    assert names(tmp_path) == []
