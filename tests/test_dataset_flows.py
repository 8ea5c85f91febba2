"""From an archive to a report: miniatures of the datasets, served by this machine, through the commands that a user types."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from eeg_miniatures import NARROW, write_brennan_bids, write_broderick2019, write_ds004408

from brainspeech import cli, manifests

WRITERS = {"brennan2019": write_brennan_bids, "ds004408": write_ds004408}
COUNTS = {"brennan2019": 2, "ds004408": 4}  # recordings
LEFT_OUT = {
    # As in the real archive: listeners without word times.
    "brennan2019": {"recordings: no word times were published (noisy)": 2},
    "ds004408": {"channels: marked bad": 1},
}


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and keeps the paths that it was asked for."""

    asked: ClassVar[Counter[str]] = Counter()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        self.asked[self.path.lstrip("/")] += 1
        super().do_GET()


def write_manifest(name: str, tree: Path, folder: Path, url: str) -> None:
    """List a tree as the dataset's own manifest would, its rules for urls leading to ``url``."""
    shipped = (manifests.folder() / f"{name}.toml").read_text()
    (folder / f"{name}.toml").write_text(re.sub(r'^template = ".*"$', f'template = "{url}/{{path}}"', shipped, flags=re.MULTILINE))
    rule = re.findall(r"^\[urls\.(\w+)\]$", shipped, flags=re.MULTILINE)[0]
    lines = ["\t".join(manifests.COLUMNS)]
    for path in sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()):
        content = (tree / path).read_bytes()
        if path.endswith((".tsv", ".json")):  # what git holds: NEMAR states git's digest, and of large ones no size
            fields = ["", "git-blob-sha1", hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()]
        else:
            fields = [str(len(content)), "sha256", hashlib.sha256(content).hexdigest()]
        lines.append("\t".join([path, *fields, rule]))
    (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module", params=sorted(WRITERS))
def archive(request, tmp_path_factory):
    """A dataset's archive: (name, its manifest's folder, what the server was asked)."""
    name, tree, folder = request.param, tmp_path_factory.mktemp("archive"), tmp_path_factory.mktemp("manifests")
    WRITERS[name](tree)
    asked: Counter[str] = Counter()
    handler = functools.partial(type("Asked", (Handler,), {"asked": asked}), directory=str(tree))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        write_manifest(name, tree, folder, f"http://127.0.0.1:{server.server_address[1]}")
        yield name, folder, asked
        server.shutdown()
        thread.join()


@pytest.fixture
def user(archive, tmp_path, monkeypatch):
    """A user in an empty folder, with the archive's manifest for the shipped one: (dataset, what the server was asked)."""
    name, folder, asked = archive
    monkeypatch.setattr(manifests, "folder", lambda: folder)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("BRAINSPEECH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    asked.clear()
    return name, asked


def told(capsys, *arguments):
    """Type a command: (exit status, stdout, stderr)."""
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


NARROW_FLAGS = [word for setting in NARROW for word in ("--set", setting)]


def test_download_verify_describe_run_evaluate_audit(user, capsys):
    name, _ = user
    root = Path("files")
    status, out, _ = told(capsys, "download", name, "--root", root, "--quiet")
    assert status == 0, out
    assert "Please cite" in out
    assert "0 failed" in out
    assert told(capsys, "verify", name, "--root", root, "--quiet")[0] == 0

    # A damaged file is named, and the command that verify ends with repairs it.
    victim = sorted(root.rglob("*.eeg"))[0]
    victim.write_bytes(victim.read_bytes()[:-4] + b"\0\0\0\1")
    status, out, _ = told(capsys, "verify", name, "--root", root, "--quiet")
    assert status == 1
    assert f"DIGEST {victim.relative_to(root).as_posix()}" in out
    repair = out.splitlines()[-1].removeprefix("To repair: ").split()
    assert repair[0] == "brainspeech"
    assert told(capsys, *repair[1:], "--quiet")[1].rstrip().endswith("1 files fetched, " + out_counts(root, 1) + " were there, 0 failed.")
    status, out, _ = told(capsys, "verify", name, "--root", root, "--json")
    assert (status, json.loads(out)["repair"]) == (0, "")

    status, out, _ = told(capsys, "describe", name, "--root", root, "--json", *NARROW_FLAGS)
    described = json.loads(out)
    assert (status, described["subjects"], described["recordings"]) == (0, 2, COUNTS[name])
    status, out, err = told(capsys, "run", name, "--root", root, "--out", "run", "--quiet", *NARROW_FLAGS)
    assert status == 0, err
    report = json.loads(Path("run/report.json").read_text())
    assert report["n_candidates"] == described["splits"]["test"]["segments"]
    assert report["subjects"] == 2
    assert 0 <= report["rows"]["encoder"]["top10"]["value"] <= 1
    assert report["dropped"].items() >= LEFT_OUT[name].items()
    # From the checkpoint, without a word of where the files are.
    assert json.loads(told(capsys, "evaluate", "run", "--json")[1])["rows"]["encoder"] == report["rows"]["encoder"]
    status, out, _ = told(capsys, "audit", "run", "--json")
    assert (status, json.loads(out)["errors"]) == (0, [])


def out_counts(root: Path, fetched: int) -> str:
    """Say how many files a folder has besides those just fetched."""
    return str(sum(path.is_file() and not path.name.startswith(".") for path in root.rglob("*")) - fetched)


def test_one_command_without_a_root_fetches_what_it_needs_and_runs(user, capsys):
    name, asked = user
    flags = ["--quiet", *NARROW_FLAGS, "--set", "dataset.subjects=first:1"]
    status, out, err = told(capsys, "run", name, *flags)
    assert status == 0, err
    assert f"fetched into {Path('data') / name}" in err
    assert "Please cite" in err  # not among what a script reads
    assert "Please cite" not in out
    assert json.loads(Path(f"runs/{name}/report.json").read_text())["subjects"] == 1
    assert Path(f"data/{name}/sub-001").is_dir()
    assert not any(re.match(r"sub-0(?!01)", path) for path in asked)
    # The second time everything is there: the run is the same one, and nobody is asked for anything.
    asked.clear()
    status, _, err = told(capsys, "run", name, *flags)
    assert (status, sum(asked.values())) == (0, 0)
    assert "holds a finished run" in err


def test_a_mistake_is_found_before_anything_is_fetched(user, capsys):
    name, asked = user
    status, _, err = told(capsys, "run", name, "--set", "preprocess.sfreq=60")
    assert status == 1
    assert "segments.sfreq is 120 Hz and preprocess.sfreq is 60 Hz" in err
    assert not asked
    assert not Path("data").exists()


def test_a_file_that_cannot_be_had_ends_the_run_with_its_name(user, capsys, monkeypatch):
    name, _ = user
    listing = manifests.folder() / f"{name}.tsv"
    text = listing.read_text()
    last = text.splitlines()[-1].split("\t")
    gone = "\t".join(["sub-001/eeg/sub-001_gone.vhdr", "7", "", "", last[-1]])
    listing.write_text("\n".join([text.splitlines()[0], *sorted([*text.splitlines()[1:], gone])]) + "\n")
    try:
        status, _, err = told(capsys, "run", name, "--quiet", *NARROW_FLAGS)
    finally:
        listing.write_text(text)
    assert status == 1
    assert "FAILED sub-001/eeg/sub-001_gone.vhdr: the server has no such file (HTTP 404" in err
    assert f"brainspeech download {name} --root" in err
    assert not Path("runs").exists()


# ------------------------------------------------------------------------------------------------------------------- filled by hand


@pytest.mark.parametrize(("name", "where"), [("broderick2019", "datadryad.org"), ("schoffelen2019", "data.ru.nl")])
def test_what_cannot_be_fetched_says_what_to_do(name, where, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in (["download", name, "--root", f"data/{name}"], ["run", name]):
        status, _, err = told(capsys, *arguments)
        assert status == 1
        assert where in err
        assert f"brainspeech verify {name} --root data/{name}" in err


def test_a_folder_that_was_filled_by_hand_is_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINSPEECH_CACHE", str(tmp_path / "cache"))
    write_broderick2019(tmp_path / "data/broderick2019")
    status, out, _ = told(capsys, "download", "broderick2019", "--root", "data/broderick2019")
    assert (status, "filled by hand" in out) == (0, True)
    assert told(capsys, "verify", "broderick2019", "--root", "data/broderick2019")[0] == 0
    status, _, err = told(capsys, "run", "broderick2019", "--quiet", *NARROW_FLAGS)
    assert status == 0, err
    assert json.loads(Path("runs/broderick2019/report.json").read_text())["subjects"] == 2
    shutil.rmtree(tmp_path / "data/broderick2019/private")
    status, out, _ = told(capsys, "verify", "broderick2019", "--root", "data/broderick2019")
    assert (status, "0 of 20 sounds" in out) == (1, True)
