"""Downloads from a server of this machine that misbehaves in every way that servers do."""

from __future__ import annotations

import dataclasses
import email.utils
import hashlib
import json
import re
import shlex
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import filelock
import pytest
import requests

from brainspeech import download, manifests
from brainspeech.download import Entry, fault_of, fetch


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``; before that, for each request of a path, one of ``server.faults[path]``."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        server = self.server
        path = self.path.lstrip("/")
        with server.lock:
            server.requests.append((path, self.headers.get("Range"), self.headers.get("If-Range")))
            fault = server.faults[path].pop(0) if server.faults[path] else {}
        time.sleep(fault.get("silent", 0.0))
        if "status" in fault or path not in server.files:
            return self.answer(fault.get("status", 404), b"no", fault.get("headers", {}))
        body = fault.get("body", server.files[path])
        etag = fault.get("etag", f'"{hashlib.md5(body).hexdigest()}"')
        headers = {"ETag": etag} if etag else {}
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and server.ranges and self.headers.get("If-Range", etag) == etag:
            start, status = int(asked[1]), 206
            if start >= len(body):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            headers["Content-Range"] = f"bytes {start + fault.get('shift', 0)}-{len(body) - 1}/{len(body)}"
        return self.answer(status, body[start:], headers, cut=fault.get("cut"), claim=fault.get("claim"))

    def answer(self, status: int, body: bytes, headers: dict, *, cut: int | None = None, claim: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if claim is None else claim))
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


class Server(ThreadingHTTPServer):
    """What the handler serves and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[dict]] = defaultdict(list)
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.ranges = True
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that hung up: it does so on purpose."""

    def entry(self, path: str, body: bytes, algorithm: str = "sha256", *, size: int | None = -1) -> Entry:
        """Serve a file and give the entry that lists it."""
        self.files[path] = body
        url = f"http://127.0.0.1:{self.server_address[1]}/{path}"
        return Entry(path, len(body) if size == -1 else size, algorithm, digest(body, algorithm), url)


def digest(body: bytes, algorithm: str) -> str:
    if algorithm == "git-blob-sha1":
        return hashlib.sha1(f"blob {len(body)}\0".encode() + body).hexdigest()
    return hashlib.new(algorithm, body).hexdigest() if algorithm else ""


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


BODY = bytes(range(256)) * 4096  # 1 MiB: sixteen pieces


def get(entries, root, **options):
    return fetch(entries, root, progress=False, pause=0.001, **options)


def states(outcomes):
    return [outcome.state for outcome in outcomes]


def leftovers(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob(".*.part"))


# ------------------------------------------------------------------------------------------------------------------------ plain cases


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5", "git-blob-sha1", ""])
def test_files_come_whole_and_the_second_time_none_is_asked_for(server, tmp_path, algorithm):
    entries = [server.entry(f"sub-{i:02d}/x.eeg", BODY[: i * 1000], algorithm) for i in range(12)]
    assert states(get(entries, tmp_path)) == ["fetched"] * 12
    assert all((tmp_path / entry.path).read_bytes() == server.files[entry.path] for entry in entries)
    assert leftovers(tmp_path) == []
    server.requests.clear()
    assert states(get(entries, tmp_path)) == ["there"] * 12
    assert server.requests == []


def test_a_file_of_unknown_size_is_checked_by_its_digest(server, tmp_path):
    entry = server.entry("events.tsv", BODY, "git-blob-sha1", size=None)
    assert states(get([entry], tmp_path)) == ["fetched"]
    (tmp_path / "events.tsv").write_bytes(BODY[:-1])
    assert fault_of(entry, tmp_path).kind == "digest"
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert fault_of(entry, tmp_path) is None


def test_a_file_that_is_there_and_wrong_is_fetched_again(server, tmp_path):
    entries = [server.entry("size", b"abc"), server.entry("digest", b"abc"), server.entry("right", b"abc")]
    for name, body in {"size": b"ab", "digest": b"abx", "right": b"abc"}.items():
        (tmp_path / name).write_bytes(body)
    assert states(get(entries, tmp_path)) == ["fetched", "fetched", "there"]
    assert {(tmp_path / entry.path).read_bytes() for entry in entries} == {b"abc"}


