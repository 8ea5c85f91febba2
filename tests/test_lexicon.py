"""Features of words: counted by hand, from tiny vocabularies made here; nothing is downloaded."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from brainspeech import lexicon
from brainspeech.lexicon import Missing, Words

WORDS = Words(["Meet,", "see", "a"], ["to Meet, now", "we see to see", "a b"])


@pytest.fixture(scope="session")
def spacy():
    """The library, where the extra `words` is installed."""
    return pytest.importorskip("spacy")


@pytest.fixture
def vectors(spacy):
    """A pipeline that knows the vectors of three words."""
    pipeline = spacy.blank("en")
    for word, vector in {"meet": [1, 0], "see": [0, 1], "now": [3, 4]}.items():
        pipeline.vocab.set_vector(word, np.array(vector, np.float32))
    return pipeline


@pytest.fixture
def tagger(spacy):
    """A pipeline that calls a word after `to` a verb, and every other word a noun."""

    @spacy.Language.component("after_to")
    def tag(doc):
        for token in doc:
            token.pos_ = "VERB" if token.i and doc[token.i - 1].text == "to" else "NOUN"
        return doc

    pipeline = spacy.blank("en")
    pipeline.add_pipe("after_to")
    return pipeline


def test_letters_are_counted_where_there_are_no_phonemes():
    features = lexicon.make("phonemes", WORDS)
    # columns: how many, then a, e, m, s, t
    np.testing.assert_array_equal(features.values, [[4, 0, 2, 1, 0, 1], [3, 0, 2, 0, 1, 0], [1, 1, 0, 0, 0, 0]])
    assert "letters" in features.note


def test_phonemes_lose_stress_and_place_and_silence():
    features = lexicon.make("phonemes", Words(["x"] * 3, [""] * 3, [("AH0", "T"), ("t_B", "sp", "ah_E"), ("AH",)]))
    np.testing.assert_array_equal(features.values, [[2, 1, 1], [2, 1, 1], [1, 1, 0]])
    assert "phonemes" in features.note


@pytest.mark.parametrize(("label", "said"), [("AH0", "ah"), ("ah_B", "ah"), ("hh_I", "hh"), (" T ", "t"), ("9y", "9y"), ("_", "_")])
def test_a_phoneme_is_its_label_without_the_rest(label, said):
    assert lexicon.phone(label) == said


def test_a_bag_of_words_counts_words_of_several_windows():
    texts = ["The cat, the dog", "a cat", "the end"]
    features = lexicon.make("bag_of_words", Words([""] * 3, texts))
    plain = [[text.lower().replace(",", "").split().count(word) for word in ("cat", "the")] for text in texts]
    np.testing.assert_array_equal(features.values, plain)
    assert "2 words; 3 that" in features.note


def test_frequent_words_have_higher_zipf_values():
    pytest.importorskip("wordfreq")
    features = lexicon.make("frequency", Words(["the", "armadillo", "qqzxv"], [""] * 3))
    the, armadillo, nothing = features.values[:, 0]
    assert the > armadillo > nothing == 0
    assert "1 of 3 words" in features.note
    with pytest.raises(Missing, match="wordfreq cannot count words of 'xx'"):
        lexicon.make("frequency", WORDS, language="xx")


@pytest.mark.parametrize(("name", "library"), [("frequency", "wordfreq"), ("word_embedding", "spacy"), ("part_of_speech", "spacy")])
def test_a_missing_library_is_said_with_its_cure(monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(Missing, match=r"not installed.*Run: pip install \"brainspeech\[words\]\""):
        lexicon.make(name, WORDS)


def test_a_missing_model_is_said_with_its_cure(spacy):
    with pytest.raises(Missing, match="Run: python -m spacy download no_such_model"):
        lexicon.make("word_embedding", WORDS, spacy_model="no_such_model")


@pytest.mark.parametrize(("name", "lacks"), [("word_embedding", "no word vectors"), ("part_of_speech", "no parts of speech")])
def test_a_model_that_does_not_know_is_no_model(spacy, name, lacks):
    with pytest.raises(Missing, match=lacks):
        lexicon.make(name, WORDS, spacy_model=spacy.blank("en"))


def test_words_have_their_vectors_and_unknown_ones_are_counted(vectors):
    features = lexicon.make("word_embedding", WORDS, spacy_model=vectors)
    np.testing.assert_array_equal(features.values, [[1, 0], [0, 1], [0, 0]])
    assert "1 of 3 words have no vector" in features.note


def test_a_phrase_is_the_mean_of_its_known_words(vectors):
    features = lexicon.make("phrase_embedding", WORDS, spacy_model=vectors)
    np.testing.assert_allclose(features.values, [[(1 + 3) / 2, (0 + 4) / 2], [0, 1], [0, 0]])
    assert "5 of 9 words have no vector" in features.note
    assert "1 windows no word" in features.note


def test_parts_of_speech_are_tagged_among_the_words_of_the_window(tagger):
    words = Words(["Meet,", "see", "meet", "gone"], ["to Meet, now", "we see to see", "no meet", "not in it"])
    features = lexicon.make("part_of_speech", words, spacy_model=tagger)
    np.testing.assert_array_equal(features.values, [[0, 1], [1, 0], [1, 0], [1, 0]])  # noun, verb; `see` is the first of the two


def test_a_language_model_gives_the_mean_state_of_its_tokens(tmp_path):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "to", "meet", "now", "we", "see"]))
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer.tokenize("to meet now") == ["to", "meet", "now"]
    torch.manual_seed(0)
    network = BertModel(BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)).eval()
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["to meet now", "we see"]
    state = torch.get_rng_state()
    features = lexicon.make("phrase_embedding", Words(["", ""], texts), phrase_model=str(tmp_path))
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        alone = [network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for text in texts]
    np.testing.assert_allclose(features.values, alone, atol=1e-5)


def test_an_absent_language_model_is_said_with_its_cure(tmp_path):
    with pytest.raises(Missing, match=r"language model .* cannot be loaded"):
        lexicon.make("phrase_embedding", WORDS, phrase_model=str(tmp_path / "none"))


def test_an_unknown_set_is_an_error():
    with pytest.raises(ValueError, match=r"must be among phonemes, .*got 'letters'"):
        lexicon.check(["phonemes", "letters"])
    with pytest.raises(ValueError, match="got 'x'"):
        lexicon.make("x", WORDS, spacy_model=SimpleNamespace())
