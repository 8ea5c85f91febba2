"""The events table: sorted, checked, and words find the sound that they are part of."""

import numpy as np
import pandas as pd
import pytest

from brainspeech import events

SOUND = {"kind": "sound", "onset": 2.0, "duration": 10.0, "audio": "a.wav"}


def word(onset, **fields):
    return {"kind": "word", "onset": onset, "duration": 0.3, "text": "tea", **fields}


def test_words_take_audio_from_the_sound_that_is_playing():
    second = {"kind": "sound", "onset": 20.0, "duration": 5.0, "audio": "b.wav", "audio_onset": 30.0}
    table = events.make([word(21.0), word(3.5), SOUND, second])
    assert list(table.columns) == list(events.COLUMNS)
    assert table["onset"].tolist() == [2.0, 3.5, 20.0, 21.0]
    assert table["audio"].tolist() == ["a.wav", "a.wav", "b.wav", "b.wav"]
    assert table["audio_onset"].tolist() == [0.0, 1.5, 30.0, 31.0]


def test_a_word_that_names_its_audio_is_found_there_although_another_sound_began_later():
    other = {"kind": "sound", "onset": 2.5, "duration": 10.0, "audio": "b.wav"}
    table = events.make([SOUND, other, word(4.0, audio="a.wav"), word(4.5)])
    words = table[table["kind"] == "word"]
    assert words["audio"].tolist() == ["a.wav", "b.wav"]
    assert words["audio_onset"].tolist() == [2.0, 2.0]


def test_a_stated_audio_onset_is_left_alone():
    table = events.make([SOUND, word(4.0, audio="a.wav", audio_onset=7.0)])
    assert table["audio_onset"].tolist() == [0.0, 7.0]


def test_events_at_one_time_stand_from_the_largest_to_the_smallest():
    kinds = ["phoneme", "word", "sentence", "sound"]
    table = events.make([{"kind": k, "onset": 1.0, "duration": 1.0, "audio": "a.wav", "audio_onset": 0.0} for k in kinds])
    assert table["kind"].tolist() == ["sound", "sentence", "word", "phoneme"]


def test_checking_twice_changes_nothing_and_leaves_the_argument_alone():
    table = events.make([word(5.0), SOUND])
    before = table.copy()
    pd.testing.assert_frame_equal(events.check(table), table)
    pd.testing.assert_frame_equal(table, before)


def test_missing_texts_are_empty_and_an_empty_table_is_a_table():
    table = events.make([SOUND | {"text": np.nan, "sequence": None}])
    assert table["text"].tolist() == [""]
    assert table["sequence"].tolist() == [""]
    assert list(events.make([]).columns) == list(events.COLUMNS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"onset": 1.0, "duration": 1.0, "audio": "a"}], "missing .'kind'"),
        ([SOUND | {"offset": 1.0}], "unknown .'offset'"),
        ([SOUND | {"kind": "noise"}], "kinds must be among"),
        ([SOUND | {"onset": np.nan}], "no finite onset"),
        ([SOUND | {"duration": -1.0}], "negative duration"),
        ([SOUND | {"audio_onset": -1.0}], "negative audio_onset"),
        ([SOUND | {"onset": "soon"}], "holds seconds"),
        ([SOUND | {"audio": ""}], "name no stimulus"),
        ([SOUND, word(13.0)], "no finite audio_onset.*'tea' at 13"),
        ([SOUND, word(1.0)], "no finite audio_onset"),
        ([SOUND, word(3.0, audio="b.wav")], "no finite audio_onset"),
    ],
)
def test_mistakes_are_named_with_the_recording(rows, message):
    with pytest.raises(ValueError, match=f"d/sub-1: .*{message}"):
        events.make(rows, uid="d/sub-1")


def test_a_word_before_the_first_sample_is_kept():
    # The sound of some recordings began before the recording did: such events are for the segmenter to count, not for the table.
    assert events.make([SOUND | {"onset": -1.0}])["onset"].tolist() == [-1.0]
