"""Files over HTTP: many at once, continued where they were cut, and in their place only when size and digest are right.

A file is written beside its place as ``.NAME.part`` and renamed when it is whole. A part that a killed run left is continued by the next
one; the digest decides whether the halves belong together.

What may pass (a timeout, a busy server, a cut transfer) is tried again, and said on stderr each time. What will not (no such host, nobody
listens there) fails at once, and so do all other files of that host, unless the host has answered before in the same run: then the network
is gone for a while.
"""

from __future__ import annotations

import datetime
import email.utils
import errno
import hashlib
import os
import re
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import filelock
import requests
from tqdm import tqdm

# git-blob-sha1 is what git calls a file: the SHA-1 of "blob SIZE\0" and the content. hexdigits of each.
ALGORITHMS = {"sha256": 64, "sha1": 40, "md5": 32, "git-blob-sha1": 40}

CHUNK = 1 << 20  # bytes hashed at a time
PIECE = 1 << 16  # bytes written at a time; what a cut can lose
TIMEOUT = (20.0, 120.0)  # s to connect, s between two bytes
LONGEST_WAIT = 600.0  # s; a server that asks for more has failed
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
# A machine that says no, or to which no way leads: asking again does not help.
NOWHERE = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL})
LOCK = ".brainspeech-download.lock"
say = tqdm.write  # a line above the bar


@dataclass(frozen=True)
class Entry:
    """A file of a dataset.

    Parameters
    ----------
    path : str
        Where it stands under the dataset's folder, with forward slashes.
    size : int or None
        Bytes; None where nobody has stated it.
    algorithm, digest : str
        One of ``ALGORITHMS`` and lower-case hexdigits; both empty where nobody has stated one.
    url : str
        Where it comes from; https, or http of this machine.
    """

    path: str
    size: int | None
    algorithm: str
    digest: str
    url: str

    def __post_init__(self) -> None:
        if problem := unsafe(self.path):
            raise ValueError(f"A listing names {self.path!r}: {problem}.")
        if self.size is not None and self.size < 0:
            raise ValueError(f"{self.path}: a size is 0 or more bytes, got {self.size}.")
        if (self.algorithm or self.digest) and not re.fullmatch(f"[0-9a-f]{{{ALGORITHMS.get(self.algorithm, 0)}}}", self.digest or "-"):
            raise ValueError(
                f"{self.path}: got the digest {self.algorithm}:{self.digest}; expected the lower-case hexdigits of "
                f"one of {', '.join(ALGORITHMS)}, or nothing."
            )
        parts = urlsplit(self.url)
        here = parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost"}
        if not (here or (parts.scheme == "https" and parts.hostname)):
            raise ValueError(f"{self.path}: got the url {self.url!r}; expected https://...")


@dataclass(frozen=True)
class Outcome:
    """What became of one file: ``there`` already, ``fetched``, or ``failed`` with the reason."""

    path: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file: ``missing``, ``size``, ``digest`` or ``refused`` (it leaves the dataset's folder)."""

    path: str
    kind: str
    expected: str = ""
    got: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}" + (f", expected {self.expected}, got {self.got}" if self.expected else "")


# ------------------------------------------------------------------------------------------------------------------- places and digests


def unsafe(path: str) -> str:
    """Say what is wrong with a path that stands in a listing; empty if it stays inside its folder on every system."""
    if re.search(r'[\x00-\x1f\\:*?"<>|]', path):
        return "it has a character that some system cannot store"
    if not path or path != PurePosixPath(path).as_posix() or path.startswith("/") or {".", ".."} & set(path.split("/")):
        return "it is not a plain path below the dataset's folder"
    return ""


def place(root: str | os.PathLike, path: str) -> Path:
    """Give the place of a listed file under a folder.

    Raises
    ------
    ValueError
        If it would be outside: an absolute path, ``..``, or a symlink inside the folder that points out of it.
    """
    target = Path(root) / path
    if unsafe(path) or not target.resolve().is_relative_to(Path(root).resolve()):
        raise ValueError(f"{path} leaves the folder {root} (to {target.resolve()}). Replace the link by a folder, or move the whole root.")
    return target


