"""Recordings of event cameras: files written byte by byte, frames by hand, a camera whose events are known, and refusals."""

import struct

import numpy as np
import pytest
import torch

from stalwart.core.errors import FileError, InputError, UsageError
from stalwart.core.random import generator
from stalwart.data import load
from stalwart.data.events import EventStream, frames, read_events, record


def stream(t, x=None, y=None, polarity=None, height=4, width=5):
    count = len(t)
    rows = [np.zeros(count, int) if one is None else np.array(one) for one in (x, y, polarity)]
    return EventStream(np.array(t, int), *rows, height, width)


def test_what_no_camera_sends_is_refused():
    with pytest.raises(InputError, match=r"x must be in \[0, 5\), but event 1 has 5"):
        stream([0, 1], x=[4, 5])
    with pytest.raises(InputError, match=r"y must be in \[0, 4\), but event 0 has -1"):
        stream([0, 1], y=[-1, 0])
    with pytest.raises(InputError, match="polarity must be 0 or 1, but event 1 has 2"):
        stream([0, 1], polarity=[0, 2])
    with pytest.raises(InputError, match="event 2 is at 3 us, after 5 us"):
        stream([0, 5, 3])
    with pytest.raises(InputError, match="1 values of x for 2 time stamps"):
        stream([0, 1], x=[1])
    with pytest.raises(InputError, match="must be integers"):
        EventStream(np.array([0.5]), np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), 2, 2)


def test_frames_by_hand():
    events = stream([10, 19, 20, 29], x=[0, 1, 1, 4], y=[0, 2, 2, 3], polarity=[1, 0, 0, 1])
    by_time = frames(events, 2)
    assert by_time.dtype == torch.uint8
    assert by_time.shape == (2, 2, 4, 5)
    assert by_time.nonzero().tolist() == [[0, 0, 2, 1], [0, 1, 0, 0], [1, 0, 2, 1], [1, 1, 3, 4]]
    # Halved, the last column has no square of its own.
    assert frames(events, 1, shrink=2).nonzero().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]
    counts = frames(events, 1, limit=4)
    assert counts[0, 0, 2, 1] == 128
    assert counts[0, 1, 0, 0] == 64
    uneven = stream([0, 1, 2, 100])
    assert [int(frames(uneven, 2, by=by, limit=4).sum()) for by in ("time", "count")] == [255, 256]
    assert (frames(uneven, 2, by="count", limit=4)[:, 0, 0, 0] == 128).all()
    assert frames(stream([]), 3).sum() == 0
    for bad in ({"steps": 0}, {"steps": 2, "limit": 0}, {"steps": 2, "shrink": 0}):
        with pytest.raises(UsageError):
            frames(events, **bad)
    with pytest.raises(InputError, match="cannot be divided"):
        frames(events, 2, shrink=8)


def test_part_of_a_recording():
    part = stream([0, 5, 5, 9], x=[0, 1, 2, 3]).between(5, 9)
    assert part.x.tolist() == [1, 2]


def nmnist(*events):
    return b"".join(struct.pack("BBBBB", x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255) for t, x, y, p in events)


def test_nmnist_files(tmp_path):
    path = tmp_path / "one.bin"
    path.write_bytes(nmnist((3, 1, 2, 1), (70000, 33, 0, 0), (0, 0, 240, 0), (70001, 5, 6, 1)))
    events = read_events(path)
    assert events.t.tolist() == [3, 70000, 70001 + 8192]
    assert (events.x.tolist(), events.y.tolist(), events.polarity.tolist()) == ([1, 33, 5], [2, 0, 6], [1, 0, 1])
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(FileError, match="3 bytes after byte 15"):
        read_events(path)
    path.write_bytes(nmnist((3, 34, 2, 1)))
    with pytest.raises(InputError, match=r"one.bin: x must be in \[0, 34\)"):
        read_events(path)
    with pytest.raises(UsageError, match="ends in none of"):
        read_events(tmp_path / "one.mat")
    with pytest.raises(FileError):
        read_events(tmp_path / "absent.bin")


