"""A saved folder comes back as it was, or says what is wrong with it."""

import json
import socket

import numpy as np
import pytest
import torch
from hub_server import TOKEN, serving
from torch import nn

from brainspeech import __version__, hub, models

SMALL = {"n_subjects": 2, "n_features": 3, "n_virtual": 4, "hidden": 5, "depth": 2, "n_harmonics": 2}


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return models.build("conv", **(SMALL | changes))


def inputs():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 6, 50, generator=generator),
        torch.rand(2, 6, 2, generator=generator),
        torch.tensor([0, 1]),
    )


class Tied(nn.Module):
    """Two names of one weight, and a view into another."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("row", self.first.bias.detach()[:2])


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_saved_equals_loaded(tmp_path, name):
    torch.manual_seed(0)
    sizes = {"n_subjects": 2, "n_features": 3, "n_channels": 6, "n_times": 50}
    module = build() if name == "conv" else models.build(name, **{size: sizes[size] for size in models.needs(name)})
    module.train()
    module(*inputs())  # moves the running statistics of the norms, which have to travel too
    config = {"feature": {"name": "mel"}, "preprocessing": {"sfreq": 120.0}, "subjects": ["d/sub-1", "d/sub-2"]}
    extra = {"mean": torch.arange(3.0)}
    hub.save(tmp_path / "model", module, config=config, statistics={"target_mean": 0.1}, extra=extra, card="# A model\n")
    saved = hub.load(tmp_path / "model")
    assert not saved.module.training
    assert torch.equal(saved.module(*inputs()), module.eval()(*inputs()))
    assert saved.config.items() >= config.items()
    assert saved.config["model"] == name
    assert saved.config["version"] == __version__
    assert saved.statistics == {"target_mean": 0.1}
    assert torch.equal(saved.extra["mean"], extra["mean"])
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted(hub.FILES)


def test_a_save_replaces_the_one_before(tmp_path):
    hub.save(tmp_path / "model", build(seed=0), config={}, extra={"a": torch.ones(1)}, statistics={"a": 1})
    hub.save(tmp_path / "model", build(seed=1), config={"subjects": ["x"]})
    saved = hub.load(tmp_path / "model")
    assert torch.equal(saved.module(*inputs()), build(seed=1).eval()(*inputs()))
    assert (saved.extra, saved.statistics, saved.config["subjects"]) == ({}, None, ["x"])
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    hub.save(tmp_path / "model", build(seed=0), config={})
    monkeypatch.setattr(hub, "write_tensors", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        hub.save(tmp_path / "model", build(seed=1), config={})
    assert torch.equal(hub.load(tmp_path / "model").module(*inputs()), build(seed=0).eval()(*inputs()))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("n_renames", [0, 1])
def test_a_kill_between_the_renames_loses_nothing(tmp_path, monkeypatch, n_renames):
    """The old folder is moved away, then the new one moved in: a process can end before either."""
    hub.save(tmp_path / "model", build(seed=0), config={})
    rename = hub.Path.rename
    done: list[hub.Path] = []

    def die(path, target):
        if len(done) == n_renames:
            raise SystemExit
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(hub.Path, "rename", die)
        with pytest.raises(SystemExit):
            hub.save(tmp_path / "model", build(seed=1), config={})
    assert torch.equal(hub.load(tmp_path / "model").module(*inputs()), build(seed=0).eval()(*inputs()))
    hub.save(tmp_path / "model", build(seed=1), config={})
    assert torch.equal(hub.load(tmp_path / "model").module(*inputs()), build(seed=1).eval()(*inputs()))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_discard_removes_all_of_it(tmp_path):
    hub.save(tmp_path / "model", build(), config={})
    hub.discard(tmp_path / "model")
    hub.discard(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_tied_weights_are_written_once_and_come_back(tmp_path):
    module = Tied()
    hub.write_tensors(tmp_path / "x.safetensors", module.state_dict())
    once = sum(t.numel() for name, t in module.state_dict().items() if name != "second.weight") * 4
    assert (tmp_path / "x.safetensors").stat().st_size < once + 9 * 4 + 600
    state = hub.read_tensors(tmp_path / "x.safetensors")
    assert state["first.weight"].data_ptr() == state["second.weight"].data_ptr()
    other = Tied()
    hub.load_state(other, state, where="x")
    for name, tensor in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_every_kind_of_tensor_comes_back(tmp_path):
    tensors = {
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 2),
        "empty too": torch.zeros(0, 2),
        "bytes": torch.get_rng_state(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "strided": torch.arange(12).view(3, 4).T,
    }
    hub.write_tensors(tmp_path / "x.safetensors", tensors)
    back = hub.read_tensors(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def forge(path, config):
    """Write a config.json as whoever knows how would."""
    config = {key: value for key, value in config.items() if key != "seal"}
    path.write_text(json.dumps(config | {"seal": hub.seal(config)}))


def test_weights_of_another_architecture_are_told_apart(tmp_path):
    hub.save(tmp_path / "model", build(), config={})
    path = tmp_path / "model" / hub.CONFIG
    config = json.loads(path.read_text())
    forge(path, config | {"model_config": config["model_config"] | {"n_features": 4}})
    with pytest.raises(RuntimeError, match=r"head\.2\.bias: got \(3,\) torch\.float32, expected \(4,\) torch\.float32"):
        hub.load(tmp_path / "model")
    forge(path, config | {"model_config": config["model_config"] | {"depth": 3}})
    with pytest.raises(RuntimeError, match=r"blocks\.2\.conv\.bias: missing, expected \(5,\)"):
        hub.load(tmp_path / "model")
    forge(path, config | {"model_config": config["model_config"] | {"depth": 1}})
    with pytest.raises(RuntimeError, match=r"blocks\.1\.conv\.bias: got \(5,\), but the model has none"):
        hub.load(tmp_path / "model")
    forge(path, config | {"model": "other"})
    with pytest.raises(RuntimeError, match="expected a model among braindecode, conv"):
        hub.load(tmp_path / "model")


def test_damage_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        hub.load(tmp_path / "model")
    hub.save(tmp_path / "model", build(), config={})
    weights = tmp_path / "model" / hub.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError, match=r"weights\.safetensors is damaged"):
        hub.load(tmp_path / "model")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors is missing"):
        hub.load(tmp_path / "model")
    (tmp_path / "model" / hub.CONFIG).write_text("[1")
    with pytest.raises(RuntimeError, match=r"config\.json is damaged"):
        hub.load(tmp_path / "model")


@pytest.mark.parametrize("name", [hub.WEIGHTS, hub.STATISTICS, hub.EXTRA])
def test_damage_that_leaves_the_size_is_seen(tmp_path, name):
    """One bit of a file that is still a well-formed safetensors or JSON."""
    hub.save(tmp_path / "model", build(), config={}, statistics={"target_mean": 0.25}, extra={"a": torch.ones(4)})
    path = tmp_path / "model" / name
    content = bytearray(path.read_bytes())
    if name == hub.STATISTICS:
        content[content.index(b"0.25") + 3] = ord("7")
    else:
        content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"{name} is damaged or of another save: its SHA-256 is \w{{64}}, config\.json says \w{{64}}"):
        hub.load(tmp_path / "model")


def test_a_changed_config_is_seen(tmp_path):
    path = hub.save(tmp_path / "model", build(), config={"subjects": ["a", "b"]}) / hub.CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(config.items()))))  # as it was, in another order
    hub.load(tmp_path / "model")
    path.write_text(json.dumps(config | {"subjects": ["b", "a"]}))
    with pytest.raises(RuntimeError, match=r"config\.json is damaged or was changed since it was saved"):
        hub.load(tmp_path / "model")


def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the working directory"):
        hub.save(".", build(), config={})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_digests_loads_and_forged_ones_do_not(tmp_path):
    hub.save(tmp_path / "model", build(), config={})
    path = tmp_path / "model" / hub.CONFIG
    config = json.loads(path.read_text())
    assert config["digests"] == {hub.WEIGHTS: hub.sha256(tmp_path / "model" / hub.WEIGHTS)}
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in ("digests", "seal")}))
    assert torch.equal(hub.load(tmp_path / "model").module(*inputs()), build().eval()(*inputs()))
    forge(path, config | {"digests": {"../../etc/passwd": "0"}})
    with pytest.raises(RuntimeError, match="digests are not those of saved files"):
        hub.load(tmp_path / "model")


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a module that models\.build made .* got Linear"):
        hub.save(tmp_path / "model", nn.Linear(2, 2), config={})
    with pytest.raises(ValueError, match="must be JSON"):
        hub.save(tmp_path / "model", build(), config={"subjects": np.zeros(2)})
    with pytest.raises(ValueError, match="must be JSON"):
        hub.save(tmp_path / "model", build(), config={}, statistics={"mean": float("nan")})
    with pytest.raises(ValueError, match="model, version are written by save"):
        hub.save(tmp_path / "model", build(), config={"version": 1, "model": "conv"})
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("do not lose me")
    with pytest.raises(ValueError, match=r"found chapter\.txt"):
        hub.save(tmp_path / "thesis", build(), config={})
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "do not lose me"
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "README.md").write_text("do not lose me")
    with pytest.raises(ValueError, match=r"found README\.md"):
        hub.save(tmp_path / "repository", build(), config={})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="it is a file"):
        hub.save(tmp_path / "file", build(), config={})


# ------------------------------------------------------------------------------------------------------------------------ on a hub


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub on this machine, and nobody logged in."""
    with serving() as hub_server:
        monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
        monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
        yield hub_server