# ------------------------------------------------------------------------------------------------------------------- cut and continued


def test_a_cut_transfer_goes_on_where_it_was_cut(server, tmp_path):
    entry = server.entry("a", BODY)
    server.faults["a"] = [{"cut": 300_000}, {"cut": 500_000}]
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert (tmp_path / "a").read_bytes() == BODY
    etag = f'"{hashlib.md5(BODY).hexdigest()}"'
    assert server.requests[0] == ("a", None, None)
    assert all(asked and asked.startswith("bytes=") and condition == etag for _, asked, condition in server.requests[1:])
    assert len(server.requests) == 3


def test_without_ranges_it_starts_again(server, tmp_path):
    server.ranges = False
    entry = server.entry("a", BODY)
    server.faults["a"] = [{"cut": 300_000}]
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_server_without_ranges_that_always_cuts_is_given_up(server, tmp_path):
    server.ranges = False
    entry = server.entry("a", BODY)
    server.faults["a"] = [{"cut": 300_000}] * 50
    (outcome,) = get([entry], tmp_path, tries=4)
    assert outcome.state == "failed"
    assert "4 times in a row" in outcome.reason
    assert len(server.requests) == 4


def test_a_file_that_changed_between_two_halves_is_not_glued_together(server, tmp_path):
    entry = server.entry("a", BODY, "", size=None)
    server.faults["a"] = [{"cut": 300_000, "body": BODY[::-1]}]
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_range_that_was_not_asked_for_is_not_used(server, tmp_path):
    entry = server.entry("a", BODY)
    server.faults["a"] = [{"cut": 300_000}, {"shift": -1}]
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_part_of_a_killed_run_is_continued(server, tmp_path):
    entry = server.entry("sub/a", BODY)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".a.part").write_bytes(BODY[:1000])
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert server.requests == [("sub/a", "bytes=1000-", None)]
    assert (tmp_path / "sub" / "a").read_bytes() == BODY


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(BODY), b"x" * (len(BODY) + 1)])
def test_a_part_of_something_else_is_found_out(server, tmp_path, left):
    entry = server.entry("a", BODY)
    (tmp_path / ".a.part").write_bytes(left)
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert (tmp_path / "a").read_bytes() == BODY


@pytest.mark.parametrize("left", [BODY, BODY + b"x"])
def test_416_means_whole_or_wrong(server, tmp_path, left):
    entry = server.entry("a", BODY, size=None)
    (tmp_path / ".a.part").write_bytes(left)
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.requests[0][1] == f"bytes={len(left)}-"
    assert len(server.requests) == (1 if left == BODY else 2)


def test_a_server_that_answers_416_to_everything_is_given_up(server, tmp_path):
    entry = server.entry("a", BODY)
    server.faults["a"] = [{"status": 416}] * 50
    (outcome,) = get([entry], tmp_path, tries=3)
    assert "HTTP 416" in outcome.reason
    assert len(server.requests) == 3


def test_an_old_part_of_a_file_without_a_digest_is_not_trusted(server, tmp_path):
    entry = server.entry("a", BODY, "")
    (tmp_path / ".a.part").write_bytes(b"x" * 1000)
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert (tmp_path / "a").read_bytes() == BODY