def test_dat_files(tmp_path):
    path, header = tmp_path / "one.dat", b"% Data file\n% Width 8\n% Height 6\n"
    body = b"".join(struct.pack("<II", t, x | y << 14 | p << 28) for t, x, y, p in ((7, 1, 5, 1), (9, 7, 0, 0)))
    path.write_bytes(header + bytes([12, 8]) + body)
    events = read_events(path)
    assert (events.t.tolist(), events.x.tolist(), events.y.tolist()) == ([7, 9], [1, 7], [5, 0])
    assert (events.polarity.tolist(), events.height, events.width) == ([1, 0], 6, 8)
    for content, message in (
        (header + bytes([12, 8]) + body[:-1], "within an event"),
        (header + bytes([14, 8]) + body, "events of type 14"),
        (body, "has no header"),
        (header[:-1], "within its header"),
    ):
        path.write_bytes(content)
        with pytest.raises(FileError, match=message):
            read_events(path)


def gesture(*packets):
    found = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n"
    for kind, overflow, events in packets:
        found += struct.pack("<hhiiiiii", kind, 0, 8, 4, overflow, len(events), len(events), len(events))
        for t, x, y, p, valid in events:
            found += struct.pack("<II", valid | p << 1 | y << 2 | x << 17, t)
    return found


def test_aedat_files(tmp_path):
    path = tmp_path / "one.aedat"
    content = gesture(
        (1, 0, [(5, 127, 3, 1, 1), (6, 0, 0, 0, 0)]), (2, 0, [(1, 0, 0, 0, 1)]), (1, 1, [(2, 1, 2, 0, 1)])
    )
    path.write_bytes(content)
    events = read_events(path)
    assert events.t.tolist() == [5, (1 << 31) + 2]
    assert (events.x.tolist(), events.y.tolist(), events.polarity.tolist()) == ([127, 1], [3, 2], [1, 0])
    for cut in (3, 20):
        path.write_bytes(content[:-cut])
        with pytest.raises(FileError, match="cut"):
            read_events(path)
    path.write_bytes(b"#!AER-DAT2.0\r\n")
    with pytest.raises(FileError, match=r"no AEDAT 3\.1"):
        read_events(path)


def test_published_files(shared):
    folder = shared / "data" / "event_samples"
    found = {path.suffix: read_events(path) for path in folder.glob("sample*") if path.suffix != ".mat"}
    assert {suffix: len(events) for suffix, events in found.items()} == {".bin": 4325, ".dat": 2009, ".aedat4": 111954}
    assert (found[".aedat4"].height, found[".aedat4"].width) == (240, 320)
    packed = np.load(shared / "data" / "nmnist_1100" / "nmnist_1100.npz")
    for path in (shared / "data" / "nmnist_1100" / "raw_samples").glob("*.bs2"):
        events, n = read_events(path), int(np.flatnonzero(packed["id"] == int(path.name.split("_")[0]))[0])
        part = slice(packed["offset"][n], packed["offset"][n + 1])
        assert (events.t == np.cumsum(packed["dt"][part].astype(int))).all()
        for own, name in ((events.x, "x"), (events.y, "y"), (events.polarity, "p")):
            assert (own == packed[name][part]).all()


def test_damaged_aedat4_files(tmp_path, shared):
    content = (shared / "data" / "event_samples" / "sample.aedat4").read_bytes()
    path = tmp_path / "one.aedat4"
    for damaged, message in (
        (content[:50000], "cut"),
        (content[:20], "damaged|cut"),
        (content[:6000] + bytes(40) + content[6040:], "damaged|cut"),
        (b"#!AER-DAT3.1" + content[12:], "no AEDAT 4"),
    ):
        path.write_bytes(damaged)
        with pytest.raises((FileError, InputError), match=message):
            read_events(path)


