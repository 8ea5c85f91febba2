"""Work over the workers of a dask cluster that runs already."""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib

from .failures import Outcome, explained, raise_again
from .worker import Sealed, Shared, call_on_a_cluster, recipe_files

CONNECT = 10.0  # s that a dask scheduler has to answer
WORKERS = 60.0  # s that the first worker of a cluster has to come


def on_a_cluster(
    work: Callable[[Any, Any], Any], shared: Any, items: Mapping[str, Any], scheduler: str | os.PathLike, folders: Sequence[str]
) -> Generator[Outcome, None, None]:
    """Give out the items to the workers of a scheduler, which have to see the folders; give what became of each as it is done."""
    if not items:
        return
    with _connected(scheduler) as client, _mark(folders) as seen:
        try:
            token, sent = uuid.uuid4().hex, Sealed(Shared(recipe_files(), shared))
            calls = [(work, token, sent, name, item, seen) for name, item in items.items()]
            outcomes = _one_by_one(client, calls) if sum(client.ncores().values()) == 1 else _by_joblib(client, calls, sent)
        except Exception as error:
            raise explained(error) from error
        try:
            for outcome in outcomes:
                if outcome.kind:
                    raise_again(outcome)
                yield outcome
        except (ValueError, OSError, RuntimeError):
            raise
        except Exception as error:
            raise explained(error) from error
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that tasks were given up
                outcomes.close()


def _by_joblib(client: Any, calls: Sequence[tuple[Any, ...]], sent: Sealed) -> Generator[Outcome, None, None]:
    with joblib.parallel_config("dask", client=client, scatter=[sent]):
        parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        return parallel(joblib.delayed(call_on_a_cluster)(*call) for call in calls)


def _one_by_one(client: Any, calls: Sequence[tuple[Any, ...]]) -> Generator[Outcome, None, None]:
    """Have a cluster of one core, so far, do the calls: joblib would take that for no cluster and do them here."""
    import distributed

    futures = [client.submit(call_on_a_cluster, *call, pure=False) for call in calls]
    try:
        with client.as_current():
            done = distributed.as_completed(futures)
        for future in done:
            yield future.result()
    finally:
        client.cancel(futures)


@contextmanager
def _connected(scheduler: str | os.PathLike) -> Iterator[Any]:
    """Connect with a dask scheduler that has a worker."""
    try:
        import distributed
    except ImportError as error:
        raise RuntimeError(
            f"The scheduler {scheduler} needs dask, which is not installed here: pip install 'brainspeech[cluster]'"
        ) from error
    address = _address(scheduler)
    try:
        client = distributed.Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"No dask scheduler answers at {address} within {CONNECT:g} s ({error}). Start one: dask scheduler --scheduler-file FILE"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS)
        except TimeoutError as error:
            raise ConnectionError(
                f"The dask scheduler at {address} has had no worker for {WORKERS:g} s. Start some: dask worker --scheduler-file FILE"
            ) from error
        _check_versions(client)
        noise = logging.getLogger("tornado.application")
        before = noise.disabled
        try:
            yield client
        except BaseException:
            noise.disabled = True  # of results that are on their way and that nobody waits for any more
            raise
        finally:
            client.close()
            noise.disabled = before


def _check_versions(client: Any) -> None:
    """Refuse a cluster without this version of brainspeech: its scheduler would wait for ever."""
    found = client.get_versions(packages=["brainspeech"])
    mine = found["client"]["packages"]["brainspeech"]
    others = {"scheduler": found["scheduler"], **{f"worker {address}": versions for address, versions in found["workers"].items()}}
    for where, versions in others.items():
        there = versions["packages"].get("brainspeech") if versions else None
        if there != mine:
            raise RuntimeError(f"The {where} of the dask cluster has brainspeech {there}, expected {mine} as here: use one environment.")


def _address(scheduler: str | os.PathLike) -> str:
    """Give the address that a scheduler file, or an address, says."""
    text = os.fspath(scheduler)
    if "://" in text:
        return text
    path = Path(text)
    if not path.is_file():
        if re.fullmatch(r"[\w.-]+:\d+", text):
            return f"tcp://{text}"
        raise FileNotFoundError(
            f"The scheduler file {text} does not exist. Give the file of dask scheduler --scheduler-file FILE, or an address (tcp://HOST:PORT)."
        )
    try:
        return str(json.loads(path.read_text())["address"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{text} is no scheduler file of dask: expected JSON with an address in it ({error!r}).") from error


@contextmanager
def _mark(folders: Sequence[str]) -> Iterator[list[str]]:
    """Put a file into the first folder, and give what workers have to see: the file, and the other folders."""
    if not folders:
        yield []
        return
    mark = Path(folders[0]) / f".seen-{uuid.uuid4().hex}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield [str(mark), *folders[1:]]
    finally:
        mark.unlink(missing_ok=True)
