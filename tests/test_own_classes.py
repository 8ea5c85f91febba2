"""Features and models of the user's own: from a recipe's file or a module, without a line in the package."""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_docs import blocks

from brainspeech import SpeechDecoder, cli, features, hub, models, release
from brainspeech import recipe as recipes

HOWTO = Path(__file__).resolve().parents[1] / "docs" / "howto"
SMALL = (
    "dataset.n_channels=6",
    "dataset.sfreq=70",
    "preprocess.sfreq=30",
    "segments.sfreq=30",
    "segments.stride=2",
    "train.batch_size=16",
    "train.max_epochs=1",
    "train.max_steps_per_epoch=3",
    "evaluate.n_permutations=19",
    "evaluate.n_bootstrap=20",
    "rows=encoder",
)


def recipe_of(page, folder):
    """Write the page's block that is a whole recipe.py."""
    (code,) = [code for _, _, code in blocks(HOWTO / page, "python") if "recipe = Recipe(" in code]
    folder.mkdir()
    (folder / "recipe.py").write_text(code)
    return str(folder / "recipe.py")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's own, where Python looks."""
    (tmp_path / "my_things.py").write_text(
        "from brainspeech.features.mel import Mel\nfrom brainspeech.models.linear import LinearClip\n\n\n"
        "class Low(Mel):\n    name = 'low'\n\n    def __init__(self, n_mels: int = 4):\n        super().__init__(n_mels)\n\n\n"
        "class Mine(LinearClip):\n    pass\n\n\nclass Neither:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_things"
    sys.modules.pop("my_things", None)


@pytest.mark.parametrize(
    ("page", "section", "own", "option"),
    [("add_feature.md", "feature", "Onsets", "feature.power=1.0"), ("add_model.md", "model", "Shallow", "model.width=4")],
)
def test_a_class_in_a_recipes_file_runs_from_the_command_line(tmp_path, capsys, monkeypatch, page, section, own, option):
    path = recipe_of(page, tmp_path / "mine")
    settings = [*SMALL, option, *(["model.hidden=4", "model.depth=1", "model.n_virtual=4"] if section == "feature" else [])]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    where = ["--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--quiet"]
    assert cli.main(["run", path, *where, *flags]) == 0, capsys.readouterr().err
    kept = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"][section]
    assert kept["name"] == f"brainspeech_recipe_mine:{own}"
    name, value = option.partition(".")[2].split("=")
    assert kept["options"][name] == float(value)
    # Known again from its own folder, and from its saved weights once the recipe has been loaded.
    if section == "model":
        assert cli.main(["evaluate", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--quiet"]) == 0
    assert hub.load(tmp_path / "run" / "model").config["model"] == ("conv" if section == "feature" else kept["name"])
    # And from the recipe's file when it is released, whose check imports that file too.
    del sys.modules["brainspeech_recipe_mine"]
    monkeypatch.setattr(release.reports, "write", lambda *_, **__: [])
    monkeypatch.setattr(release, "_reproduce_elsewhere", release.reproduce)
    assert cli.main(["release", str(tmp_path / "run"), str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert release._own_places(tmp_path / "out") == ([path] if section == "model" else [])
    card = (tmp_path / "out" / "README.md").read_text()
    assert ('brainspeech.recipe.load("mine/recipe.py")' in card) == (f"`{kept['name']}`: the file mine/recipe.py, SHA-256 " in card)
    if section == "model":
        del sys.modules["brainspeech_recipe_mine"]
        release.import_modules([path])
        assert SpeechDecoder.from_pretrained(tmp_path / "out").encoder_.name == kept["name"]


def test_a_class_of_a_module(module):
    feature = features.build(f"{module}:Low")
    assert feature.config()["n_mels"] == 4
    encoder = models.build(f"{module}:Mine", n_subjects=1, n_features=2, n_channels=3, rank=2)
    assert encoder.name == "my_things:Mine"
    again = models.build(encoder.name, **encoder.config)
    assert again.load_state_dict(encoder.state_dict())
    assert models.needs(f"{module}:Mine") == {"n_subjects", "n_features", "n_channels"}
    assert models.needs("conv") == {"n_subjects", "n_features"}
    demo = recipes.change(recipes.load("demo"), [f"feature.name={module}:Low", "feature.n_mels=6", f"model.name={module}:Mine"])
    recipes.check(demo)
    with pytest.raises(ValueError, match=r"Unknown field 'n_mel' .* fields are name, n_mels"):
        recipes.change(demo, ["feature.n_mel=6"])


def test_a_saved_model_of_somebodys_own_imports_nothing(module, tmp_path):
    """A config.json that came with a download must not say what is imported here."""
    torch.manual_seed(0)
    encoder = models.build(f"{module}:Mine", n_subjects=1, n_features=2, n_channels=3, lags=[0, 1], rank=2)
    hub.save(tmp_path / "model", encoder, config={})
    assert hub.load(tmp_path / "model").config["model"] == "my_things:Mine"
    del sys.modules["my_things"]
    with pytest.raises(RuntimeError, match="'my_things:Mine' is somebody's own; import its module first"):
        hub.load(tmp_path / "model")
    assert "my_things" not in sys.modules
    path = tmp_path / "model" / hub.CONFIG
    forged = json.loads(path.read_text()) | {"model": "os:system", "model_config": {"command": "true"}}
    path.write_text(json.dumps(forged | {"seal": hub.seal(forged)}))
    with pytest.raises(ValueError, match=r"must be a subclass of brainspeech\.models\.base\.Encoder"):
        hub.load(tmp_path / "model")


def test_a_class_of_a_script_is_no_class_of_another_one(module, tmp_path):
    encoder = models.build(f"{module}:Mine", n_subjects=1, n_features=2, n_channels=3, lags=[0, 1], rank=2)
    path = hub.save(tmp_path / "model", encoder, config={}) / hub.CONFIG
    forged = json.loads(path.read_text()) | {"model": "__main__:Mine"}
    path.write_text(json.dumps(forged | {"seal": hub.seal(forged)}))
    with pytest.raises(RuntimeError, match=r"'__main__:Mine' is somebody's own.*class Mine: \.\.\.  # as it stood in the script"):
        hub.load(path.parent)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:Thing", "No module named 'nowhere'"),
        ("my_things:Gone", "no attribute 'Gone'"),
        ("my_things:Neither", "must be a subclass of"),
    ],
)
def test_what_is_no_class_of_the_right_kind(module, name, said):
    with pytest.raises(ValueError, match=said):
        features.build(name)
    with pytest.raises(ValueError, match=said):
        models.build(name)
    with pytest.raises(ValueError, match=said):
        recipes.check(recipes.change(recipes.load("demo"), [f"feature.name={name}"]))
