"""How long does it take to say how a whole dataset is split? Events, blocks, windows and counts, from event files alone.

MEG-MASC: the event files that are there, copied under other subjects' names until there are 196. Brennan 2019: the 42 recordings with
side files. For each the seconds of every step, and of all of ``describe`` and ``audit``::

    python benchmarks/events.py --root DIR

DIR holds ``gwilliams2022`` and ``brennan2019``; one that is not there is left out.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import pandas as pd

from brainspeech import datasets, segments
from brainspeech.segments import SegmentConfig

N_SUBJECTS = 27
ONE_SESSION = (3, 12, 16, 20, 21)


def tile(source: Path, target: Path) -> None:
    """Copy the event files and sidecars of the subjects that are there to all subjects and sessions of MEG-MASC."""
    there = sorted(path.name for path in source.glob("sub-*"))
    rows = []
    for number in range(1, N_SUBJECTS + 1):
        n_sessions = 1 if number in ONE_SESSION else 2
        rows.append({"participant_id": f"sub-{number:02d}", "n_sessions": n_sessions})
        original = there[number % len(there)]
        for session in range(n_sessions):
            folder = target / f"sub-{number:02d}" / f"ses-{session}" / "meg"
            folder.mkdir(parents=True)
            for pattern in ("*_events.tsv", "*_meg.json"):
                for path in (source / original / f"ses-{session}" / "meg").glob(pattern):
                    shutil.copyfile(path, folder / path.name.replace(original, f"sub-{number:02d}"))
    pd.DataFrame(rows).to_csv(target / "participants.tsv", sep="\t", index=False)


def measure(name: str, root: Path, protocol: str, **options) -> None:
    """Print the seconds of each step, and the counts."""
    begin = time.perf_counter()
    dataset = datasets.load(name, root, **options)
    recordings = dataset.recordings()
    events = {r.uid: dataset.read_events(r) for r in recordings}
    durations = {r.uid: dataset.duration(r) for r in recordings}
    read = time.perf_counter()
    segmentation = segments.make_segments(recordings, events, durations, SegmentConfig(protocol=protocol))
    cut = time.perf_counter()
    counts = segments.describe(segmentation, events)["splits"]
    described = time.perf_counter()
    audit = segments.audit(segmentation.segments, segmentation.blocks)
    audited = time.perf_counter()
    n_words = sum(int((table["kind"] == "word").sum()) for table in events.values())
    steps = zip(("read", "cut", "count", "audit"), (begin, read, cut, described), (read, cut, described, audited), strict=True)
    print(
        f"{name} ({protocol}): {len(recordings)} recordings, {sum(map(len, events.values()))} events, {n_words} words, "
        f"{len(segmentation.segments)} windows"
    )
    print("  " + ", ".join(f"{step} {stop - start:.1f} s" for step, start, stop in steps))
    print(f"  describe {described - begin:.1f} s, with audit {audited - begin:.1f} s; {len(audit.errors)} leaks")
    print("  " + ", ".join(f"{split} {c['segments']} segments / {c['vocabulary']} words" for split, c in counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with gwilliams2022 and brennan2019")
    root = parser.parse_args().root
    if (root / "gwilliams2022").is_dir():
        with tempfile.TemporaryDirectory() as folder:
            tile(root / "gwilliams2022", Path(folder))
            for protocol in ("clean", "paper"):
                measure("gwilliams2022", Path(folder), protocol)
    if (root / "brennan2019").is_dir():
        for protocol in ("clean", "paper"):
            measure("brennan2019", root / "brennan2019", protocol)


if __name__ == "__main__":
    main()