def test_an_interrupt_keeps_what_is_there_and_the_next_run_goes_on(server, tmp_path, monkeypatch):
    entries = [server.entry(f"f{i}", BODY) for i in range(6)]
    server.faults["f3"] = [{"cut": 300_000}, *[{"status": 503, "headers": {"Retry-After": "60"}}] * 9]
    wait = download._Transfer.wait

    def interrupted(self, failures, asked, said):
        if asked:
            raise KeyboardInterrupt
        wait(self, failures, asked, said)

    monkeypatch.setattr(download._Transfer, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get(entries, tmp_path, workers=2)
    assert not (tmp_path / "f3").exists()
    assert (tmp_path / ".f3.part").stat().st_size >= 262_144
    server.faults.clear()
    server.requests.clear()
    outcomes = get(entries, tmp_path)
    assert set(states(outcomes)) <= {"there", "fetched"}
    assert all((tmp_path / entry.path).read_bytes() == BODY for entry in entries)
    assert next(asked for path, asked, _ in server.requests if path == "f3").startswith("bytes=")


# --------------------------------------------------------------------------------------------------------------------- wrong and busy


def test_wrong_bytes_once_are_fetched_again_and_twice_are_a_failure(server, tmp_path):
    once, twice = server.entry("once", BODY), server.entry("twice", BODY)
    server.faults["once"] = [{"body": BODY[::-1]}]
    server.faults["twice"] = [{"body": BODY[::-1]}] * 9
    outcomes = get([once, twice], tmp_path)
    assert states(outcomes) == ["fetched", "failed"]
    assert twice.digest in outcomes[1].reason
    assert digest(BODY[::-1], "sha256") in outcomes[1].reason
    assert not (tmp_path / "twice").exists()
    assert leftovers(tmp_path) == []


def test_another_size_is_seen_before_the_bytes_are_fetched(server, tmp_path):
    entry = dataclasses.replace(server.entry("a", BODY), size=7)
    (outcome,) = get([entry], tmp_path)
    assert f"the server has {len(BODY)} bytes, the listing states 7" in outcome.reason
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("status", "said"), [(404, "no such file"), (403, "refuses"), (401, "account"), (418, "HTTP 418")])
def test_a_file_that_cannot_be_had_is_named_and_the_rest_comes(server, tmp_path, status, said):
    entries = [server.entry(f"f{i}", b"abc") for i in range(5)]
    server.faults["f2"] = [{"status": status}] * 9
    outcomes = get(entries, tmp_path)
    assert states(outcomes) == ["fetched", "fetched", "failed", "fetched", "fetched"]
    assert said in outcomes[2].reason
    assert sum(path == "f2" for path, *_ in server.requests) == 1  # asking again would not help


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, tmp_path, status):
    entry = server.entry("a", BODY)
    server.faults["a"] = [{"status": status}] * 3
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert len(server.requests) == 4


def test_a_server_that_stays_busy_is_given_up_with_its_status(server, tmp_path):
    entry = server.entry("a", BODY)
    server.faults["a"] = [{"status": 503}] * 50
    (outcome,) = get([entry], tmp_path, tries=3)
    assert "HTTP 503" in outcome.reason
    assert len(server.requests) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_kept(server, tmp_path, form):
    entry = server.entry("a", BODY)
    asked = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    server.faults["a"] = [{"status": 503, "headers": {"Retry-After": asked}}]
    start = time.monotonic()
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert 0.9 < time.monotonic() - start < 3


def test_a_server_that_asks_for_an_hour_has_failed(server, tmp_path):
    entry = server.entry("a", BODY)
    server.faults["a"] = [{"status": 503, "headers": {"Retry-After": "3600"}}]
    (outcome,) = get([entry], tmp_path)
    assert "come back in 3600 s" in outcome.reason


# ------------------------------------------------------------------------------------------------------------------------ no network


@pytest.fixture
def waits(monkeypatch) -> list[int]:
    """The waits of a download, which none of them is to have."""
    waited: list[int] = []
    monkeypatch.setattr(download._Transfer, "wait", lambda self, failures, asked, said: waited.append(failures))
    monkeypatch.setenv("NO_PROXY", "*")
    return waited


def closed_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def elsewhere(path: str, host: str) -> Entry:
    return Entry(path, 3, "", "", f"{'http' if '127.' in host else 'https'}://{host}/{path}")


def test_a_host_without_a_name_fails_at_once(tmp_path, waits):
    entries = [elsewhere(f"f{i}", "speech-data.invalid") for i in range(40)]
    said = r"cannot resolve speech-data\.invalid: check the network.*--root DIR.*40 of 40 files are still to come"
    with pytest.raises(ConnectionError, match=said):
        get(entries, tmp_path)
    assert waits == []


def test_a_refused_connection_fails_at_once(tmp_path, waits):
    host = f"127.0.0.1:{closed_port()}"
    with pytest.raises(ConnectionError, match=rf"cannot connect to {host}: check the network"):
        get([elsewhere("a", host)], tmp_path)
    assert waits == []