def test_pushed_equals_pulled_and_nothing_else_comes(server, tmp_path):
    folder = hub.save(tmp_path / "model", build(), config={"subjects": ["x"]}, statistics={"a": 1}, card="# A model\n")
    (folder / "notes.pkl").write_bytes(b"not for others")
    address = hub.push(folder, "lab/decoder", token=TOKEN, private=True)
    assert address == f"{server.url}/lab/decoder/commit/{server.sha('lab/decoder')}"
    assert sorted(server.repos["lab/decoder"]) == [hub.CARD, hub.CONFIG, hub.STATISTICS, hub.WEIGHTS]
    assert server.private == {"lab/decoder"}
    server.repos["lab/decoder"] |= {"pytorch_model.bin": b"code", "sub/config.json": b"{}", "run.py": b"code", "x.safetensors": b""}
    place = hub.pull("lab/decoder", token=TOKEN, cache_dir=tmp_path / "cache")
    assert sorted(p.relative_to(place).as_posix() for p in place.rglob("*")) == [hub.CARD, hub.CONFIG, hub.STATISTICS, hub.WEIGHTS]
    assert torch.equal(hub.load(place).module(*inputs()), build().eval()(*inputs()))
    assert not [line for line in server.asked if line.endswith((".bin", ".py", "x.safetensors", "sub/config.json"))]