def digest_of(path: str | os.PathLike, algorithm: str, *, seen: Callable[[int], None] = lambda n: None) -> str:
    """Hash a file; ``seen`` is told of every chunk's bytes."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"{path}: digest must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}.")
    with open(path, "rb") as file:
        if algorithm == "git-blob-sha1":
            hasher = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False)
        else:
            hasher = hashlib.new(algorithm, usedforsecurity=False)
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            seen(len(chunk))
    return hasher.hexdigest()


def fault_of(entry: Entry, root: str | os.PathLike, *, seen: Callable[[int], None] = lambda n: None) -> Fault | None:
    """Compare a file with its entry; None if all that the entry states is right. A file of another size is not read."""
    try:
        target = place(root, entry.path)
    except ValueError:
        return Fault(entry.path, "refused", "a file inside the dataset's folder", "a link that leaves it")
    return _fault(entry, target, seen)


def _fault(entry: Entry, path: Path, seen: Callable[[int], None]) -> Fault | None:
    if not path.is_file():
        return Fault(entry.path, "missing")
    size = path.stat().st_size
    if entry.size is not None and size != entry.size:
        return Fault(entry.path, "size", f"{entry.size} bytes", f"{size} bytes")
    if not entry.algorithm:
        seen(size)
        return None
    digest = digest_of(path, entry.algorithm, seen=seen)
    return None if digest == entry.digest else Fault(entry.path, "digest", f"{entry.algorithm} {entry.digest}", digest)


def missing_bytes(entries: Iterable[Entry], root: str | os.PathLike) -> tuple[int, int]:
    """Count the bytes still to come, and the files of unknown size among them, by size on disk alone."""
    need = unknown = 0
    for entry in entries:
        target = place(root, entry.path)
        if target.is_file() and (entry.size is None or target.stat().st_size == entry.size):
            continue
        part = _part(target)
        if entry.size is None:
            unknown += 1
        else:
            need += max(entry.size - (part.stat().st_size if part.is_file() else 0), 0)
    return need, unknown


def check_space(need: int, root: str | os.PathLike) -> None:
    """Raise RuntimeError if the disk of a folder (made or not yet) has less than ``need`` bytes free."""
    folder = Path(root).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if need > free:
        raise RuntimeError(
            f"{root}: {human(need)} are still to come and {human(free)} are free. Free some space, give another folder (--root DIR), "
            "or fetch less (--subjects first:3, --what events,audio)."
        )


def human(n: float) -> str:
    """Say a number of bytes as people do, in powers of 1000."""
    power = next((p for p in range(4) if n < 1000 ** (p + 1)), 4)
    return f"{n / 1000**power:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


# --------------------------------------------------------------------------------------------------------------------------- many files


class _Failed(Exception):
    """This file cannot be had; the others can."""


class _Unreachable(_Failed):
    """No file of this host can be had."""


class _Stopped(Exception):
    """The run is ending; what is there of a file is kept."""


class Bar:
    """One progress bar that all threads move."""

    def __init__(self, total: int, desc: str, *, progress: bool):
        self._bar = tqdm(total=total, desc=desc, unit="B", unit_scale=True, disable=not progress)
        self._lock = threading.Lock()

    def add(self, n: int) -> None:
        """Move by n bytes; back if a file starts again."""
        with self._lock:
            self._bar.update(n)

    def close(self) -> None:
        self._bar.close()


def fetch(
    entries: Sequence[Entry],
    root: str | os.PathLike,
    *,
    workers: int = 8,
    tries: int = 6,
    pause: float = 1.0,
    progress: bool = True,
) -> list[Outcome]:
    """Bring files into a folder; those that are there and right are left alone.

    Parameters
    ----------
    entries : sequence of Entry
        The files.
    root : path
        The dataset's folder; made if it is not there.
    workers : int
        Transfers at once.
    tries : int
        How often a transfer may fail in a row without a byte more than before. After each it waits, twice as long as the last time, or as
        long as the server says (Retry-After).
    pause : float
        The first wait, in seconds.
    progress : bool
        Show one bar for the whole.

    Returns
    -------
    list of Outcome
        One for each entry, in their order. A file that cannot be had does not stop the others.

    Raises
    ------
    ValueError
        If an entry's place is outside the folder.
    RuntimeError
        If the disk is too small, or another download runs on this folder.
    ConnectionError
        If nothing came, since no host could be reached.
    """
    root = Path(root)
    for entry in entries:
        place(root, entry.path)
    check_space(missing_bytes(entries, root)[0], root)
    root.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(place(root, LOCK), timeout=0):
            return _fetch_all(entries, root, workers=workers, tries=tries, pause=pause, progress=progress)
    except filelock.Timeout as error:
        raise RuntimeError(f"Another download runs on {root}. Wait for it, or end it; the same command then goes on.") from error


def _fetch_all(entries: Sequence[Entry], root: Path, *, workers: int, tries: int, pause: float, progress: bool) -> list[Outcome]:
    stop, local, hosts = threading.Event(), threading.local(), _Hosts()
    bar = Bar(sum(entry.size or 0 for entry in entries), "download", progress=progress)
    sessions: list[requests.Session] = []

    def one(entry: Entry) -> Outcome:
        if stop.is_set():
            raise _Stopped
        if not hasattr(local, "session"):  # a session is not meant for two threads
            local.session = requests.Session()
            sessions.append(local.session)
        try:
            return _fetch_one(entry, root, _Transfer(local.session, stop, bar, tries, pause, hosts))
        except _Failed as error:
            return Outcome(entry.path, "failed", str(error))
        except OSError as error:
            if error.errno in FULL:
                raise RuntimeError(f"The disk of {root} is full. Free some space; the same command then goes on.") from error
            return Outcome(entry.path, "failed", str(error))

    pool = ThreadPoolExecutor(workers)
    try:
        futures = [pool.submit(one, entry) for entry in entries]
        for future in as_completed(futures):
            future.result()
    finally:  # an interrupt from the keyboard or a full disk: the threads put down what they hold
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        for session in sessions:
            session.close()
        bar.close()
    outcomes = [future.result() for future in futures]
    if hosts.dead and not any(outcome.state == "fetched" for outcome in outcomes):
        n = sum(outcome.state == "failed" for outcome in outcomes)
        reasons = "; ".join(sorted(hosts.dead.values()))
        raise ConnectionError(f"{reasons}. {n} of {len(entries)} files are still to come; the same command fetches them.")
    return outcomes


def _part(target: Path) -> Path:
    return target.parent / f".{target.name}.part"


# ----------------------------------------------------------------------------------------------------------------------------- one file


@dataclass
class _Hosts:
    """What is known of the hosts of a run: those that have answered, and why the others cannot be reached."""

    answered: set[str] = field(default_factory=set)
    dead: dict[str, str] = field(default_factory=dict)

    def check(self, url: str) -> None:
        """Raise _Unreachable for a host that is known to be dead."""
        host = _host(url)
        if host in self.dead:
            raise _Unreachable(f"{self.dead[host]} ({url})")

    def bury(self, url: str, error: requests.RequestException) -> None:
        """Raise _Unreachable if an error says that a host that never answered cannot be reached at all.

        A host that sends on to another has answered: of a storage that cannot be reached only this file fails, for other files may lie
        elsewhere.
        """
        host, failed = _host(url), _failed_host(url, error)
        if failed != host:
            self.answered.add(host)
        reason = _unreachable(failed, error)
        if reason and failed not in self.answered:
            if failed == host:
                self.dead[host] = reason
            raise _Unreachable(f"{reason} ({url})") from error


@dataclass
class _Transfer:
    """One file on its way; ``validator`` is the server's name (ETag or date) of the content that the part is of."""

    session: requests.Session
    stop: threading.Event
    bar: Bar
    tries: int
    pause: float
    hosts: _Hosts = field(default_factory=_Hosts)
    validator: str = ""

    def wait(self, failures: int, asked: float, said: str = "") -> None:
        """Say why, and wait before the next try; at once if the run is stopped."""
        seconds = max(asked, min(self.pause * 2 ** (failures - 1), 60.0))
        if said:
            say(f"{said}; next try in {seconds:.0f} s (failure {failures} of {self.tries} in a row without a byte more)", file=sys.stderr)
        if self.stop.wait(seconds):
            raise _Stopped

    def count(self, entry: Entry, n: int) -> None:
        """Move the bar; a file of unknown size is not in its total, so it does not move it."""
        if entry.size is not None:
            self.bar.add(n)

    def discard(self, entry: Entry, part: Path) -> None:
        """Throw a part away."""
        self.count(entry, -_size(part))
        self.validator = ""
        part.unlink(missing_ok=True)