def test_a_proxy_that_is_not_there_is_named(tmp_path, waits, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(ConnectionError, match=r"cannot connect to the proxy on the way to speech-data\.invalid: .*HTTPS_PROXY"):
        get([elsewhere("a", "speech-data.invalid")], tmp_path)
    assert waits == []


def test_a_dead_host_is_asked_once_and_the_files_of_the_others_come(server, tmp_path, waits, monkeypatch):
    asked: list[str] = []
    inner = requests.Session.get
    monkeypatch.setattr(requests.Session, "get", lambda self, url, **options: (asked.append(url), inner(self, url, **options))[1])
    (tmp_path / "f1").write_bytes(b"abc")
    entries = [*(elsewhere(f"f{i}", "speech-data.invalid") for i in range(9)), server.entry("here", b"abc")]
    outcomes = get(entries, tmp_path, workers=1)
    assert states(outcomes) == ["failed", "there", *["failed"] * 7, "fetched"]
    assert all("cannot resolve speech-data.invalid" in o.reason and "https://" in o.reason for o in outcomes if o.state == "failed")
    assert len(asked) == 2
    assert waits == []


@pytest.mark.parametrize("options", [{"workers": 1}, {}])
def test_a_redirect_to_a_dead_storage_is_a_failure_of_that_file(server, tmp_path, waits, options):
    entries = [server.entry(f"f{i}", b"abc") for i in range(12)]
    dead = f"127.0.0.1:{closed_port()}"
    for i in (0, 5):
        server.faults[f"f{i}"] = [{"status": 302, "headers": {"Location": f"http://{dead}/f{i}"}}]
    outcomes = get(entries, tmp_path, **options)
    assert [o.path for o in outcomes if o.state == "failed"] == ["f0", "f5"]
    assert outcomes[0].reason.startswith(f"cannot connect to {dead}: check the network")
    assert outcomes[0].reason.endswith(f"({entries[0].url})")
    assert states(outcomes).count("fetched") == 10
    assert waits == []


def test_files_that_all_lie_on_a_dead_storage_fail_by_name(server, tmp_path, waits):
    entries = [server.entry(f"f{i}", b"abc") for i in range(3)]
    for entry in entries:
        server.faults[entry.path] = [{"status": 302, "headers": {"Location": f"http://127.0.0.1:{closed_port()}/"}}]
    assert states(get(entries, tmp_path, workers=1)) == ["failed"] * 3
    assert len(server.requests) == 3
    assert waits == []


def refuse(monkeypatch, url: str, times: int) -> list[int]:
    """Let the first connections for a url find nobody; gives how many are still to be refused."""
    inner, left = requests.Session.send, [times]

    def send(self, request, **options):
        if request.url != url or not left[0]:
            return inner(self, request, **options)
        left[0] -= 1
        request.url = f"http://127.0.0.1:{closed_port()}/"
        try:
            return inner(self, request, **options)
        finally:
            request.url = url

    monkeypatch.setattr(requests.Session, "send", send)
    return left


def test_a_storage_that_has_answered_before_is_waited_for(server, tmp_path, monkeypatch):
    entries = [server.entry("a", b"abc"), server.entry("b", b"abcd")]
    storage = f"http://localhost:{server.server_address[1]}"
    for entry in entries:
        server.faults[entry.path] = [{"status": 302, "headers": {"Location": f"{storage}/{entry.path}"}}]
    server.faults["b"] *= 3  # asked again, it sends on again
    left = refuse(monkeypatch, f"{storage}/b", 2)
    assert states(get(entries, tmp_path, workers=1)) == ["fetched", "fetched"]
    assert left == [0]


@pytest.mark.parametrize("location", ["http://[bad", "http://a..b/", "http://127.0.0.1:99999/x", "ftp://127.0.0.1/x"])
def test_a_redirect_to_no_address_is_a_failure_of_that_file(server, tmp_path, location):
    entries = [server.entry(f"f{i}", b"abc") for i in range(3)]
    server.faults["f1"] = [{"status": 302, "headers": {"Location": location}}]
    outcomes = get(entries, tmp_path)
    assert states(outcomes) == ["fetched", "failed", "fetched"]
    assert outcomes[1].reason.startswith("the server sends on to what is no web address: ")
    assert outcomes[1].reason.endswith(f"({entries[1].url})")


def test_a_host_that_has_answered_before_is_waited_for(server, tmp_path, capsys, monkeypatch):
    """The network is gone in the middle of a run: what was refused once is not refused for good."""
    entries = [server.entry("a", BODY), server.entry("b", BODY)]
    refuse(monkeypatch, entries[1].url, 3)
    assert states(get(entries, tmp_path, workers=1)) == ["fetched", "fetched"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert re.fullmatch(r"b: the connection broke \(.*refused\), 0 B of 1\.0 MB are here; next try in 0 s \(failure 3 of 6 .*\)", said[2])


def test_every_retry_is_said(server, tmp_path, capsys):
    entry = server.entry("a", BODY)
    server.faults["a"] = [{"status": 503}, {"cut": 300_000}, {"status": 500}]
    assert states(get([entry], tmp_path)) == ["fetched"]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in said] == [
        "a: the server is busy (HTTP 503), 0 B of 1.0 MB are here",
        "a: the connection was cut, 262.1 kB of 1.0 MB are here",
        "a: the server is busy (HTTP 500), 262.1 kB of 1.0 MB are here",
    ]
    assert "failure 1 of 6" in said[1]  # what came since the last one starts the count again


def test_a_server_that_says_nothing_is_asked_again(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (1.0, 0.1))
    entry = server.entry("a", BODY)
    server.faults["a"] = [{"silent": 0.3}]
    assert states(get([entry], tmp_path)) == ["fetched"]
    assert "a: the connection broke (" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------------- folder and disk


def test_a_link_that_leaves_the_folder_is_refused(server, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "a").write_bytes(b"mine")
    (root / "sub-01").symlink_to(outside)
    entry = server.entry("sub-01/a", b"abc")
    with pytest.raises(ValueError, match="leaves the folder"):
        get([entry], root)
    assert (outside / "a").read_bytes() == b"mine"
    assert fault_of(entry, root).kind == "refused"
    assert server.requests == []


@pytest.mark.parametrize("link", ["a", ".a.part"])
def test_a_file_that_is_a_link_out_is_refused(server, tmp_path, link):
    root = tmp_path / "root"
    root.mkdir()
    (root / link).symlink_to(tmp_path / "elsewhere")
    entry = server.entry("a", b"abc")
    with pytest.raises(ValueError, match="leaves the folder"):
        get([entry], root)
    assert not (tmp_path / "elsewhere").exists()


def test_a_root_that_is_a_link_and_links_inside_are_fine(server, tmp_path):
    real = tmp_path / "real"
    (real / "objects").mkdir(parents=True)
    (real / "objects" / "k").write_bytes(b"abc")
    (real / "a").symlink_to("objects/k")  # as in a datalad clone
    (tmp_path / "root").symlink_to(real)
    entries = [server.entry("a", b"abc"), server.entry("b", b"abc")]
    assert states(get(entries, tmp_path / "root")) == ["there", "fetched"]
    assert (real / "b").read_bytes() == b"abc"


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(server, tmp_path, monkeypatch):
    entries = [server.entry("a", BODY), server.entry("b", BODY)]
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / ".a.part").write_bytes(BODY[:500_000])
    free = [2 * len(BODY) - 500_001]
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free[0]}))
    with pytest.raises(RuntimeError, match=r"1\.6 MB are still to come and 1\.6 MB are free.*--subjects"):
        get(entries, tmp_path / "root")
    assert server.requests == []
    free[0] += 1
    assert states(get(entries, tmp_path / "root")) == ["fetched", "fetched"]


