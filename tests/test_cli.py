"""The command line: what it says to a newcomer, what it prints, how it ends."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import TINY, set_flags, tiny

from brainspeech import cli, commands, evaluate, report

# A newcomer's recipe: the demo with other constants.
RECIPE_PY = """
from brainspeech import recipe as recipes

recipe = recipes.change(recipes.load("demo"), {settings!r})
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a recipe.py, a cache and a finished run of it under runs/demo."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "recipe.py").write_text(RECIPE_PY.format(settings=[*TINY]))
    assert cli.main(["run", str(folder / "recipe.py"), "--quiet", "--out", str(folder / "run"), "--cache", str(folder / "cache")]) == 0
    return folder


@pytest.fixture
def copied(place, tmp_path):
    """The finished run, to be damaged."""
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


def told(capsys, *arguments):
    """Run a command: (exit status, stdout, stderr)."""
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


# --------------------------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["run demo", "describe", "evaluate", "report", "audit", "RECIPE is the name of a shipped recipe", "--help after a command"]),
        (["run"], ["RECIPE", "--root DIR", "--out DIR", "runs/RECIPE", "--set section.field=value", "train.max_epochs=5", "--seeds N"]),
        (["run"], ["--resume", "--strict", "status 3", "goes on where it stopped", "--cache DIR", "BRAINSPEECH_CACHE", "--quiet"]),
        (["describe"], ["RECIPE or DATASET", "--json", "--protocol {clean,paper}", "--subjects S", "first:3", "Trains nothing"]),
        (["evaluate"], ["RUN", "runs/demo", "--json", "report.json", "--strict", "--root DIR"]),
        (["report"], ["RUN", "runs/demo", "report.json", "pages"]),
        (["audit"], ["RUN", "no window crosses a block", "two sides", "exit status 1", "--json"]),
    ],
)
def test_help_says_what_a_newcomer_needs(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert [word for word in words if word not in text] == []


def test_without_a_command_there_is_help_and_status_2(capsys):
    status, out, _ = told(capsys)
    assert status == 2
    assert "brainspeech run demo" in out


def test_settings_named_in_the_help_are_real():
    settings = [word for word in cli.RUN_EPILOG.split() if "=" in word]
    assert len(settings) > 6
    assert tiny(*settings).model.options["hidden"] == 160


HEAVY = ["torch", "torchaudio", "mne", "pandas", "transformers", "matplotlib", "accelerate", "braindecode", "scipy", "numpy"]


@pytest.mark.parametrize(
    "program",
    [
        "import brainspeech",
        "import brainspeech.cli, contextlib\nwith contextlib.suppress(SystemExit): brainspeech.cli.main(['--help'])",
        "import brainspeech.cli, contextlib\nwith contextlib.suppress(SystemExit): brainspeech.cli.main(['run', '--help'])",
    ],
)
def test_import_and_help_load_no_heavy_library(program):
    report = f"{program}\nimport sys\nprint('LOADED', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_the_console_script_is_there():
    script = Path(sys.executable).parent / "brainspeech"
    if not script.exists():
        pytest.skip("brainspeech is not installed beside this Python")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("brainspeech ")


# ---------------------------------------------------------------------------------------------------------------------------- run, report


def test_run_prints_the_table_and_where_the_report_is(place, capsys):
    status, out, err = told(capsys, "run", place / "recipe.py", "--quiet", "--out", place / "run", "--cache", place / "cache", "--resume")
    assert status == 0
    assert "holds a finished run" in err
    lines = out.splitlines()
    assert "2 subjects" in lines[0]
    for row in ("encoder", "linear clip", "ridge", "noise", "shuffled", "constant", "block oracle", "chance"):
        assert any(line.startswith(row) for line in lines), row
    assert lines[-1] == f"The report with its figures: {(place / 'run' / 'report.html').resolve()}"


def test_run_takes_seeds_and_the_default_folder(place, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINSPEECH_CACHE", str(place / "cache"))
    flags = set_flags(["rows=encoder", "train.max_epochs=1", "train.max_steps_per_epoch=1"])
    status, out, _ = told(capsys, "run", place / "recipe.py", "--quiet", "--seeds", 2, *flags)
    assert status == 0
    assert "2 seeds" in out
    assert json.loads((tmp_path / "runs" / "demo" / "report.json").read_text())["seeds"] == [2036, 2037]


def test_evaluate_json_prints_report_json(place, capsys):
    before = (place / "run" / "metrics.jsonl").read_text()
    status, out, _ = told(capsys, "evaluate", place / "run", "--json", "--cache", place / "cache")
    assert status == 0
    assert json.loads(out) == json.loads((place / "run" / "report.json").read_text())
    assert (place / "run" / "metrics.jsonl").read_text() == before


def test_evaluate_takes_the_constants_of_the_run_not_those_of_the_recipe_file(place, capsys, tmp_path):
    shutil.copy(place / "recipe.py", tmp_path / "recipe.py")
    flags = set_flags(["rows=encoder", "train.max_epochs=1"])
    where = ["--cache", place / "cache", "--quiet"]
    assert told(capsys, "run", tmp_path / "recipe.py", *where, *flags, "--out", tmp_path / "run")[0] == 0
    status, out, err = told(capsys, "evaluate", tmp_path / "run", *where)
    assert (status, err) == (0, "")
    assert "ridge" not in out
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_report_writes_the_pages_again(copied, capsys):
    page = (copied / "report.html").read_bytes()
    (copied / "report.html").unlink()
    status, out, _ = told(capsys, "report", copied)
    assert status == 0
    assert "encoder" in out
    assert (copied / "report.html").read_bytes() == page


# ------------------------------------------------------------------------------------------------------------------------------ describe


def test_describe_json_has_the_keys_that_outsiders_rely_on(place, capsys):
    status, out, _ = told(capsys, "describe", place / "recipe.py", "--json")
    found = json.loads(out)
    assert status == 0
    assert {"subjects", "recordings", "hours", "splits", "vocabulary_overlap"} <= set(found)
    assert set(found["splits"]) == {"train", "valid", "test"}
    for counts in found["splits"].values():
        assert {"segments", "windows", "words", "vocabulary"} <= set(counts)
        assert all(isinstance(counts[key], int) and counts[key] > 0 for key in ("segments", "windows", "words", "vocabulary"))


def test_describe_prints_a_table_of_some_subjects(place, capsys):
    status, out, _ = told(capsys, "describe", place / "recipe.py", "--subjects", "first:1")
    assert status == 0
    assert out.startswith("demo: 1 subjects, 2 recordings, 0.0")
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["split", "train", "valid", "test"]
    assert "left out: " in out


def test_describe_takes_a_dataset_and_a_protocol(capsys):
    flags = set_flags(["dataset.minutes=5", "dataset.n_subjects=1", "dataset.n_channels=2", "dataset.sfreq=120"])
    status, out, _ = told(capsys, "describe", "simulated", "--protocol", "paper", "--json", *flags)
    assert status == 0
    assert json.loads(out)["subjects"] == 1


# --------------------------------------------------------------------------------------------------------------------------------- audit


def test_audit_of_a_good_run_is_clean(place, capsys):
    status, out, _ = told(capsys, "audit", place / "run")
    assert status == 0
    assert "no window crosses a block, no moment of audio stands on two sides." in out
    status, out, _ = told(capsys, "audit", place / "run", "--json")
    found = json.loads(out)
    assert (status, found["errors"], found["folds"]) == (0, [], 1)
    assert found["windows"] > 100


def test_audit_of_nothing_proves_nothing(copied, capsys):
    (copied / "segments.json").write_text("[]")
    status, _, err = told(capsys, "audit", copied)
    assert status == 1
    assert "holds no windows" in err


def test_audit_finds_a_test_window_that_was_moved_into_training(copied, capsys):
    path = copied / "segments.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(plant(kept)))
    status, out, _ = told(capsys, "audit", copied)
    assert status == 1
    assert "LEAK" in out
    status, out, _ = told(capsys, "audit", copied, "--json")
    assert status == 1
    assert json.loads(out)["errors"]


def plant(value):
    """Call the first test segment found in the JSON a training segment."""
    done = []

    def walk(node):
        if isinstance(node, dict):
            if not done and node.get("split") == "test" and "stimulus_id" in node:
                done.append(node)
                return node | {"split": "train"}
            return {k: walk(v) for k, v in node.items()}
        if isinstance(node, list):
            return [walk(v) for v in node]
        return node

    planted = walk(value)
    assert done, "segments.json holds no test segment with its split"
    return planted


# ---------------------------------------------------------------------------------------------------------------------- strict, errors


def test_strict_ends_with_3_when_a_control_is_above_chance(copied, place, capsys, monkeypatch):
    """The response survives a control that does not touch the signal: ``noise`` is as good as the encoder, which is the alarm's case."""
    from brainspeech import controls

    learning = ["dataset.snr_db=5", "train.lr=0.02", "train.max_epochs=6", "train.max_steps_per_epoch=50", "evaluate.n_permutations=3000"]
    flags = set_flags([*learning, "segments.stride=1", "model.generic_subject=False", "rows=encoder,noise"])
    command = ["run", place / "recipe.py", "--quiet", "--cache", place / "cache", *flags, "--out"]
    monkeypatch.setattr(controls, "phase_randomise", lambda signal, *, seed: signal)
    monkeypatch.setattr(evaluate.findings, "LEAK", 0.02)  # six blocks cannot reach the real one
    status, out, _ = told(capsys, *command, copied.parent / "leaking")
    assert status == 0, "without --strict it is a warning"
    assert out.startswith("WARNING: The control `noise` is above chance")
    status, out, _ = told(capsys, *command, copied.parent / "leaking", "--strict")
    assert status == 3
    report = json.loads((copied.parent / "leaking" / "report.json").read_text())
    assert report["warnings"][0].startswith("The control `noise` is above chance")
    assert report["rows"]["noise"]["p_above_chance"] < evaluate.findings.LEAK


def test_strict_ends_with_0_when_the_controls_are_at_chance(place, capsys):
    status, _, _ = told(capsys, "evaluate", place / "run", "--strict", "--quiet", "--cache", place / "cache")
    assert status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "dmeo"], "No recipe 'dmeo'"),
        (["run", "demo", "--set", "train.lr"], "--set takes section.field=value"),
        (["run", "demo", "--set", "train.learning_rate=1"], "Unknown field 'learning_rate'"),
        (["run", "demo", "--set", "trian.lr=1"], "Unknown section 'trian'"),
        (["run", "demo", "--set", "train.max_epochs=many"], "takes int"),
        (["run", "demo", "--seeds", "0"], "--seeds takes a number of 1 or more, got 0."),
        (["run", "demo", "--resume", "--out", "nowhere"], "--resume: nowhere holds no run"),
        (["run", "cocktail_eeg"], "cocktail_eeg: say where the files are: --root DIR"),
        (["run", "cocktail_eeg", "--root", "nowhere"], "competing_speaker_order.mat is missing"),
        (["describe", "simulatd"], "No recipe 'simulatd'"),
        (["describe", "demo", "--subjects", "99"], "99"),
        (["evaluate", "nowhere"], "nowhere is no run folder (no recipe.json). Make one: brainspeech run RECIPE --out nowhere"),
        (["report", "nowhere"], "nowhere is no run folder"),
        (["audit", "nowhere"], "nowhere is no run folder"),
    ],
)
def test_errors_are_one_line_and_status_1(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = told(capsys, *arguments, *(["--cache", tmp_path] if arguments[0] in ("run", "describe", "evaluate") else []))
    assert status == 1
    assert out == ""
    assert err.startswith("brainspeech: ")
    assert message in err
    assert err.count("\n") == 1, "one line"
    assert "Traceback" not in err


def test_a_run_without_a_report_says_how_to_get_one(copied, capsys):
    (copied / "report.json").unlink()
    status, _, err = told(capsys, "report", copied)
    assert status == 1
    assert f"brainspeech run RECIPE --out {copied}" in err


def test_a_traceback_is_shown_on_demand(tmp_path):
    command = [sys.executable, "-m", "brainspeech.cli", "report", "nowhere"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"BRAINSPEECH_TRACEBACK": "1"})
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "FileNotFoundError: nowhere is no run folder" in shown.stderr


