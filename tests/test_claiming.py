"""The folder of a run: whose it is, and what is said where it cannot be written."""

import errno
import json
import os
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_runs import tiny

from brainspeech import claiming, flow
from brainspeech.cache import Cache


def test_claim_keeps_where_the_recipe_and_the_data_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claiming.claim(tmp_path / "run", tiny(), root="data", source="here/recipe.py")
    kept = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert kept == {"recipe": tiny().to_dict(), "root": str(tmp_path / "data"), "source": "here/recipe.py"}


def test_a_folder_that_another_run_writes_into_is_refused(tmp_path):
    out = tmp_path / "run"
    recipe = tiny("rows=encoder")
    claiming.claim(out, recipe, root=None, source="")
    with FileLock(out / claiming.LOCK), pytest.raises(RuntimeError, match="Another run is writing into"):
        flow.run(recipe, out=out, cache=Cache(tmp_path / "cache"), progress=False)


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("owner", "name"), [(Path, "mkdir"), (os, "fsync"), (os, "replace")])
def test_a_full_disk_is_said_and_the_same_command_goes_on(tmp_path, owner, name):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(RuntimeError, match=rf"Could not write {out}/recipe\.json .*No space left.* Free some space"):
            claiming.claim(out, tiny(), root=None, source="")
    assert list(tmp_path.rglob("*")) in ([], [out])
    claiming.claim(out, tiny(), root=None, source="")
    assert [path.name for path in out.iterdir()] == ["recipe.json"]


def test_a_full_disk_does_not_cost_the_claim_that_was_there(tmp_path, monkeypatch):
    claiming.claim(tmp_path / "run", tiny(), root=None, source="first")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RuntimeError, match="Could not write"):
        claiming.claim(tmp_path / "run", tiny(), root=None, source="second")
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["source"] == "first"


def test_a_lock_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(FileLock, "acquire", full)
    with pytest.raises(RuntimeError, match=rf"Could not write {tmp_path}/run/\.lock: .*No space left.*--out DIR"):
        claiming.hold(tmp_path / "run", tiny(), root=None, source="")


def test_a_run_that_was_killed_while_it_claimed_its_folder_may_begin_again(tmp_path, monkeypatch):
    """What kill -9 leaves between the first byte of recipe.json and its renaming is nobody's work."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            claiming.claim(out, tiny(), root=None, source="")
    (left,) = out.iterdir()
    assert left.name != "recipe.json"
    claiming.claim(out, tiny("train.lr=0.5"), root=None, source="")
    assert (out / "recipe.json").is_file()


def killed(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "other", [{"settings": ("train.lr=0.5",)}, {"settings": ("evaluate.confidence=0.5",)}, {"root": "b"}, {"source": "b"}]
)
def test_a_run_that_is_preparing_keeps_its_constants(tmp_path, other):
    """Until its first fit a run has nothing in its folder but what another one may replace."""
    out = tmp_path / "run"
    lock = claiming.hold(out, tiny(), root="a", source="a")
    (out / "segments.json").write_text("[]")
    kept = (out / "recipe.json").read_bytes()
    asked = {"settings": (), "root": "a", "source": "a"} | other
    recipe = tiny(*asked.pop("settings"))
    with pytest.raises(RuntimeError, match="Another run is writing into"):
        claiming.hold(out, recipe, **asked)
    assert (out / "recipe.json").read_bytes() == kept
    lock.release()
    claiming.hold(out, recipe, **asked).release()
    assert (out / "recipe.json").read_bytes() != kept


def test_what_came_to_a_folder_before_it_was_locked_is_seen(tmp_path, monkeypatch):
    """The run that had the lock fits and ends between the first look and the lock."""
    out, acquire = tmp_path / "run", FileLock.acquire

    def late(lock, **options):
        claiming.claim(out, tiny("train.lr=0.5"), root=None, source="")
        (out / "statistics.json").write_text("{}")
        return acquire(lock, **options)

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", late)
        with pytest.raises(ValueError, match=r"other constants \(train\.lr \(was 0\.5, now") as error:
            claiming.hold(out, tiny(), root=None, source="")
    assert json.loads((out / "recipe.json").read_text())["recipe"]["train"]["lr"] == 0.5
    FileLock(out / claiming.LOCK).acquire(timeout=0).lock.release()
    del error


def test_nothing_is_made_in_a_folder_of_somebody_elses(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        claiming.hold(tmp_path, tiny(), root=None, source="")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_whose_claim_could_not_be_written_may_begin_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(RuntimeError, match=r"Could not write .*recipe\.json"):
            claiming.hold(tmp_path / "run", tiny(), root=None, source="")
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {claiming.LOCK}
    claiming.hold(tmp_path / "run", tiny(), root=None, source="").release()


@pytest.mark.parametrize("inside", ["", "x", "x/y"])
def test_a_file_is_no_folder(tmp_path, inside):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=rf"{tmp_path}/file is a file, .*folder.*--out DIR"):
        claiming.hold(tmp_path / "file" / inside, tiny(), root=None, source="")


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", '{"recipe": 3}', "{}", '{"recipe": {"train": 3}}', '{"recipe": {}, "source": []}', "\udcff"]
)
def test_a_claim_that_no_run_has_written_is_said_to_be_damaged(tmp_path, content):
    (tmp_path / "recipe.json").write_bytes(content.encode(errors="surrogateescape"))
    for look in (lambda: claiming.read(tmp_path), lambda: claiming.hold(tmp_path, tiny(), root=None, source="")):
        with pytest.raises(RuntimeError, match=rf"^{tmp_path}/recipe\.json is damaged \(.+\)\. Delete {tmp_path} and run the recipe again"):
            look()


def test_a_folder_is_free_as_soon_as_its_run_has_failed(tmp_path, monkeypatch):
    """Also while the error is kept, as an interactive session does."""
    with monkeypatch.context() as patch:
        patch.setattr(flow, "_run", full)
        with pytest.raises(OSError, match="No space left") as error:
            flow.run(tiny(), out=tmp_path / "run", cache=Cache(tmp_path / "cache"), progress=False)
    claiming.hold(tmp_path / "run", tiny(), root=None, source="").release()
    assert error.tb is not None
