"""Work over processes and over a dask cluster: the same results, and what happens when a worker fails, dies or is told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import joblib
import pytest
import spreading_work
from spreading_work import fail, look
from tiny_runs import TINY

from brainspeech import cli, spreading
from brainspeech.cache import Cache
from brainspeech.features import compute_tracks
from brainspeech.spreading import Kept, spread

ITEMS = {f"item {n}": n for n in range(6)}
# A recipe with a dataset of its own, which no other process can import by its name.
RECIPE_PY = """
import dataclasses

from brainspeech import recipe as recipes
from brainspeech.datasets.simulated import SimulatedDataset


class Mine(SimulatedDataset):
    def read_raw(self, recording):
        raw = super().read_raw(recording)
        return raw.set_annotations(None)


def load(root=None, **options):
    return Mine(**options)


recipe = dataclasses.replace(recipes.change(recipes.load("demo"), {settings!r}), load=load)
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a recipe, the cache that one process fills, and what it says."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "recipe.py").write_text(RECIPE_PY.format(settings=[*TINY]))
    assert cli.main(["prepare", str(folder / "recipe.py"), "--cache", str(folder / "cache"), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The scheduler file of a dask cluster of two processes, with a folder of their own."""
    import distributed

    folder = tmp_path_factory.mktemp("cluster")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, dashboard_address=None, local_directory=str(folder), silence_logs=50
    ) as running:
        file = folder / "scheduler.json"
        file.write_text(f'{{"address": "{running.scheduler_address}"}}')
        yield file


def content(cache):
    """Give all bytes of a cache."""
    return {path.relative_to(cache): path.read_bytes() for path in Path(cache).rglob("*") if path.is_file()}


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------------------ on this machine


def test_one_job_is_a_loop_in_this_process():
    found = spread(look, {"factor": 2}, ITEMS, progress=False)
    assert {name: result[0] for name, result in found.items()} == {name: 2 * n for name, n in ITEMS.items()}
    assert {result[1] for result in found.values()} == {os.getpid()}


def test_processes_share_the_cores_and_keep_what_they_load(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    found = spread(look, {"factor": 2}, ITEMS, n_jobs=2, progress=False)
    assert list(found) == list(ITEMS)
    assert [result[0] for result in found.values()] == [2 * n for n in ITEMS.values()]
    pids = {result[1] for result in found.values()}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert {result[2] for result in found.values()} == {str(max(1, joblib.cpu_count() // 2))}
    assert len({result[3] for result in found.values()}) == len(pids)
    assert not any(alive(pid) for pid in pids)


def test_there_is_one_bar_and_it_counts_sizes(capsys):
    spread(look, {"factor": 1}, {"a": 1, "b": 2}, n_jobs=2, sizes={"a": 3, "b": 4}, done=2, desc="count", unit="thing")
    assert "9/9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("value", ValueError, "item 3: not as it should be"),
        ("key", RuntimeError, "item 3: KeyError"),
        ("file", FileNotFoundError, "item 3:"),
    ],
)
def test_an_error_names_its_item_and_has_the_traceback_of_the_worker(how, kind, said):
    with pytest.raises(kind, match=said) as caught:
        spread(fail, {"at": 3, "how": how}, ITEMS, n_jobs=2, progress=False)
    assert "spreading_work.py" in str(caught.value.__cause__)


def test_a_killed_worker_is_an_error_that_says_so():
    with pytest.raises(RuntimeError, match=r"A worker was killed; .* memory runs out\. Use fewer .*--n-jobs"):
        spread(fail, {"at": 3, "how": "kill"}, ITEMS, n_jobs=2, progress=False)
    assert list(spread(look, {"factor": 1}, ITEMS, n_jobs=2, progress=False)) == list(ITEMS)


def test_what_cannot_be_sent_is_an_error_that_says_so():
    with pytest.raises(RuntimeError, match=r"cannot be sent to another process .*n_jobs=1"):
        spread(look, {"factor": threading.Lock()}, ITEMS, n_jobs=2, progress=False)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_workers_first(tmp_path, signum):
    script = f"""
import sys
from spreading_work import write
from brainspeech import spreading, stopping
try:
    with stopping.at_once():
        spreading.spread(write, {str(tmp_path)!r}, {{str(n): n for n in range(6)}}, n_jobs=2, progress=False)
except stopping.Stopped as error:
    print(error, file=sys.stderr)
    sys.exit(128 + error.signum)
"""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", script], env=here, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(list(tmp_path.iterdir())) == 2
    os.killpg(process.pid, signum)  # as a terminal does, and a queue
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signum
    assert said.strip() == f"stopped by {'SIGTERM' if signum == signal.SIGTERM else 'Ctrl-C'}. {spreading.KEPT}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_jobs", [0, -2, True, 1.5, "all"])
def test_a_wrong_number_of_jobs_is_refused(n_jobs):
    with pytest.raises(ValueError, match=r"n_jobs must be a number of processes, or -1"):
        spread(look, {}, ITEMS, n_jobs=n_jobs)


# ---------------------------------------------------------------------------------------------------------- recordings and features


def test_two_processes_fill_a_cache_with_the_same_bytes(study, tmp_path, capsys):
    arguments = ["prepare", str(study / "recipe.py"), "--cache", str(tmp_path / "cache"), "--n-jobs", "2"]
    assert cli.main(arguments) == 0
    assert content(tmp_path / "cache") == content(study / "cache")
    said = capsys.readouterr().err
    assert "4/4" in said
    assert "mel" in said
    assert not list(tmp_path.rglob(".*"))
    assert cli.main(arguments) == 0
    assert "interval" not in capsys.readouterr().err  # nothing is left to do


def test_a_feature_is_loaded_once_by_each_worker(tmp_path):
    wanted = [(f"s{n}", start, start + 3.0) for n in range(4) for start in (0.0, 3.0)]
    alone, spread_out = Cache(tmp_path / "alone"), Cache(tmp_path / "spread")
    made = {}
    for cache, n_jobs in ((alone, 1), (spread_out, 2)):
        (tmp_path / f"{n_jobs}").mkdir()
        feature = spreading_work.Loaded(tmp_path / f"{n_jobs}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("brainspeech.features.base.BATCH_SECONDS", 3.0)
            made[n_jobs], _ = compute_tracks(
                feature, wanted, spreading_work.read, fingerprint=str, cache=cache, progress=False, n_jobs=n_jobs
            )
    assert list(made[1]) == list(made[2]) == sorted(wanted)
    assert content(alone.root) == content(spread_out.root)
    assert len(list((tmp_path / "1").iterdir())) == 1
    assert 1 <= len(list((tmp_path / "2").iterdir())) <= 2


def test_what_is_computed_on_a_gpu_stays_in_this_process(tmp_path):
    feature = spreading_work.Loaded(tmp_path)
    feature.device = "cuda:0"
    compute_tracks(
        feature, [("s1", 0.0, 3.0), ("s2", 0.0, 3.0)], spreading_work.read, fingerprint=str, cache=Cache(tmp_path / "cache"), n_jobs=2
    )
    assert [path.name.split("-")[1] for path in tmp_path.glob("loaded-*")] == [str(os.getpid())]


def test_an_entry_of_another_machine_is_waited_for(tmp_path):
    kept = Kept(tmp_path, patience=10.0)
    timer = threading.Timer(0.3, lambda: Cache(tmp_path).get_or_make("kind", "key", lambda: ({}, {"a": 1})))
    timer.start()
    assert kept.get_or_make("kind", "key") == ({}, {"a": 1})
    timer.join()
    with pytest.raises(spreading.Missing, match=r"is not there\. Do all workers use this cache folder"):
        Kept(tmp_path).get_or_make("kind", "another key")


# ------------------------------------------------------------------------------------------------------------------ on a dask cluster


def test_a_cluster_fills_a_cache_with_the_same_bytes(study, cluster, tmp_path, capsys):
    command = ["prepare", str(study / "recipe.py"), "--cache", str(tmp_path / "cache"), "--quiet", "--scheduler", str(cluster)]
    assert cli.main(command) == 0
    assert content(tmp_path / "cache") == content(study / "cache")


def test_a_cluster_does_one_item_at_a_time_with_all_threads_of_a_worker(cluster, tmp_path):
    found = spread(look, {"factor": 3}, ITEMS, scheduler=cluster, folders=[tmp_path], progress=False)
    assert [result[0] for result in found.values()] == [3 * n for n in ITEMS.values()]
    pids = {result[1] for result in found.values()}
    assert os.getpid() not in pids
    assert len({result[3] for result in found.values()}) == len(pids)
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_of_one_core_does_the_work(tmp_path):
    import distributed

    options = {"dashboard_address": ":0", "local_directory": str(tmp_path / "dask"), "silence_logs": 50}
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, **options) as running:
        found = spread(look, {"factor": 3}, ITEMS, scheduler=running.scheduler_address, folders=[tmp_path], progress=False)
        assert [result[0] for result in found.values()] == [3 * n for n in ITEMS.values()]
        assert os.getpid() not in {result[1] for result in found.values()}
        with pytest.raises(ValueError, match="item 3: not as it should be"):
            spread(fail, {"at": 3, "how": "value"}, ITEMS, scheduler=running.scheduler_address, progress=False)


def test_an_error_on_a_cluster_names_its_item(cluster):
    with pytest.raises(ValueError, match="item 3: not as it should be") as caught:
        spread(fail, {"at": 3, "how": "value"}, ITEMS, scheduler=cluster, progress=False)
    assert "spreading_work.py" in str(caught.value.__cause__)


def test_a_worker_that_does_not_see_the_cache_names_it(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "touch", lambda self: None)  # as if the folder were another one there
    with pytest.raises(RuntimeError, match=rf"The worker tcp://.* does not see {tmp_path}/\.seen-.*--cache DIR"):
        spread(look, {"factor": 1}, ITEMS, scheduler=cluster, folders=[tmp_path], progress=False)


def test_no_dask_and_no_scheduler_are_errors_that_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(spreading.cluster, "CONNECT", 0.5)
    with pytest.raises(FileNotFoundError, match=r"nothing\.json does not exist\. Give the file of dask scheduler --scheduler-file"):
        spread(look, {}, ITEMS, scheduler=tmp_path / "nothing.json", progress=False)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json is no scheduler file of dask"):
        spread(look, {}, ITEMS, scheduler=tmp_path / "other.json", progress=False)
    with pytest.raises(ConnectionError, match=r"No dask scheduler answers at tcp://127\.0\.0\.1:9 .*dask scheduler --scheduler-file"):
        spread(look, {}, ITEMS, scheduler="127.0.0.1:9", progress=False)
    with pytest.raises(ValueError, match="give one of the two"):
        spread(look, {}, ITEMS, scheduler="127.0.0.1:9", n_jobs=2)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RuntimeError, match=r"pip install 'brainspeech\[cluster\]'"):
        spread(look, {}, ITEMS, scheduler="127.0.0.1:9", progress=False)
