"""A released folder works elsewhere, says what it is, and holds nothing of the data; what may not go out does not."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hub_server import TOKEN, serving
from tiny_runs import tiny

from brainspeech import SpeechDecoder, flow, hub, release, report
from brainspeech.cache import Cache
from brainspeech.figures.style import Picture
from brainspeech.recipe import Choice


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one listener."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = tiny("dataset.n_subjects=1", "train.max_epochs=1", "train.max_steps_per_epoch=2")
    recipe = dataclasses.replace(recipe, rows=("encoder", "constant"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.files.figures, "draw", lambda *_: [Picture("none", "", "", "", b"", "")])  # the release draws them
        flow.run(recipe, out=folder / "run", cache=Cache(folder / "cache"), source=str(folder / "recipe.py"), progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def released(run, tmp_path_factory):
    """Its release."""
    return release.release(run, tmp_path_factory.mktemp("released") / "out", name="listener", licence="cc-by-4.0")


@pytest.fixture
def here(monkeypatch):
    """Reproduce in this process: a fresh one takes seconds, and ``released`` has shown that it does."""
    monkeypatch.setattr(release, "_reproduce_elsewhere", release.reproduce)


def test_a_release_loads_in_a_fresh_process_and_gives_the_same_estimates(run, released):
    assert released.difference == 0.0  # of another process on this machine
    assert "the estimates are the same" in released.text()
    decoder, original = SpeechDecoder.from_pretrained(released.folder), SpeechDecoder.from_run(run)
    signal = hub.read_tensors(released.folder / release.CHECK)["signal"].numpy()
    np.testing.assert_array_equal(decoder.predict(signal, subject="01"), original.predict(signal, subject="01"))
    assert {"weights.safetensors", "report.html", "report.json", "report.md", "recipe.json", "README.md", hub.SUMS} <= set(released.files)
    assert any(file.startswith("figures/") and file.endswith(".png") for file in released.files)
    done = subprocess.run(["sha256sum", "-c", "--strict", "--quiet", hub.SUMS], cwd=released.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((released.folder / hub.SUMS).read_text().splitlines()) == len(released.files) - 1


def test_nothing_of_the_data_and_no_place_of_this_machine_is_in_it(run, released):
    words = {word for example in report.load(run).examples for word in example["heard"].split() if len(word) > 5}
    assert words
    recipe = json.loads((released.folder / "recipe.json").read_text())
    assert recipe == {"recipe": json.loads((run / "recipe.json").read_text())["recipe"]}
    for path in released.folder.rglob("*"):
        assert path.suffix not in (".npy", ".npz", ".wav")
        if path.suffix in (".json", ".md", ".html"):
            text = path.read_text()
            assert str(run.parent) not in text, path
            assert not [word for word in words if word in text], path
    assert "segments.json" not in released.files
    assert "Examples of what was heard are left out" in (released.folder / "report.md").read_text()


def test_the_card_says_what_was_measured(run, released):
    text = (released.folder / "README.md").read_text()
    read = huggingface_hub.ModelCard(text).data
    found = report.load(run)
    entry = found.rows["encoder"]["top10"]
    assert (read.library_name, read.license, read.tags) == ("brainspeech", "cc-by-4.0", ["brain-decoding", "speech", "eeg"])
    measured = {result.metric_name.split(" ")[0]: result for result in read.eval_results}
    assert measured["top-10"].metric_value == entry["value"]
    assert measured["top-10"].dataset_name == "simulated"
    interval = "" if entry["low"] is None else f" [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"
    row = next(line for line in text.splitlines() if line.startswith("| encoder |"))
    assert f"| {100 * entry['value']:.1f}{interval} |" in row
    assert "| batches.lag | `0.15` |" in text
    assert "| train.max_epochs | `1` |" in text
    assert all(f"- {warning}" in text for warning in found.warnings)
    assert "no licence applies" in text
    assert "no control was fitted" in released.text()


def test_damage_of_a_release_is_named(released, tmp_path, here):
    folder = tmp_path / "copy"
    shutil.copytree(released.folder, folder)
    assert release.verify(folder).ok
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-2] ^= 1  # the size stays
    (folder / "weights.safetensors").write_bytes(content)
    (folder / "report.md").unlink()
    (folder / "extra.pkl").write_bytes(b"")
    found = release.verify(folder)
    assert [problem.partition(": ")[0] for problem in found.problems] == ["report.md", "extra.pkl", "weights.safetensors"]
    assert not found.ok
    assert "the SHA-256 is" in found.text()
    with pytest.raises(RuntimeError, match="is not uploaded"):
        release.push(folder, "lab/listener")
    with pytest.raises(RuntimeError, match=r"weights\.safetensors is damaged"):
        SpeechDecoder.load(folder)
    (folder / hub.SUMS).write_text("0" * 64 + "  ../../elsewhere\n")
    with pytest.raises(RuntimeError, match="is no SHA-256 and a file below the folder"):
        release.verify(folder)
    with pytest.raises(FileNotFoundError, match="is no released folder"):
        release.verify(tmp_path)


def test_estimates_that_differ_are_seen(released, tmp_path, here):
    """The sums are right, the weights are whole, and yet it is not the model that the example was made with."""
    folder = tmp_path / "copy"
    shutil.copytree(released.folder, folder)
    kept = hub.read_tensors(folder / release.CHECK)
    hub.write_tensors(folder / release.CHECK, kept | {"estimate": kept["estimate"] + kept["estimate"].std()})
    release._write_sums(folder)
    found = release.verify(folder)
    assert found.difference == pytest.approx(1.0, rel=0.01)
    assert "the estimates differ" in found.text()


def test_a_release_is_pushed_whole_and_pulled_as_a_decoder(released, tmp_path, here, monkeypatch):
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        release.push(released.folder, "lab/listener", token=TOKEN)
        assert set(server.repos["lab/listener"]) == set(released.files)
        pulled = SpeechDecoder.from_pretrained("lab/listener", cache_dir=tmp_path)
    signal = hub.read_tensors(released.folder / release.CHECK)["signal"].numpy()
    here = SpeechDecoder.load(released.folder)
    np.testing.assert_array_equal(pulled.predict(signal), here.predict(signal))


def altered(run, folder, change):
    """Copy a run with another report.json."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("figures", "checkpoint", "fits"))
    values = json.loads((folder / "report.json").read_text())
    change(values)
    (folder / "report.json").write_text(json.dumps(values))
    return folder


