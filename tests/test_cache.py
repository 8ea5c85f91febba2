"""The store of arrays: whole entries only, whoever writes them and whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from brainspeech.cache import Cache, digest, file_identity, open_cache

KEY = {"config": {"sfreq": 120.0, "notch": [50.0]}, "recording": "abc"}


def _make(value=1.0):
    return {"data": np.full((3, 5), value, dtype=np.float32), "positions": np.full((3, 2), np.nan)}, {"names": ["a", "ü"]}


def _never():
    raise AssertionError("made again")


def test_a_cache_is_opened_where_it_is_given_or_set_or_at_home(tmp_cache, tmp_path, monkeypatch):
    assert open_cache(tmp_cache) is tmp_cache
    assert open_cache(str(tmp_path / "a")).root == tmp_path / "a"
    monkeypatch.setenv("BRAINSPEECH_CACHE", str(tmp_path / "b"))
    assert open_cache(None).root == tmp_path / "b"
    monkeypatch.delenv("BRAINSPEECH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_cache(None).root == tmp_path / ".cache" / "brainspeech"


def test_an_entry_is_made_once_and_comes_back_equal(tmp_cache):
    assert tmp_cache.get("signals", KEY) is None
    fresh, values = tmp_cache.get_or_make("signals", KEY, _make)
    again, values_again = tmp_cache.get_or_make("signals", KEY, _never)
    for arrays in (fresh, again):
        assert isinstance(arrays["data"], np.memmap)
        np.testing.assert_array_equal(arrays["data"], _make()[0]["data"])
        assert arrays["data"].dtype == np.float32
        assert np.isnan(arrays["positions"]).all()
    assert values == values_again == {"names": ["a", "ü"]}


def test_a_mapped_entry_cannot_be_written_to(tmp_cache):
    arrays, _ = tmp_cache.get_or_make("signals", KEY, _make)
    with pytest.raises(ValueError, match="read-only"):
        arrays["data"][0, 0] = 2


def test_another_key_or_kind_is_another_entry(tmp_cache):
    tmp_cache.get_or_make("signals", KEY, _make)
    for kind, key in [("signals", {**KEY, "recording": "abd"}), ("signals", {**KEY, "version": 2}), ("tracks", KEY)]:
        arrays, _ = tmp_cache.get_or_make(kind, key, lambda: _make(2.0))
        assert arrays["data"][0, 0] == 2
    arrays, _ = tmp_cache.get_or_make("signals", KEY, _never)
    assert arrays["data"][0, 0] == 1


def test_the_order_of_a_key_does_not_matter_but_its_content_does():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    assert len({digest(key) for key in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": [1]}, {"a": "1"})}) == 5
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": float("nan")})


def test_a_changed_file_has_another_identity(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    first = file_identity(file)
    assert file_identity(file) == first
    os.utime(file, ns=(1, 1))
    touched = file_identity(file)
    file.write_bytes(b"other")
    os.utime(file, ns=(1, 1))
    assert len({first, touched, file_identity(file)}) == 3
    folder = file_identity(tmp_path)
    (tmp_path / "b.bin").write_bytes(b"")
    assert file_identity(tmp_path) != folder
    with pytest.raises(FileNotFoundError, match=r"gone\.bin does not exist"):
        file_identity(tmp_path / "gone.bin")


def _truncate(folder):
    path = folder / "data.npy"
    path.write_bytes(path.read_bytes()[:-8])


def _swap(folder):
    np.save(folder / "data.npy", np.zeros((2, 2), dtype=np.float32))


DAMAGES = {
    "truncated array": _truncate,
    "empty array": lambda folder: (folder / "data.npy").write_bytes(b""),
    "missing array": lambda folder: (folder / "data.npy").unlink(),
    "another array": _swap,
    "no entry.json": lambda folder: (folder / "entry.json").unlink(),
    "half entry.json": lambda folder: (folder / "entry.json").write_text('{"arrays": {"data": '),
    "other entry.json": lambda folder: (folder / "entry.json").write_text("[1]"),
    "odd shapes": lambda folder: (folder / "entry.json").write_text('{"arrays": {"data": 3}, "values": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(tmp_cache, damage):
    tmp_cache.get_or_make("signals", KEY, _make)
    folder = tmp_cache.folder("signals", KEY)
    DAMAGES[damage](folder)
    assert tmp_cache.get("signals", KEY) is None
    arrays, _ = tmp_cache.get_or_make("signals", KEY, lambda: _make(2.0))
    assert arrays["data"].shape == (3, 5)
    assert arrays["data"][0, 0] == 2
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing of the damaged one is left


def test_a_failed_make_or_write_leaves_nothing(tmp_cache):
    with pytest.raises(ZeroDivisionError):
        tmp_cache.get_or_make("signals", KEY, lambda: 1 / 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        tmp_cache.get_or_make("signals", KEY, lambda: ({"data": np.zeros(3)}, {"bad": float("nan")}))
    assert not [path for path in tmp_cache.root.rglob("*") if path.is_file()]
    assert tmp_cache.get("signals", KEY) is None


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"Could not write the cache entry .*--cache DIR"):
        Cache(tmp_path / "file").get_or_make("signals", KEY, _make)


# Waits until `go` exists, so that two of these meet; the value written is the process's own.
RACER = """
import sys, time
from pathlib import Path
import numpy as np
from brainspeech.cache import Cache
root, name, value = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
def make():
    (root / f"{name}.in").touch()
    while not (root / "go").exists():
        time.sleep(0.001)
    return {"data": np.full((64, 4096), value, dtype=np.float32)}, {"value": value}
