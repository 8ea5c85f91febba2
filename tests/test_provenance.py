"""Where a number comes from."""

import json
import re
import subprocess

from brainspeech import provenance as room


def test_it_is_json_and_the_same_twice():
    made = [room.provenance({"name": "x"}, repeated_texts=["yes (train, test)"], feature={"name": "mel"}) for _ in range(2)]
    assert json.dumps(made[0]) == json.dumps(made[1])
    found = made[0]
    assert found["recipe"] == {"name": "x"}
    assert found["feature"] == {"name": "mel"}
    assert found["texts_on_two_sides"] == ["yes (train, test)"]
    assert found["device"]


def test_it_says_which_versions():
    versions = room.provenance({}, repeated_texts=[], feature={})["versions"]
    assert set(versions) == {"python", *room.PACKAGES}
    assert re.match(r"\d+\.\d+", versions["torch"])


def test_a_package_that_is_not_installed_has_no_version():
    assert room._version("no-such-package-of-anybody") is None


def test_the_commit_of_a_checkout_has_a_plus_once_a_file_changed(tmp_path, monkeypatch):
    (tmp_path / "brainspeech").mkdir()
    monkeypatch.setattr(room, "__file__", str(tmp_path / "brainspeech" / "provenance.py"))
    assert room.commit() is None

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert re.fullmatch("[0-9a-f]{40}", room.commit())
    (tmp_path / "file").write_text("2")
    assert re.fullmatch(r"[0-9a-f]{40}\+", room.commit())