def _fetch_one(entry: Entry, root: Path, transfer: _Transfer) -> Outcome:
    target = place(root, entry.path)
    if target.is_file() and _fault(entry, target, lambda n: None) is None:
        transfer.count(entry, entry.size or 0)
        return Outcome(entry.path, "there")
    transfer.hosts.check(entry.url)
    part = place(root, _part(Path(entry.path)).as_posix())
    part.parent.mkdir(parents=True, exist_ok=True)
    if not entry.algorithm:
        part.unlink(missing_ok=True)  # nothing could tell whether an old half belongs to the new one
    transfer.count(entry, _size(part))
    for _ in range(2):  # the first may have continued a half of something else
        _receive(entry, part, transfer)
        fault = _fault(entry, part, lambda n: None)
        if fault is None:
            os.replace(part, target)
            return Outcome(entry.path, "fetched")
        transfer.discard(entry, part)
    raise _Failed(f"the server twice sent other bytes than the listing states: {fault} ({entry.url})")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _receive(entry: Entry, part: Path, transfer: _Transfer) -> None:
    """Fill a part until the server has no more to send."""
    failures, most = 0, _size(part)
    while entry.size is None or _size(part) != entry.size or not part.exists():
        if entry.size is not None and _size(part) > entry.size:
            transfer.discard(entry, part)
        asked = 0.0
        try:
            done, asked, problem = _request(entry, part, transfer)
            if done:
                return
        except requests.exceptions.ChunkedEncodingError:
            problem = "the connection was cut"
        except (requests.ConnectionError, requests.Timeout) as error:
            transfer.hosts.bury(entry.url, error)
            problem = f"the connection broke ({_innermost(error)})"
        if _size(part) > most:
            failures, most = 0, _size(part)
        failures += 1
        if failures >= transfer.tries:
            raise _Failed(f"{problem}, {failures} times in a row without a byte more ({entry.url})")
        of = "" if entry.size is None else f" of {human(entry.size)}"
        transfer.wait(failures, asked, f"{entry.path}: {problem}, {human(_size(part))}{of} are here")