arrays, values = Cache(root / "cache").get_or_make("signals", {"k": 1}, make)
assert (arrays["data"] == values["value"]).all(), "a mixture of two entries"
print(values["value"])
"""


def _wait(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the other process did not get there"
        time.sleep(0.005)


def test_two_processes_make_the_same_entry_at_once(tmp_path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), f"r{n}", str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for n in (1, 2)
    ]
    _wait(lambda: (tmp_path / "r1.in").exists() and (tmp_path / "r2.in").exists())
    (tmp_path / "go").touch()
    outputs = [racer.communicate(timeout=30) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], outputs
    arrays, values = Cache(tmp_path / "cache").get_or_make("signals", {"k": 1}, _never)
    assert (arrays["data"] == values["value"]).all()
    folder = Cache(tmp_path / "cache").folder("signals", {"k": 1})
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


# Stops between the array and entry.json of the entry it writes.
VICTIM = """
import sys, time
from pathlib import Path
import numpy as np
from brainspeech import cache
root = Path(sys.argv[1])
save = np.save
def slow(path, array, **options):
    save(path, array, **options)
    (root / "half").touch()
    time.sleep(60)
np.save = slow
cache.Cache(root / "cache").get_or_make("signals", {"k": 1}, lambda: ({"data": np.zeros((8, 8))}, {}))
"""


def test_a_process_killed_half_way_leaves_no_entry(tmp_path):
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(tmp_path)])
    _wait(lambda: (tmp_path / "half").exists())
    victim.send_signal(signal.SIGKILL)
    victim.wait(timeout=30)
    cache = Cache(tmp_path / "cache")
    assert list(cache.root.rglob("data.npy")), "the array was on disk when the process died"
    assert cache.get("signals", {"k": 1}) is None
    arrays, _ = cache.get_or_make("signals", {"k": 1}, _make)
    np.testing.assert_array_equal(arrays["data"], _make()[0]["data"])


def test_what_a_killed_process_left_is_swept_after_a_day(tmp_cache):
    parent = tmp_cache.folder("signals", KEY).parent
    parent.mkdir(parents=True)
    name = tmp_cache.folder("signals", KEY).name[:12]
    for left, age in [(f".{name}-old", 90_000), (f".{name}-new", 60), (".other-old", 90_000)]:
        (parent / left).mkdir()
        (parent / left / "data.npy").write_bytes(b"half")
        os.utime(parent / left, (time.time() - age,) * 2)
    tmp_cache.get_or_make("signals", KEY, _make)
    assert {path.name for path in parent.glob(".*")} == {f".{name}-new", ".other-old"}


def test_an_entry_is_readable_for_others_as_the_umask_says(tmp_cache):
    tmp_cache.get_or_make("signals", KEY, _make)
    plain = tmp_cache.root / "plain"
    plain.mkdir()
    assert tmp_cache.folder("signals", KEY).stat().st_mode == plain.stat().st_mode


def test_an_entry_can_be_read_without_the_package(tmp_cache):
    tmp_cache.get_or_make("signals", KEY, _make)
    folder = tmp_cache.folder("signals", KEY)
    entry = json.loads((folder / "entry.json").read_text())
    assert entry["key"] == KEY
    assert np.load(folder / "data.npy").shape == tuple(entry["arrays"]["data"][0])


def _flip(path, where=-3):
    """Change one bit, and no size."""
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(bytes(content))


def test_a_number_that_changed_on_the_disk_is_found_by_verify(tmp_cache):
    for k in range(3):
        tmp_cache.get_or_make("signals", {**KEY, "k": k}, _make)
    assert tmp_cache.verify() == (3, 0, [])
    folder = tmp_cache.folder("signals", {**KEY, "k": 1})
    _flip(folder / "data.npy")
    assert tmp_cache.get("signals", {**KEY, "k": 1}) is not None  # opening does not read the numbers
    assert tmp_cache.verify() == (2, 0, [folder])
    assert tmp_cache.verify([tmp_cache.folder("signals", {**KEY, "k": 0})]) == (1, 0, [])
    assert tmp_cache.verify(remove=True).damaged == [folder]
    assert tmp_cache.verify() == (2, 0, [])
    arrays, _ = tmp_cache.get_or_make("signals", {**KEY, "k": 1}, lambda: _make(2.0))
    assert arrays["data"][0, 0] == 2


def test_a_value_that_changed_on_the_disk_is_seen_when_it_is_read(tmp_cache):
    tmp_cache.get_or_make("signals", KEY, lambda: ({"data": np.zeros(2)}, {"sfreq": 120.0}))
    path = tmp_cache.folder("signals", KEY) / "entry.json"
    path.write_text(path.read_text().replace('"sfreq": 120.0\n', '"sfreq": 128.0\n'))
    assert json.loads(path.read_text())["values"] == {"sfreq": 128.0}
    assert tmp_cache.get("signals", KEY) is None


def test_an_entry_of_an_earlier_version_is_opened_and_said_to_be_unchecked(tmp_cache):
    tmp_cache.get_or_make("signals", KEY, _make)
    path = tmp_cache.folder("signals", KEY) / "entry.json"
    entry = json.loads(path.read_text())
    del entry["crc32"], entry["crc32_entry"]
    path.write_text(json.dumps(entry))
    tmp_cache.get_or_make("signals", KEY, _never)
    assert tmp_cache.verify() == (0, 1, [])


@pytest.mark.parametrize("array", [np.array(3.0), np.zeros((0, 4)), np.array(["a", "bc"]), np.arange(12).reshape(3, 4).T, np.array([True])])
def test_arrays_of_any_kind_have_a_checksum(tmp_cache, array):
    tmp_cache.get_or_make("odd", KEY, lambda: ({"x": array}, {}))
    np.testing.assert_array_equal(tmp_cache.get("odd", KEY)[0]["x"], array)
    assert tmp_cache.verify() == (1, 0, [])