def test_a_full_disk_ends_the_run(server, tmp_path, monkeypatch):
    entries = [server.entry(f"f{i}", BODY) for i in range(4)]

    def full(source, target):
        raise OSError(download.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.os, "replace", full)
    with pytest.raises(RuntimeError, match=r"disk of .* is full"):
        get(entries, tmp_path)


def test_two_downloads_do_not_share_a_folder(server, tmp_path):
    with filelock.FileLock(tmp_path / download.LOCK), pytest.raises(RuntimeError, match="Another download runs"):
        get([server.entry("a", BODY)], tmp_path)


def test_a_folder_in_a_files_place_is_a_failure_of_that_file(server, tmp_path):
    (tmp_path / "a" / "x").mkdir(parents=True)
    outcomes = get([server.entry("a", BODY), server.entry("b", BODY)], tmp_path)
    assert states(outcomes) == ["failed", "fetched"]


# --------------------------------------------------------------------------------------------------- a dataset: plan, download, verify

SIDE = {"README": b"read me", "participants.tsv": b"participant_id\nsub-01\nsub-02\n", ".github/x.yml": b"ci", "stimuli/a.wav": b"RIFF"}
OWN = {"sub-{}/eeg/sub-{}_eeg.eeg": BODY, "sub-{}/eeg/sub-{}_events.tsv": b"onset\n0\n"}
TOML = """
title = "A dataset"
version = "1"
licence = "CC0-1.0"
access = "open"
doi = "10.1/x"
homepage = "https://example.org"
citation = "@misc{{x, title = {{A dataset}}}}"
subject = '^sub-\\d+/'
published = "2,9"
[declared]
subjects = 2
[urls.local]
template = "http://127.0.0.1:{port}/{{path}}"
tried = true
[what]
events = ["sub-*_events.tsv"]
audio = ["stimuli/*"]
recordings = ["sub-*"]
about = ["README", "participants.tsv"]
"""


