"""TextGrids: both text formats, empty intervals, points, and what is no TextGrid."""

import pytest
from praatio import textgrid
from praatio.utilities.constants import Interval, Point

from brainspeech.datasets.alignments import read_textgrid, tier


def write(path, *, layout="long_textgrid"):
    grid = textgrid.Textgrid()
    words = [Interval(0.5, 0.75, "Alice"), Interval(0.75, 1.0, "  "), Interval(1.25, 2.0, 'a "quoted" word')]
    grid.addTier(textgrid.IntervalTier("words", words, 0.0, 3.0))
    grid.addTier(textgrid.PointTier("clicks", [Point(0.1, "click"), Point(0.2, "clack")], 0.0, 3.0))
    grid.save(str(path), format=layout, includeBlankSpaces=True)
    return path


@pytest.mark.parametrize("layout", ["long_textgrid", "short_textgrid"])
def test_tiers_come_out_as_tables_without_what_no_one_said(tmp_path, layout):
    tiers = read_textgrid(write(tmp_path / "a.TextGrid", layout=layout))
    assert list(tiers) == ["words", "clicks"]
    assert tiers["words"].to_dict("list") == {"onset": [0.5, 1.25], "duration": [0.25, 0.75], "text": ["Alice", 'a "quoted" word']}
    assert tiers["clicks"].to_dict("list") == {"onset": [0.1, 0.2], "duration": [0.0, 0.0], "text": ["click", "clack"]}


def test_praat_also_writes_utf_16(tmp_path):
    path = write(tmp_path / "a.TextGrid")
    (tmp_path / "b.TextGrid").write_text(path.read_text().replace("Alice", "Übermut"), encoding="utf-16")
    assert read_textgrid(tmp_path / "b.TextGrid")["words"]["text"][0] == "Übermut"


def test_a_tier_without_entries_is_an_empty_table(tmp_path):
    grid = textgrid.Textgrid()
    grid.addTier(textgrid.IntervalTier("words", [Interval(0, 1, "")], 0.0, 3.0))
    grid.save(str(tmp_path / "a.TextGrid"), format="long_textgrid", includeBlankSpaces=True)
    table = read_textgrid(tmp_path / "a.TextGrid")["words"]
    assert list(table.columns) == ["onset", "duration", "text"]
    assert len(table) == 0
    assert table["onset"].dtype == float


def test_what_is_no_textgrid_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.TextGrid does not exist"):
        read_textgrid(tmp_path / "none.TextGrid")
    (tmp_path / "cut.TextGrid").write_text(write(tmp_path / "a.TextGrid").read_text()[:300])
    (tmp_path / "other.TextGrid").write_text("onset,duration\n1,2\n")
    for name in ("cut", "other"):
        with pytest.raises(RuntimeError, match=rf"{name}\.TextGrid cannot be read as a TextGrid"):
            read_textgrid(tmp_path / f"{name}.TextGrid")


def test_a_tier_is_found_by_the_beginning_of_its_name(tmp_path):
    tiers = read_textgrid(write(tmp_path / "a.TextGrid"))
    assert tier(tiers, "Word", where="a") is tiers["words"]
    with pytest.raises(RuntimeError, match="a: expected one tier whose name begins with 'phon', got words, clicks"):
        tier(tiers, "phon", where="a")


@pytest.mark.data
def test_the_real_textgrids_of_alice(shared):
    folder = shared / "data" / "brennan2019" / "textgrids"
    grids = {path.name: read_textgrid(path) for path in folder.glob("*.TextGrid")}
    assert len(grids) == 12
    assert {tuple(tiers) for tiers in grids.values()} == {("words", "phones")}
    first = grids["DownTheRabbitHoleFinal_SoundFile12.TextGrid"]["words"]
    assert first.loc[0, ["onset", "text"]].tolist() == [0.229, "soon"]
    assert sum(len(tiers["words"]) for tiers in grids.values()) == 1930