def _request(entry: Entry, part: Path, transfer: _Transfer) -> tuple[bool, float, str]:
    """Ask for the rest of a file and write what comes; (is it whole, seconds the server asks to wait, what went wrong)."""
    start = _size(part)
    headers = {"Accept-Encoding": "identity"}  # a compressed answer has another size and other offsets
    if start:
        headers["Range"] = f"bytes={start}-"
        if transfer.validator:
            headers["If-Range"] = transfer.validator
    with _get(entry, headers, transfer.session) as response:
        transfer.hosts.answered |= {_host(entry.url), _host(response.url)}
        status = response.status_code
        if status in BUSY:
            return False, _retry_after(response), f"the server is busy (HTTP {status})"
        if status == 416:  # nothing from this byte on: the part is whole, or it is not of this file
            if _total(response) == start:
                return True, 0.0, ""
            transfer.discard(entry, part)
            return False, 0.0, f"the server has no byte {start} (HTTP 416)"
        if status not in (200, 206):
            hint = {401: " wants an account", 403: " refuses", 404: " has no such file", 410: " has it no more"}.get(status, " answers")
            raise _Failed(f"the server{hint} (HTTP {status}, {entry.url})")
        total = _total(response)
        if total is not None and entry.size is not None and total != entry.size:
            raise _Failed(f"the server has {total} bytes, the listing states {entry.size} ({entry.url})")
        if status == 206 and _first(response) != start:
            transfer.discard(entry, part)
            return False, 0.0, "the server sent another range than asked"
        if status == 200 and start:  # no ranges, or the file changed since the first half: from the first byte again
            transfer.discard(entry, part)
        etag = response.headers.get("ETag", "")
        transfer.validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
        with open(part, "ab") as file:
            for chunk in response.iter_content(PIECE):
                if transfer.stop.is_set():
                    raise _Stopped
                file.write(chunk)
                transfer.count(entry, len(chunk))
    whole = entry.size if total is None else total
    if whole is not None and _size(part) < whole:
        return False, 0.0, "the connection was cut"
    return True, 0.0, ""