@pytest.fixture
def dataset(server, tmp_path) -> Path:
    """A manifest whose files the server has; one of them has no digest in it, one neither digest nor size."""
    server.files = SIDE | {name.format(s, s): body for s in ("01", "02") for name, body in OWN.items()}
    rows = []
    for path, body in sorted(server.files.items()):
        size, algorithm = len(body), "git-blob-sha1" if path.endswith(".tsv") else "sha256"
        row = [path, str(size), algorithm, digest(body, algorithm), "local"]
        if path == "README":
            row[1:4] = ["", "", ""]
        if path == "stimuli/a.wav":
            row[2:4] = ["", ""]
        rows.append("\t".join(row) + "\n")
    (tmp_path / "x.tsv").write_text("path\tsize\talgorithm\tdigest\turl\n" + "".join(rows))
    (tmp_path / "x.toml").write_text(TOML.format(port=server.server_address[1]))
    return tmp_path / "x.toml"


def test_a_dataset_is_downloaded_verified_damaged_and_repaired(server, dataset, tmp_path):
    root = tmp_path / "my data"
    told: list[str] = []
    text, status = manifests.download_command(dataset, root, progress=False, tell=told.append)
    assert status == 0
    assert text == "7 files fetched, 0 were there, 0 failed."
    assert len(told) == 1
    assert told[0].count("CC0-1.0") == told[0].count("@misc{x") == 1
    assert "1 files whose size nobody has stated" in told[0]
    assert not (root / ".github").exists()

    found = manifests.verify(dataset, root, progress=False)
    assert found.ok
    assert (found.n_files, found.n_right, found.size_only, found.existence_only) == (7, 5, 1, 1)
    assert manifests.verify_command(dataset, root, progress=False)[1] == 0

    (root / "sub-01/eeg/sub-01_eeg.eeg").write_bytes(BODY[:-1])
    (root / "sub-02/eeg/sub-02_eeg.eeg").write_bytes(BODY[::-1])
    (root / "participants.tsv").unlink()
    text, status = manifests.verify_command(dataset, root, json=True)
    report = json.loads(text)
    assert status == 1
    assert report["missing"] == ["participants.tsv"]
    assert [fault["path"] for fault in report["wrong_size"]] == ["sub-01/eeg/sub-01_eeg.eeg"]
    assert report["wrong_digest"][0] == {
        "path": "sub-02/eeg/sub-02_eeg.eeg",
        "expected": "sha256 " + digest(BODY, "sha256"),
        "got": digest(BODY[::-1], "sha256"),
    }
    text, _ = manifests.verify_command(dataset, root, progress=False)
    for line in ("MISSING participants.tsv", "SIZE sub-01/eeg/sub-01_eeg.eeg: expected", "DIGEST sub-02/eeg/sub-02_eeg.eeg: expected"):
        assert line in text

    words = shlex.split(report["repair"])
    assert text.endswith(report["repair"])
    assert words[:2] == ["brainspeech", "download"]
    result = manifests.download(words[2], words[words.index("--root") + 1], progress=False)
    assert sum(outcome.state == "fetched" for outcome in result.outcomes) == 3
    assert manifests.verify(dataset, root, progress=False).ok


