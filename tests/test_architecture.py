"""The walls of the house: who may import whom, where each library lives, and what no file may do.

Every check is a function of a file's name and text, so that it can be shown a file that breaks its rule.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import brainspeech

PACKAGE = Path(brainspeech.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "_shipped" not in path.parts)

# Bottom first. A room imports from the floors below its own; rooms of one floor never meet.
FLOORS = [
    {
        "records",
        "timing",
        "cache",
        "similarity",
        "statistics",
        "provenance",
        "backend",
        "host",
        "memory",
        "naming",
        "listing",
        "processes",
        "resident",
        "sampling",
        "stopping",
        "subjects",
        "download",
        "writing",
    },
    {"events", "manifests", "protocols", "resampling", "spreading", "windows"},
    {"segments_paper"},
    {
        "preprocess",
        "scaling",
        "datasets",
        "features",
        "segments",
        "controls",
        "augment",
        "models",
        "losses",
        "retrieval",
        "scorers",
        "quality",
    },
    {"batches", "hub", "prediction", "card", "lexicon", "regression", "signals"},
    {"checkpoint", "loading", "watching"},
    {"settings"},
    {"running"},
    {"teamwork"},
    {"train", "evaluate", "scoring", "ideal", "attribution", "given", "related"},
    {"decoded"},
    {"figures"},
    {"calibrate", "text", "stream", "report"},
    {"recipe"},
    {"rows", "parameters", "pretrained", "folds", "claiming"},
    {"preparing"},
    {"flow", "sharing"},
    {"fitting"},
    {"decoder", "variants"},
    {"release"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}

# figures is the half of report that draws.
HOMES = {
    "mne": {"datasets", "preprocess", "report", "figures"},
    "mne_bids": {"datasets", "preprocess", "report", "figures"},
    "torchaudio": {"features", "preprocess"},
    "transformers": {"features", "text", "lexicon"},
    "spacy": {"lexicon"},
    "wordfreq": {"lexicon"},
    "sklearn": {"regression", "parameters"},
    "braindecode": {"models", "augment"},
    "accelerate": {"train"},
    "huggingface_hub": {"hub", "sharing"},
    "matplotlib": {"report", "figures"},
}

HEAVY = ("torch", "torchaudio", "mne", "pandas", "transformers", "matplotlib", "accelerate", "braindecode", "scipy")

# Libraries that run code found in a file.
CODE_RUNNERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval": "eval runs what it is given; read literals with ast.literal_eval",
    "exec": "exec runs what it is given",
    "torch.load": "torch.load unpickles; use hub.read_tensors",
    "torch.save": "torch.save pickles; use hub.write_tensors",
    "joblib.load": "joblib.load unpickles; use brainspeech.cache",
    "joblib.dump": "joblib.dump pickles; use brainspeech.cache",
    "joblib.Memory": "joblib.Memory pickles; use brainspeech.cache",
    "pandas.read_pickle": "read_pickle unpickles",
    "pd.read_pickle": "read_pickle unpickles",
    "os.system": "os.system runs a shell; use subprocess.run with a list",
    "os.popen": "os.popen runs a shell; use subprocess.run with a list",
}


def room_of(file):
    """The room a file belongs to: its top folder, or its own name; the package's __init__ is no room."""
    first = file.split("/")[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports_of(file, text):
    """Yield (line, dotted module, level of a relative import as written) for every import, also inside functions and TYPE_CHECKING.

    ``from brainspeech import x`` is an import of brainspeech.x. A string such as "brainspeech.models.conv:ConvEncoder" is what
    import_module gets, so it counts as well.
    """
    folder = file.split("/")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name, 0
        elif isinstance(node, ast.ImportFrom):
            above = ["brainspeech", *folder][: len(folder) + 2 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            if module == "brainspeech":
                for name in node.names:
                    yield node.lineno, f"brainspeech.{name.name}", node.level
            else:
                yield node.lineno, module, node.level
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"brainspeech(\.\w+)+:\w+", node.value):
            yield node.lineno, node.value.split(":")[0], -1


def broken_floors(file, text):
    """Say where a file climbs a floor, meets a sibling, or is on no floor."""
    room = room_of(file)
    if not room:
        return []
    if room not in FLOOR:
        return [f"{file} is on no floor: write {room!r} into FLOORS of tests/test_architecture.py, above all that it imports."]
    problems = []
    for line, module, _ in imports_of(file, text):
        top, _, rest = module.partition(".")
        other = rest.split(".")[0]
        if top != "brainspeech" or not other or other == room or other.startswith("__"):
            continue
        if other not in FLOOR:
            problems.append(f"{file}:{line} imports {module}, which is on no floor.")
        elif FLOOR[other] >= FLOOR[room]:
            relation = "its sibling" if FLOOR[other] == FLOOR[room] else "above it"
            problems.append(f"{file}:{line} imports {module}, {relation}. A room imports from the floors below only.")
    return problems


def broken_styles_of_import(file, text):
    """Say where an import inside a room is absolute, or one between rooms is relative."""
    room, problems = room_of(file), []
    for line, module, level in imports_of(file, text):
        parts = module.split(".")
        own = parts[0] == "brainspeech" and len(parts) > 1 and parts[1] == room and room
        if level > 0 and not own:
            problems.append(f"{file}:{line} imports {module} relatively. Between rooms imports are absolute.")
        elif level == 0 and own and "/" in file:
            problems.append(f"{file}:{line} imports {module} of its own room. Inside a room imports are relative.")
    return problems


def broken_homes(file, text):
    """Say where a library is imported outside its home."""
    problems = []
    for line, module, _ in imports_of(file, text):
        library = module.split(".")[0]
        if library in HOMES and room_of(file) not in HOMES[library]:
            problems.append(f"{file}:{line} imports {library}, whose home is {', '.join(sorted(HOMES[library]))}.")
    return problems


def dangers(file, text):
    """Say where a file could run code that it reads, or unpack an archive anywhere."""
    problems = [
        f"{file}:{line} imports {module}: it runs code found in files."
        for line, module, _ in imports_of(file, text)
        if module.split(".")[0] in CODE_RUNNERS
    ]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module in {"torch", "joblib"}:
            problems += [
                f"{file}:{node.lineno}: {FORBIDDEN_CALLS[called]}."
                for name in node.names
                if (called := f"{node.module}.{name.name}") in FORBIDDEN_CALLS
            ]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS:
            problems.append(f"{file}:{node.lineno}: {FORBIDDEN_CALLS[called]}.")
        if called.split(".")[-1] == "extractall":
            problems.append(f"{file}:{node.lineno}: extractall writes where the archive says; extract members one by one.")
        for keyword in node.keywords:
            off = isinstance(keyword.value, ast.Constant) and keyword.value.value in (False, None)
            if keyword.arg == "shell" and not off:
                problems.append(f"{file}:{node.lineno}: shell=True; give subprocess a list.")
            if keyword.arg == "allow_pickle" and not off:
                problems.append(f"{file}:{node.lineno}: allow_pickle=True unpickles.")
    return problems


CHECKS = [broken_floors, broken_styles_of_import, broken_homes, dangers]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("file", FILES)
def test_the_house_rules_hold(file, check):
    problems = check(file, (PACKAGE / file).read_text())
    assert not problems, "\n".join(problems)


def test_a_room_stands_on_one_floor():
    assert sum(map(len, FLOORS)) == len(FLOOR)
    assert {room for rooms in HOMES.values() for room in rooms} <= FLOOR.keys()


@pytest.mark.parametrize(
    ("check", "file", "text", "said"),
    [
        (broken_floors, "timing.py", "from brainspeech.records import Segment", "its sibling"),
        (broken_floors, "timing.py", "def f():\n    from brainspeech import batches", "above it"),
        (broken_floors, "models/conv.py", "import brainspeech.losses.clip", "its sibling"),
        (broken_floors, "models/conv.py", "from ..losses import clip", "its sibling"),
        (broken_floors, "models/__init__.py", "X = {'a': 'brainspeech.losses.clip:Clip'}", "its sibling"),
        (broken_floors, "records.py", "if TYPE_CHECKING:\n    from brainspeech.train import fit", "above it"),
        (broken_floors, "utils.py", "", "on no floor"),
        (broken_floors, "cli.py", "from brainspeech.utils import x", "on no floor"),
        (broken_styles_of_import, "train.py", "from .records import Segment", "relatively"),
        (broken_styles_of_import, "models/conv.py", "from ..similarity import dot", "relatively"),
        (broken_styles_of_import, "models/conv.py", "from brainspeech.models.layers import X", "of its own room"),
        (broken_homes, "batches.py", "import mne.io", "whose home is"),
        (broken_homes, "batches.py", "def f():\n    from accelerate import Accelerator", "whose home is train"),
        (dangers, "cache.py", "import pickle", "runs code"),
        (dangers, "cache.py", "eval('1')", "literal_eval"),
        (dangers, "cache.py", "torch.load('x')", "unpickles"),
        (dangers, "cache.py", "from torch import load", "unpickles"),
        (dangers, "cache.py", "subprocess.run('ls', shell=True)", "shell=True"),
        (dangers, "cache.py", "np.load('x', allow_pickle=True)", "unpickles"),
        (dangers, "cache.py", "tarfile.open('x').extractall('y')", "extractall"),
    ],
)
def test_a_broken_rule_is_seen(check, file, text, said):
    assert said in "\n".join(check(file, text))


@pytest.mark.parametrize(
    ("check", "file", "text"),
    [
        (broken_floors, "train.py", "from brainspeech import __version__, retrieval"),
        (broken_floors, "models/conv.py", "from .layers import X\nfrom brainspeech import similarity"),
        (broken_styles_of_import, "models/conv.py", "from . import layers\nfrom .layers import X"),
        (broken_styles_of_import, "models/__init__.py", "X = {'a': 'brainspeech.models.conv:Conv'}"),
        (broken_homes, "report/figures.py", "import matplotlib.pyplot"),
        (dangers, "cache.py", "encoder.eval()\nnp.load('x', allow_pickle=False)\nre.compile('x')"),
    ],
)
def test_a_kept_rule_is_not_complained_about(check, file, text):
    assert check(file, text) == []


LIGHT = [name for name in ("brainspeech", "brainspeech.cli") if name == "brainspeech" or "cli.py" in FILES or "cli/__init__.py" in FILES]


@pytest.mark.parametrize("module", LIGHT)
def test_the_first_import_is_light(module):
    """--help and tab completion must not wait seconds for libraries that they do not use."""
    script = f"import json, sys; import {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert "brainspeech" in loaded
    assert not set(HEAVY) & set(loaded)


def test_a_run_starts_without_what_only_its_end_needs():
    """Figures and regressions are made when a fit is over: their libraries would keep its first step waiting."""
    script = "import sys, brainspeech.flow; print(*sorted({'sklearn', 'matplotlib', 'transformers', 'braindecode'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