def _get(entry: Entry, headers: dict[str, str], session: requests.Session) -> requests.Response:
    """Ask for a file; an address that is none, as a redirect may lead to, is this file's failure."""
    try:
        return session.get(entry.url, headers=headers, stream=True, timeout=TIMEOUT)
    except ValueError as error:  # of urllib, urllib3 or requests
        raise _Failed(f"the server sends on to what is no web address: {error} ({entry.url})") from error


def _host(url: str) -> str:
    parts = urlsplit(url)
    return (parts.hostname or "") + (f":{parts.port}" if parts.port else "")


def _failed_host(url: str, error: requests.RequestException) -> str:
    """Give the host that failed: a redirect may lead to another than the one that was asked."""
    return _host(str(error.request.url or url)) if error.request is not None else _host(url)


def _unreachable(host: str, error: requests.RequestException) -> str:
    """Say why asking a host again would not help; empty if it may."""
    causes = _causes(error)
    cure = "check the network, or give a folder that has the files already (--root DIR)"
    if isinstance(error, requests.exceptions.ProxyError):
        host, cure = f"the proxy on the way to {host}", "check the network and the environment's HTTPS_PROXY and HTTP_PROXY"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"cannot resolve {host}: {cure}"
    if any(isinstance(cause, OSError) and cause.errno in NOWHERE for cause in causes):
        return f"cannot connect to {host}: {cure}"
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return f"{host} shows a certificate that this machine does not accept: check its clock, and whose network this is"
    return ""


def _causes(error: BaseException) -> list[BaseException]:
    """List an error and what it came from; requests and urllib3 wrap what the system said three times."""
    causes: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        cause = todo.pop()
        if cause is not None and not any(cause is known for known in causes):
            causes.append(cause)
            todo += [cause.__cause__, cause.__context__]
    return causes


def _innermost(error: requests.RequestException) -> str:
    """Name an error by what the system said, where it said something."""
    named = [cause for cause in _causes(error) if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException)]
    return str(named[-1]) or type(named[-1]).__name__ if named else type(error).__name__


def _total(response: requests.Response) -> int | None:
    """Read the whole file's size from an answer's headers."""
    if response.status_code in (206, 416):
        found = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
        return int(found[1]) if found else None
    length = response.headers.get("Content-Length", "")
    plain = response.headers.get("Content-Encoding", "identity") == "identity"
    return int(length) if length.isdecimal() and plain else None


def _first(response: requests.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _retry_after(response: requests.Response) -> float:
    """Read the seconds that a busy server asks for, from a number or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        seconds = float(text)
    else:
        try:
            when = email.utils.parsedate_to_datetime(text)
        except (TypeError, ValueError):
            return 0.0
        if when.tzinfo is None:
            when = when.replace(tzinfo=datetime.UTC)
        seconds = max(when.timestamp() - time.time(), 0.0)
    if seconds > LONGEST_WAIT:
        raise _Failed(f"the server asks to come back in {seconds:.0f} s ({response.url})")
    return seconds