def test_a_damaged_folder_is_not_pushed(server, tmp_path):
    folder = hub.save(tmp_path / "model", build(), config={})
    content = bytearray((folder / hub.WEIGHTS).read_bytes())
    content[-2] ^= 1
    (folder / hub.WEIGHTS).write_bytes(content)
    with pytest.raises(RuntimeError, match="is damaged"):
        hub.push(folder, "lab/decoder", token=TOKEN)
    assert server.repos == {}


def test_errors_of_a_hub_say_what_to_do(server, tmp_path, monkeypatch):
    folder = hub.save(tmp_path / "model", build(), config={})
    with pytest.raises(PermissionError, match=r"lab/decoder at http://127.*nobody is logged in.*hf auth login"):
        hub.push(folder, "lab/decoder")
    with pytest.raises(PermissionError, match="the token may not do this"):
        hub.push(folder, "others/decoder", token=TOKEN)
    with pytest.raises(FileNotFoundError, match="no such repository or revision, or it is private"):
        hub.pull("lab/nothing", cache_dir=tmp_path / "cache", token=TOKEN)
    server.repos["lab/other"] = {"README.md": b"# Something else"}
    with pytest.raises(FileNotFoundError, match=r"lab/other holds no config\.json"):
        hub.pull("lab/other", cache_dir=tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="no such repository or revision"):
        hub.pull("lab/other", revision="v9", cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"A repository is owner/name, got 'decoder'"):
        hub.pull("decoder")
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ConnectionError, match=r"cannot be reached.*check the network"):
            hub.pull("lab/decoder", cache_dir=tmp_path / "cache")
        with pytest.raises(ConnectionError, match="cannot be reached"):
            hub.push(folder, "lab/decoder", token=TOKEN)