def test_an_interrupt_says_that_the_same_command_goes_on(capsys, monkeypatch):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "report", interrupt)
    status, _, err = told(capsys, "report", "anything")
    assert status == 130
    assert "the same command goes on from there" in err


# ----------------------------------------------------------------------------------------------------- prepare, variants, release, scorers


def test_prepare_fills_a_cache_and_checks_it(place, tmp_path, capsys):
    arguments = ["prepare", place / "recipe.py", "--cache", tmp_path / "cache", "--quiet"]
    status, out, _ = told(capsys, *arguments)
    assert status == 0
    assert "4 recordings" in out
    status, out, _ = told(capsys, *arguments, "--verify")
    assert (status, "0 were damaged" in out) == (0, True)
    array = next((tmp_path / "cache").rglob("*.npy"))
    data = bytearray(array.read_bytes())
    data[-1] ^= 1
    array.write_bytes(data)
    status, out, _ = told(capsys, *arguments, "--verify")
    assert status == 1
    assert "1 were damaged" in out
    assert not array.exists()


def test_variants_by_name_and_wrong_names(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["run", place / "recipe.py", "--cache", place / "cache", "--quiet"]
    status, _, err = told(capsys, *common, "--variants", "abblations")
    assert status == 1
    assert "table2, ablations, lag" in err
    assert told(capsys, *common, "--variants", "ablations", "--variant", "relu")[0] == 1
    status, _, _ = told(capsys, *common, "--variant", "clamp_100", "--set", "rows=encoder")
    assert status == 0
    assert (tmp_path / "runs" / "demo-clamp_100" / "report.json").is_file()
    table = [*common, "--variants", "clamp_100", "--set", "rows=encoder"]
    status, _, err = told(capsys, *table, "--resume")
    assert status == 1
    assert "holds no table of variants" in err
    status, out, _ = told(capsys, *table)
    assert status == 0
    assert "Of 1 variant compared with it" in out
    assert "clamp 100" in out
    assert (tmp_path / "runs" / "demo-variants" / "ladder.html").is_file()
    assert told(capsys, *table, "--resume")[0] == 0
    status, _, err = told(capsys, *table, "--resume", "--variants", "lag=0,50", "--out", tmp_path / "runs")  # which holds runs, of others
    assert (status, "holds no table of variants" in err) == (1, True)
    status, _, err = told(capsys, *table, "--out", tmp_path / "runs" / "demo-clamp_100")
    assert (status, "holds a run (recipe.json, report.json), not a table of variants" in err) == (1, True)
    assert not (tmp_path / "runs" / "demo-clamp_100" / "reference").exists()
    monkeypatch.setattr(report.Ladder, "alarms", ["a control is above chance"])
    assert told(capsys, *table, "--strict")[0] == 3


def test_a_finished_run_is_evaluated_with_scorers_and_not_trained(place, copied, capsys):
    arguments = ["evaluate", copied, "--cache", place / "cache", "--quiet"]
    status, _, err = told(capsys, *arguments, "--set", "train.lr=1")
    assert status == 1
    assert "train.lr=1" in err
    status, out, _ = told(capsys, *arguments, "--set", "evaluate.scorers=hubness")
    assert status == 0
    assert "encoder hubness" in out
    assert "encoder_hubness" in json.loads((copied / "report.json").read_text())["rows"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "recipe.json is damaged (it holds no constants of a run). Delete"),
        ('{"recipe": {}}', "does not name the recipe.py that the run was made from (source)"),
        ('{"recipe": {"model": 3}, "source": "demo"}', "its constants are not those of a recipe ("),
    ],
)
def test_a_claim_that_is_not_a_run_s_is_said(tmp_path, capsys, content, said):
    (tmp_path / "recipe.json").write_text(content)
    (tmp_path / "report.json").write_text("{}")
    status, _, err = told(capsys, "evaluate", tmp_path)
    assert (status, said in err) == (1, True)


def test_release_and_verify(place, tmp_path, capsys):
    status, _, err = told(capsys, "release", place / "run")
    assert status == 1
    assert "release RUN DIR" in err
    status, _, err = told(capsys, "release", place / "run", tmp_path / "gift", "--licence", "cc-by-4.0")
    assert status == 0, err
    assert (tmp_path / "gift" / "SHA256SUMS").is_file()
    assert told(capsys, "release", tmp_path / "gift", "--verify")[0] == 0
    page = tmp_path / "gift" / "report.html"
    page.write_bytes(page.read_bytes().replace(b"a", b"b", 1))
    assert told(capsys, "release", tmp_path / "gift", "--verify")[0] == 1