def test_the_camera_sees_changes_only():
    flat, edge = torch.full((1, 1, 6, 6), 0.4), torch.zeros(1, 1, 6, 6)
    edge[..., 3:] = 1.0
    still, moving = record(torch.cat([flat, edge]))
    assert len(still) == 0
    assert moving.t.max() < 300_000
    # The bright half moves right: its left border gets darker first and brighter at the end; far from it nothing happens.
    first = moving.x == 3
    assert moving.polarity[first][0] == 0
    assert moving.polarity[first][-1] == 1
    assert not (moving.x < 2).any()
    # Back where it began, each pixel has lost what it gained.
    balance = np.bincount(moving.x, weights=2.0 * moving.polarity - 1, minlength=6)
    assert np.abs(balance).max() <= 6
    twice = record(edge, mismatch=0.2, generator=generator(1)), record(edge, mismatch=0.2, generator=generator(1))
    assert (twice[0][0].t == twice[1][0].t).all()
    with pytest.raises(InputError, match=r"\[B, 1, H, W\]"):
        record(torch.rand(2, 3, 4, 4))
    with pytest.raises(UsageError, match="threshold"):
        record(edge, threshold=0.0)
    with pytest.raises(UsageError, match="generator"):
        record(edge, mismatch=0.1)


def test_digits_before_the_camera():
    data = load("digits-events", {"steps": 6})
    assert data.shape == (6, 2, 8, 8)
    assert len(data.test) == 449
    x = data.train.images(slice(0, 20))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert (x.flatten(1).mean(1) > 0.02).all()
    with pytest.raises(UsageError, match="steps"):
        load("digits-events", {"steps": 0})


def test_nmnist_as_folders_and_as_one_file(tmp_path):
    rows = {"Train": 4, "Test": 2}
    arrays = {name: [] for name in ("x", "y", "p", "dt", "offset", "label", "is_test")}
    arrays["offset"].append(0)
    for part, count in rows.items():
        for label in range(10):
            folder = tmp_path / "nmnist" / part / str(label)
            folder.mkdir(parents=True)
            for n in range(count):
                events = [(k * 100, label, (n + k) % 34, k % 2) for k in range(8)]
                (folder / f"{n}.bin").write_bytes(nmnist(*events))
                arrays["x"] += [e[1] for e in events]
                arrays["y"] += [e[2] for e in events]
                arrays["p"] += [e[3] for e in events]
                arrays["dt"] += [0, *[100] * 7]
                arrays["offset"].append(len(arrays["x"]))
                arrays["label"].append(label)
                arrays["is_test"].append(part == "Test")
    folders = load("nmnist", {"steps": 3}, data_dir=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    np.savez(other / "nmnist.npz", **{name: np.array(values) for name, values in arrays.items()})
    packed = load("nmnist", {"steps": 3}, data_dir=other)
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(folders, name).x, getattr(packed, name).x)
        assert torch.equal(getattr(folders, name).y, getattr(packed, name).y)
    assert folders.shape == (3, 2, 34, 34)
    arrays["offset"][-1] += 1
    np.savez(other / "nmnist.npz", **{name: np.array(values) for name, values in arrays.items()})
    with pytest.raises(FileError, match="offsets"):
        load("nmnist", {}, data_dir=other)
    (other / "nmnist.npz").write_bytes(b"PK")
    with pytest.raises(FileError, match=r"cannot read"):
        load("nmnist", {}, data_dir=other)


def test_gestures_are_cut_out_of_their_recordings(tmp_path):
    folder = tmp_path / "dvs-gesture"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.aedat").write_bytes(gesture((1, 0, [(t, t % 128, 7, 1, 1) for t in range(0, 900, 3)])))
        table = "class,startTime_usec,endTime_usec\n1,0,300\n11,300,900\n"
        (folder / f"{name}_labels.csv").write_text(table)
    (folder / "trials_to_train.txt").write_text("a.aedat\n")
    (folder / "trials_to_test.txt").write_text("b.aedat\n")
    data = load("dvs-gesture", {"steps": 2, "validation": 0.0}, data_dir=tmp_path)
    assert data.shape == (2, 2, 32, 32)
    assert data.test.y.tolist() == [0, 10]
    (folder / "b_labels.csv").write_text("class,startTime_usec,endTime_usec\n12,0,300\n")
    with pytest.raises(FileError, match="class 12"):
        load("dvs-gesture", {}, data_dir=tmp_path)
    (folder / "b_labels.csv").write_text("nothing\n1\n")
    with pytest.raises(FileError, match="no table"):
        load("dvs-gesture", {}, data_dir=tmp_path)


@pytest.mark.parametrize("name", ["nmnist", "dvs-gesture"])
def test_sets_that_are_nowhere(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileError, match="was not found"):
        load(name, {}, data_dir=tmp_path)
