"""The downloader against a local server: whole files, broken ones, wrong ones, and many processes at once."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest

from stalwart.core.errors import FileError
from stalwart.data.download import Remote, fetch

CONTENT = bytes(range(256)) * 4096


def test_a_whole_file_arrives_alone(publisher, tmp_path):
    path = fetch(publisher.remote("a.bin", CONTENT), tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_what_is_there_is_not_fetched_again(publisher, tmp_path):
    remote = publisher.remote("a.bin", CONTENT)
    (tmp_path / "a.bin").write_bytes(b"mine")
    assert fetch(remote, tmp_path).read_bytes() == b"mine"
    assert publisher.asked == []


def test_a_broken_transfer_is_taken_up_where_it_stopped(publisher, tmp_path):
    publisher.cuts = [1000, 2000]
    path = fetch(publisher.remote("a.bin", CONTENT), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [wanted for _, wanted in publisher.asked] == [None, "bytes=1000-", "bytes=3000-"]


def test_a_server_without_ranges_sends_all_again(publisher, tmp_path):
    publisher.ranges = False
    publisher.cuts = [1000]
    assert fetch(publisher.remote("a.bin", CONTENT), tmp_path).read_bytes() == CONTENT


def test_a_transfer_that_never_gets_further_ends_and_keeps_its_bytes(publisher, tmp_path):
    remote = publisher.remote("a.bin", CONTENT)
    publisher.cuts = [1000, 0]
    with pytest.raises(FileError, match=r"1000 bytes were kept"):
        fetch(remote, tmp_path)
    assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:1000]
    publisher.asked.clear()
    assert fetch(remote, tmp_path).read_bytes() == CONTENT
    assert publisher.asked == [("/a.bin", "bytes=1000-")]


def test_a_complete_part_is_only_verified(publisher, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert fetch(publisher.remote("a.bin", CONTENT), tmp_path).read_bytes() == CONTENT


def test_a_part_of_another_version_is_thrown_away(publisher, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"something else")
    assert fetch(publisher.remote("a.bin", CONTENT), tmp_path).read_bytes() == CONTENT


def test_a_wrong_sum_leaves_nothing_behind(publisher, tmp_path):
    remote = dataclasses.replace(publisher.remote("a.bin", CONTENT), md5="0" * 32)
    with pytest.raises(FileError, match="MD5 sum"):
        fetch(remote, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_leaves_nothing_behind(publisher, tmp_path):
    with pytest.raises(FileError, match="404"):
        fetch(Remote("b.bin", f"{publisher.base}/b.bin", "0" * 32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_one_clear_error(tmp_path):
    with pytest.raises(FileError, match=r"cannot download http://127\.0\.0\.1:1/a: .*refused"):
        fetch(Remote("a", "http://127.0.0.1:1/a", "0" * 32), tmp_path)


def test_a_folder_that_cannot_be_made_is_one_clear_error(publisher, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileError, match="cannot write"):
        fetch(publisher.remote("a.bin", CONTENT), tmp_path / "file")


def test_progress_in_a_log_is_a_few_plain_lines(publisher, tmp_path, capsys):
    fetch(publisher.remote("a.bin", CONTENT), tmp_path, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 11
    assert lines[-1] == "downloading a.bin: 100 % of 1.0 MB"
    fetch(publisher.remote("b.bin", CONTENT), tmp_path)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar(publisher, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    path = fetch(publisher.remote("a.bin", CONTENT), tmp_path, progress=True)
    assert path.read_bytes() == CONTENT
    assert "a.bin" in capsys.readouterr().err


def test_workers_that_ask_at_once_share_one_download(publisher, tmp_path):
    remote = publisher.remote("a.bin", CONTENT)
    # Each call opens the file anew, so that its lock keeps threads apart exactly as it does processes.
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(remote, tmp_path), range(4)))
    assert [path.read_bytes() == CONTENT for path in paths] == [True] * 4
    assert len(publisher.asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
