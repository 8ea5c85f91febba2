"""The shipped manifests, and what is made of one."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from brainspeech import manifests, subjects
from brainspeech.download import ALGORITHMS, digest_of, unsafe

NAMES = manifests.names()
LISTED = ["brennan2019", "ds004408", "gwilliams2022"]
SPDX = {"CC0-1.0", "CC-BY-4.0", "CC-BY-3.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "PDDL-1.0", "ODC-By-1.0"}


@pytest.fixture(scope="module", params=NAMES)
def manifest(request):
    return manifests.load(request.param)


@pytest.fixture(scope="module", params=LISTED)
def listed(request):
    return manifests.load(request.param)


# --------------------------------------------------------------------------------------------------------------- the shipped manifests


def test_the_papers_datasets_have_manifests():
    assert {"brennan2019", "broderick2019", "ds004408", "gwilliams2022", "schoffelen2019"} <= set(NAMES)
    assert {name for name in NAMES if manifests.load(name).entries} == set(LISTED)


def test_a_manifest_says_what_the_data_are(manifest):
    assert manifest.title
    assert manifest.version
    assert manifest.licence in SPDX or re.fullmatch(r"LicenseRef-[A-Za-z0-9.-]+", manifest.licence)
    assert re.fullmatch(r"10\.\d{4,9}/\S+", manifest.doi)
    assert manifest.homepage.startswith("https://")
    assert manifest.declared.subjects
    assert manifest.declared.recordings >= manifest.declared.subjects
    assert None not in (manifest.declared.hours, manifest.declared.sfreq, manifest.declared.n_channels)


def test_a_citation_is_bibtex(manifest):
    items = [item for item in re.split(r"(?m)^@", manifest.citation) if item.strip()]
    for item in items:
        assert re.match(r"(article|misc)\{\w+,\n", item)
        assert item.count("{") == item.count("}")
        assert {"author", "title", "year", "doi"} <= set(re.findall(r"(?m)^  (\w+) = \{", item))
    assert items


def test_every_dataset_can_be_had_or_says_how(manifest):
    if not manifest.entries:
        assert manifest.by_hand.strip()
        assert manifest.layout
        assert manifest.declared.n_files is None  # nobody has counted


def test_a_listing_weighs_what_it_declares(listed):
    assert len(listed.entries) == listed.declared.n_files
    assert sum(entry.size or 0 for entry in listed.entries) == listed.declared.n_bytes
    assert sum(entry.size is None for entry in listed.entries) == listed.declared.n_unknown_size
    assert len(listed.subjects()) == listed.declared.subjects


def test_a_listing_is_sorted_unique_and_safe_on_every_system(listed):
    paths = [entry.path for entry in listed.entries]
    assert paths == sorted(paths)
    assert len({path.casefold() for path in paths}) == len(paths)
    assert not [path for path in paths if unsafe(path)]


def test_every_entry_has_a_digest_and_a_url_that_is_whole(listed):
    for entry in listed.entries:
        assert entry.algorithm in ALGORITHMS
        assert re.fullmatch(r"https://[\w.-]+(/[\w.%+~-]+)+", entry.url), entry.url
    assert len({entry.url for entry in listed.entries if "/objects/" not in entry.url}) == sum(
        "/objects/" not in entry.url for entry in listed.entries
    )


@pytest.mark.parametrize(
    ("name", "suffix", "n"),
    [("gwilliams2022", "_meg.con", 196), ("brennan2019", "_eeg.eeg", 45), ("ds004408", "_eeg.eeg", 380)],
)
def test_the_recordings_are_counted(name, suffix, n):
    manifest = manifests.load(name)
    recordings = [entry for entry in manifest.select(what="recordings") if entry.path.endswith(suffix)]
    assert len(recordings) == n == manifest.declared.recordings
    assert all(entry.algorithm == "sha256" and entry.size for entry in recordings)


@pytest.mark.parametrize(
    ("name", "bytes_per_second"), [("gwilliams2022", 256 * 2 * 1000), ("brennan2019", 62 * 4 * 500), ("ds004408", 128 * 4 * 512)]
)
def test_the_hours_follow_from_the_sizes(name, bytes_per_second):
    manifest = manifests.load(name)
    payload = sum(entry.size or 0 for entry in manifest.entries if entry.path.endswith((".con", ".eeg")))
    assert payload / bytes_per_second / 3600 == pytest.approx(manifest.declared.hours, abs=0.06)


def test_an_object_of_nemar_is_named_by_its_annex_key():
    (entry,) = [e for e in manifests.load("gwilliams2022").entries if e.path == "sub-15/ses-1/anat/sub-15_ses-1_FLASH.nii.gz"]
    assert entry.url.endswith(f"/nm000229/objects/SHA256E-s{entry.size}--{entry.digest}.nii.gz")


@pytest.mark.parametrize("name", LISTED)
def test_the_kinds_hold_what_a_loader_needs(name):
    manifest = manifests.load(name)
    kinds = {entry.path: manifest.kind_of(entry.path) for entry in manifest.entries}
    for path, kind in kinds.items():
        assert (kind == "audio") == path.endswith(".wav")
        assert kind == "events" or not path.endswith(("_events.tsv", ".TextGrid", "proc/S01.mat"))
        assert kind == "recordings" or not path.endswith((".con", ".mrk", ".pos", ".eeg", ".vhdr", ".vmrk", "_channels.tsv"))
        assert kind == "other" or not path.startswith((".github", "code/"))
    assert kinds["participants.tsv"] == "about"


def test_the_published_subjects_of_brennan2019_are_33_and_two_are_not_in_the_archive():
    manifest = manifests.load("brennan2019")
    assert len(manifest.published) == 33
    assert set(manifest.published) - {subjects.number(s) for s in manifest.subjects()} == {4, 16}
    plan = manifests.plan(manifest, "/nonexistent", subjects="published")
    assert any("4, 16" in note for note in plan.notes)
    assert len({manifest.subject_of(entry.path) for entry in plan.entries} - {""}) == 31


def test_the_readme_states_the_size_of_each_listing():
    readme = (manifests.folder() / "README.md").read_text()
    for name in NAMES:
        (row,) = re.findall(rf"(?m)^\| `{name}` .*$", readme)
        declared = manifests.load(name).declared
        if declared.n_files:
            assert f"| {declared.n_files:,} |" in row
            assert f"{declared.n_bytes / 1e9:.1f} GB" in row


@pytest.mark.data
@pytest.mark.parametrize("name", ["brennan2019", "gwilliams2022"])
def test_the_real_side_files_have_the_listed_digests(name, shared):
    manifest, root = manifests.load(name), shared / "data" / name
    there = [entry for entry in manifest.entries if (root / entry.path).is_file()]
    wrong = [e.path for e in there if digest_of(root / e.path, e.algorithm) != e.digest]
    assert len(there) > 40
    assert not wrong


@pytest.mark.data
@pytest.mark.parametrize("name", LISTED)
def test_nothing_of_the_full_listing_was_lost(name, shared):
    lines = (shared / "data" / "manifests" / f"{name}.tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    ours = {e.path: e for e in manifests.load(name).entries}
    assert {(p, size, algorithm, digest) for p, size, algorithm, digest, *_ in rows} == {
        (e.path, "" if e.size is None else str(e.size), e.algorithm, e.digest) for e in ours.values()
    }
    for path, *_, key in rows:
        if key and name != "ds004408":
            assert ours[path].url.endswith("/objects/" + key)


# ----------------------------------------------------------------------------------------------------------------------- reading one


TOML = """
title = "T"
version = "1"
licence = "CC0-1.0"
access = "open"
doi = "10.1/x"
homepage = "https://example.org"
citation = "@misc{x,}"
subject = '^sub-\\d+/'
[urls.web]
template = "https://example.org/{path}"
tried = true
[what]
events = ["*_events.tsv"]
audio = ["stimuli/*"]
recordings = ["sub-*"]
about = ["README"]
"""
HEAD = "path\tsize\talgorithm\tdigest\turl\n"


def write(folder: Path, rows: str, toml: str = TOML) -> Path:
    (folder / "x.toml").write_text(toml)
    (folder / "x.tsv").write_text(HEAD + rows)
    return folder / "x.toml"


def test_a_manifest_of_ones_own_is_read_by_path(tmp_path):
    path = write(tmp_path, "README\t3\t\t\tweb\nsub-01/a b.eeg\t\tmd5\t" + "0" * 32 + "\tweb\nsub-02/x_events.tsv\t1\t\t\thttps://a.b/c\n")
    manifest = manifests.load(path)
    assert [entry.url for entry in manifest.entries] == [
        "https://example.org/README",
        "https://example.org/sub-01/a%20b.eeg",
        "https://a.b/c",
    ]
    assert [entry.size for entry in manifest.entries] == [3, None, 1]
    assert [entry.path for entry in manifest.select("2", "events")] == ["README", "sub-02/x_events.tsv"]
    assert str(path) in manifests.command("verify", manifest, "my data")
    assert "'my data'" in manifests.command("verify", manifest, "my data")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("../x\t1\t\t\tweb\n", "plain path"),
        ("/etc/x\t1\t\t\tweb\n", "plain path"),
        ("a/../../x\t1\t\t\tweb\n", "plain path"),
        ("a//x\t1\t\t\tweb\n", "plain path"),
        ("./x\t1\t\t\tweb\n", "plain path"),
        ("a\\..\\x\t1\t\t\tweb\n", "some system cannot store"),
        ("C:x\t1\t\t\tweb\n", "some system cannot store"),
        ("x\t-1\t\t\tweb\n", "0 or more"),
        ("x\tmany\t\t\tweb\n", "many"),
        ("x\t1\tcrc32\tabcd\tweb\n", "hexdigits"),
        ("x\t1\tsha256\tabcd\tweb\n", "hexdigits"),
        ("x\t1\t\t" + "0" * 64 + "\tweb\n", "hexdigits"),
        ("x\t1\t\t\tftp://a/b\n", "expected https"),
        ("x\t1\t\t\thttp://example.org/b\n", "expected https"),
        ("x\t1\t\t\tother\n", "one of [urls]"),
        ("b\t1\t\t\tweb\na\t1\t\t\tweb\n", "sorted"),
        ("a\t1\t\t\tweb\na\t1\t\t\tweb\n", "sorted"),
    ],
)
def test_a_listing_that_breaks_the_format_is_refused_by_name(tmp_path, rows, said):
    path = write(tmp_path, rows)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        manifests.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('access = "open"', 'access = "free"'), "access must be one of"),
        (('title = "T"', ""), "title"),
        (('title = "T"', 'titel = "T"'), "titel"),
        (("[what]", "[what]\nvideo = ['*']"), "video"),
        (('title = "T"', "title ="), "Invalid value"),
    ],
)
def test_a_toml_that_breaks_the_format_is_refused_by_name(tmp_path, change, said):
    path = write(tmp_path, "", TOML.replace(*change))
    with pytest.raises(ValueError, match=said) as error:
        manifests.load(path)
    assert str(path) in str(error.value)


def test_wrong_columns_are_refused(tmp_path):
    path = write(tmp_path, "")
    (tmp_path / "x.tsv").write_text("path\tsize\n")
    with pytest.raises(ValueError, match="columns path, size"):
        manifests.load(path)


def test_an_unknown_dataset_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="brennan2019, broderick2019"):
        manifests.load("brenan2019")


# -------------------------------------------------------------------------------------------------------------------------- subjects


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", ["sub-01", "sub-02", "sub-05", "sub-10"]),
        ("first:2", ["sub-01", "sub-02"]),
        ("first:9", ["sub-01", "sub-02", "sub-05", "sub-10"]),
        ("1-2,10", ["sub-01", "sub-02", "sub-10"]),
        (" 5 , 1", ["sub-01", "sub-05"]),
        ("published", ["sub-02", "sub-05"]),
    ],
)
def test_a_spec_selects_subjects(spec, expected):
    assert subjects.select(["sub-10", "sub-02", "sub-01", "sub-05"], spec, published={2, 5, 7}) == expected


@pytest.mark.parametrize("spec", ["", "none", "first:", "first:0", "1-", "-1", "1;2", "1,,2", "²"])
def test_a_spec_that_cannot_be_read_is_answered_with_the_grammar(spec):
    with pytest.raises(ValueError, match="first:N"):
        subjects.select(["sub-1", "sub-2"], spec)


def test_a_subject_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"Subjects \[3\] are not in the dataset; it has A2001, A2002"):
        subjects.select(["A2001", "A2002"], "2001,3")
    with pytest.raises(ValueError, match="no list of published subjects"):
        subjects.select(["A2001"], "published")
    with pytest.raises(ValueError, match="'5-1' runs backwards"):
        subjects.select(["A2001"], "1,5-1")


# ------------------------------------------------------------------------------------------------------------------- plans and accounts


def test_a_plan_keeps_to_the_subjects_and_kinds_asked_for(tmp_path):
    plan = manifests.plan("gwilliams2022", tmp_path / "not there", subjects="first:2", what="events,audio")
    paths = [entry.path for entry in plan.entries]
    assert "participants.tsv" in paths
    assert "sub-02/ses-0/meg/sub-02_ses-0_task-1_events.tsv" in paths
    assert not [path for path in paths if path.startswith("sub-03") or path.endswith((".con", ".yml", ".nii.gz"))]
    assert plan.n_bytes == sum(entry.size or 0 for entry in plan.entries)
    text = plan.text()
    assert "CC0-1.0" in text
    assert "@article{gwilliams2023" in text
    assert "nobody has tried the urls" in text
    assert not (tmp_path / "not there").exists()


def test_what_takes_only_its_words(tmp_path):
    with pytest.raises(ValueError, match="recordings,events,audio,other, got 'video'"):
        manifests.plan("ds004408", tmp_path, what="events,video")


def test_a_dataset_behind_an_account_says_what_to_do_and_takes_a_filled_folder(tmp_path):
    with pytest.raises(PermissionError, match="request access") as error:
        manifests.download("schoffelen2019", tmp_path)
    assert "brainspeech verify schoffelen2019 --root" in str(error.value)
    assert "sub-A2*/meg/*.ds" in str(error.value)
    lacking = manifests.verify("schoffelen2019", tmp_path)
    assert not lacking.ok
    assert "request access" in lacking.repair

    (tmp_path / "sub-A2002" / "meg" / "sub-A2002_task-auditory_meg.ds").mkdir(parents=True)
    for path in (
        "sourcedata/meg_task/x-A2002-MEG.log",
        "stimuli/stimuli.txt",
        "stimuli/audio_files/EQ_Ramp_Int2_Int1LPF001.wav",
        "derivatives/phonemes/EQ_Ramp_Int2_Int1LPF001.TextGrid",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    text, status = manifests.download_command("schoffelen2019", tmp_path, progress=False)
    assert status == 0
    assert "filled by hand" in text
    text, status = manifests.verify_command("schoffelen2019", tmp_path, json=True)
    found = json.loads(text)
    assert (status, found["ok"], found["layout"][2]["got"]) == (0, True, 1)


def test_an_open_dataset_that_could_not_be_listed_is_no_question_of_permission(tmp_path):
    with pytest.raises(FileNotFoundError, match="ds004408"):
        manifests.download("broderick2019", tmp_path)


def test_a_manifest_can_be_changed_in_memory():
    manifest = manifests.load("ds004408")
    few = dataclasses.replace(manifest, entries=manifest.entries[:1])
    assert len(manifests.plan(few, "/nonexistent", what="other").entries) == 1