def alarm(values):
    values["rows"]["shuffled"] = values["rows"]["encoder"] | {"control": True, "p_above_chance": 1e-5}


def test_an_alarm_stops_a_release_unless_it_is_wanted(run, tmp_path, here, monkeypatch):
    copy = altered(run, tmp_path / "run", alarm)
    with pytest.raises(RuntimeError, match=r"`shuffled` is above chance.*--despite-alarms"):
        release.release(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(release.reports, "write", lambda *_, **__: [])  # the pages are drawn elsewhere
    done = release.release(copy, tmp_path / "out", despite_alarms=True)
    assert "the report has an alarm" in done.text()
    assert "no licence of the weights is stated" in done.text()
    assert "> **Warning.** The control `shuffled` is above chance" in (tmp_path / "out" / "README.md").read_text()
    release.release(copy, tmp_path / "out", despite_alarms=True)  # an earlier release is replaced
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_table_of_variants_names_its_runs(tmp_path, here):
    for path in ("ladder.json", "relu/report.json", "reference/report.json"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("{}")
    with pytest.raises(RuntimeError, match=r"is a table of variants\. Release one of its runs: reference, relu"):
        release.release(tmp_path, tmp_path / "out")


def test_a_run_of_a_table_is_named_with_its_variant(tmp_path):
    recipe = {"name": "demo"}
    (tmp_path / "relu").mkdir()
    assert release._name_of(tmp_path / "relu", recipe) == "demo"
    (tmp_path / "ladder.json").write_text('{"rows": [{"name": "random"}, {"name": "relu"}]}')
    assert release._name_of(tmp_path / "relu", recipe) == "demo-relu"
    assert release._name_of(tmp_path / "beside_it", recipe) == "demo"
    (tmp_path / "ladder.json").write_text("{")
    assert release._name_of(tmp_path / "relu", recipe) == "demo"


def test_what_is_no_finished_run_is_not_released(run, tmp_path, here):
    with pytest.raises(RuntimeError, match=r"no finished run \(no recipe\.json, model/config\.json, report\.json\)"):
        release.release(tmp_path, tmp_path / "out")
    copy = altered(run, tmp_path / "run", lambda values: values["provenance"]["recipe"]["train"].update(lr=7.0))
    with pytest.raises(RuntimeError, match=r"report\.json was made with other constants than recipe\.json has \(train\)"):
        release.release(copy, tmp_path / "out")
    (copy / "model" / hub.CONFIG).write_text("{")
    with pytest.raises(RuntimeError, match=r"config\.json is damaged"):
        release.release(copy, tmp_path / "out")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("do not lose me")
    with pytest.raises(ValueError, match="is no earlier release"):
        release.release(run, tmp_path / "thesis")
    assert Path(tmp_path / "thesis" / "chapter.txt").read_text() == "do not lose me"


def test_quotes_are_taken_out_wherever_they_stand():
    curves = {"lag": {"lag": [0.1], "value": [0.2]}, "x": [{"word": "secret", "n": 3}, {"words": 5}], "heard": ["secret"]}
    assert release._unquoted(curves) == {"lag": {"lag": [0.1], "value": [0.2]}, "x": [{"n": 3}, {"words": 5}]}


# ------------------------------------------------------------------------------------------- an audio encoder, of the user's own besides

EAR = '"""An audio encoder."""\n\nfrom brainspeech.models.deep_mel import DeepMel\n\n\nclass Ear(DeepMel):\n    """Mine."""\n'


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A finished run whose audio encoder stands in a module beside the recipe, which nobody has imported since."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_ear.py").write_text(EAR)
    settings = ("dataset.n_subjects=1", "train.max_epochs=1", "train.max_steps_per_epoch=2", "rows=encoder")
    ear = Choice("my_ear:Ear", {"n_outputs": 5, "hidden": 4, "depth": 2})
    recipe = dataclasses.replace(tiny(*settings), target_encoder=ear)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(report.files.figures, "draw", lambda *_: [Picture("none", "", "", "", b"", "")])
        flow.run(recipe, out=folder / "run", cache=Cache(folder / "cache"), source=str(folder / "recipe.py"), progress=False)
        del sys.modules["my_ear"]
    return folder / "run"


@pytest.fixture
def path(monkeypatch):
    """Keep what a release imports to the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("my_ear", None)


def test_a_class_of_the_users_own_is_found_beside_the_recipe_and_named_on_the_card(own, tmp_path, path, monkeypatch):
    monkeypatch.setattr(release.reports, "write", lambda *_, **__: [])
    done = release.release(own, tmp_path / "out")
    assert done.difference == 0.0  # of a fresh process, which found the class too
    digest = hashlib.sha256(EAR.encode()).hexdigest()
    assert f"my_ear:Ear is needed and is no part of it; give it along (the file my_ear.py, SHA-256 {digest})" in done.text()
    text = (done.folder / "README.md").read_text()
    assert f"- target encoder `my_ear:Ear`: the file my_ear.py, SHA-256 {digest}." in text
    assert "5 numbers, at every moment, that an audio encoder (`my_ear:Ear`)" in text
    assert not [file for file in done.files if file.endswith(".py")]
    # Both networks are checked.
    kept = hub.read_tensors(done.folder / release.CHECK)
    assert (kept["features"].shape[1], kept["encoded"].shape[1]) == (8, 5)
    hub.write_tensors(done.folder / release.CHECK, kept | {"encoded": kept["encoded"] + kept["encoded"].std()})
    assert release.reproduce(done.folder) == pytest.approx(1.0, rel=0.01)
    # Who gets the folder imports the class; the folder imports nothing.
    assert SpeechDecoder.from_pretrained(done.folder).loss_.target_encoder.config["n_outputs"] == 5
    del sys.modules["my_ear"]
    release._write_sums(done.folder)
    with pytest.raises(RuntimeError, match=r"target encoder 'my_ear:Ear' is somebody's own; import its module first.*: import my_ear\. "):
        release.verify(done.folder)
    assert "my_ear" not in sys.modules


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_ear:Ear", r"the target encoder 'my_ear:Ear' was not found .* in Python after: import my_ear\."),
        ("__main__:Ear", r"'__main__:Ear' stands in a script or a notebook.*run again with 'mine:Ear'"),
    ],
)
def test_a_class_that_cannot_be_imported_is_named(own, tmp_path, path, here, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    copy = altered(own, tmp_path / "run", lambda values: None)
    for file in ("recipe.json", f"model/{hub.CONFIG}"):
        values = json.loads((copy / file).read_text())
        values["recipe"]["target_encoder"]["name"] = name
        values["source"] = ""
        (copy / file).write_text(json.dumps(values))
    with pytest.raises(RuntimeError, match=said):
        release.release(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
