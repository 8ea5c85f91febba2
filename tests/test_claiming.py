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