def test_subjects_and_what_are_kept_to_and_come_back_in_the_repair(server, dataset, tmp_path):
    root = tmp_path / "root"
    manifests.download_command(dataset, root, "2", "events", progress=False, tell=lambda text: None)
    assert {path for path, *_ in server.requests} == {"README", "participants.tsv", "sub-02/eeg/sub-02_events.tsv"}
    found = manifests.verify(dataset, root, progress=False)
    assert found.absent_subjects == ("sub-01",)
    assert "nothing of 1 subjects: sub-01" in found.text()
    assert "MISSING sub-02/eeg/sub-02_eeg.eeg" in found.text()
    assert "sub-01/" not in found.text()
    assert manifests.verify(dataset, root, subjects="2", what="events", progress=False).ok
    (root / "README").unlink()
    repair = manifests.verify(dataset, root, subjects="published", what="events", progress=False).repair
    assert repair.endswith("--subjects published --what events")


def test_failures_are_listed_by_name_with_the_command_that_goes_on(server, dataset, tmp_path):
    del server.files["stimuli/a.wav"], server.files["README"]
    text, status = manifests.download_command(dataset, tmp_path / "root", progress=False, tell=lambda text: None)
    assert status == 1
    assert "5 files fetched, 0 were there, 2 failed." in text
    assert "FAILED README: the server has no such file (HTTP 404" in text
    assert "FAILED stimuli/a.wav: the server has no such file (HTTP 404" in text
    assert f"brainspeech download {dataset} --root {tmp_path / 'root'}" in text


def test_the_bar_counts_every_stated_byte_once(server, dataset, tmp_path, monkeypatch):
    counts: list[tuple[int, int]] = []
    close = download.Bar.close
    monkeypatch.setattr(download.Bar, "close", lambda bar: (counts.append((bar._bar.n, bar._bar.total)), close(bar)))
    monkeypatch.setattr(download, "tqdm", lambda **options: Count(options["total"]))
    server.faults["sub-01/eeg/sub-01_eeg.eeg"] = [{"cut": 300_000}, {"body": BODY[::-1], "etag": ""}]
    result = manifests.download(dataset, tmp_path / "root", progress=False, pause=0.001)
    assert not result.failed
    assert counts == [(counts[0][1], counts[0][1])]
    manifests.verify(dataset, tmp_path / "root", progress=False)
    assert counts[1][0] == counts[1][1] + len(SIDE["README"])  # its size is not stated, so not in the total


class Count:
    """A progress bar that only counts."""

    def __init__(self, total: int):
        self.n, self.total = 0, total

    def update(self, n: int) -> None:
        self.n += n

    def close(self) -> None:
        pass


def test_a_verified_link_out_of_the_folder_is_named(dataset, server, tmp_path):
    root = tmp_path / "root"
    manifests.download(dataset, root, progress=False)
    (root / "README").unlink()
    (tmp_path / "elsewhere").write_bytes(SIDE["README"])
    (root / "README").symlink_to(tmp_path / "elsewhere")
    found = manifests.verify(dataset, root, progress=False)
    assert [(fault.path, fault.kind) for fault in found.faults] == [("README", "refused")]
    assert "REFUSED README: expected a file inside the dataset's folder, got a link that leaves it" in found.text()


def test_verify_wants_a_folder(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="brainspeech download"):
        manifests.verify(dataset, tmp_path / "nothing")
