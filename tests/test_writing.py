"""A file is whole or it is not there, and what could not be written is named."""

import shutil

import pytest
from test_faults import small_disk

from brainspeech.writing import put


def test_a_file_is_replaced_in_its_folder(tmp_path):
    path = tmp_path / "new" / "a.json"
    put(path, b"first")
    put(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_full_disk(tmp_path):
    """The file before stands, nothing half-written is left, and once there is room the same call goes through."""
    with small_disk(tmp_path / "disk", 64):
        path = tmp_path / "disk" / "statistics.json"
        put(path, b"first")
        filler = tmp_path / "disk" / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(path.parent).free - 8_192))
        said = r"statistics\.json \(0\.05 MB\): .*No space left on device.* 0\.00\d+ MB are free\. The statistics\.json that was there"
        with pytest.raises(RuntimeError, match=said):
            put(path, bytes(50_000))
        assert path.read_bytes() == b"first"
        assert sorted(p.name for p in path.parent.iterdir()) == ["filler", "statistics.json"]
        with pytest.raises(RuntimeError, match=r"There was no other\.json before\. Free some space and give the same command again"):
            put(path.with_name("other.json"), bytes(50_000))
        filler.unlink()
        put(path, bytes(50_000))
        assert path.stat().st_size == 50_000


def test_a_folder_in_the_files_place_is_named(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(RuntimeError, match=r"Could not write .*a\.json .*Is a directory"):
        put(tmp_path / "a.json", b"x")
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"Could not write .*file.a\.json .*(Not a directory|File exists)"):
        put(tmp_path / "file" / "a.json", b"x")


def test_a_folder_that_may_not_be_written_to_is_not_called_full(tmp_path, monkeypatch):
    def forbidden(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", forbidden)
    with pytest.raises(RuntimeError, match=r"Permission denied.* See that .*a\.json is a file that can be written and give"):
        put(tmp_path / "a.json", b"x")
    assert list(tmp_path.iterdir()) == []
