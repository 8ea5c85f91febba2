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
    dutch = lexicon.make("frequency", Words(["het", "gordeldier", "the"], [""] * 3), language="nl-BE")
    assert dutch.values[0, 0] > the - 1 > dutch.values[1, 0]
    assert "list of 'nl'" in dutch.note


@pytest.mark.parametrize(("code", "found"), [("nl", "nl"), ("pt_BR", "pt"), ("zh-TW", "zh"), ("EN", "en"), ("hr", "sh"), ("nld", "nl")])
def test_a_language_has_the_list_of_its_own_name_or_of_another_name_for_it(code, found):
    pytest.importorskip("wordfreq")
    assert lexicon.frequency_list(code) == found


@pytest.mark.parametrize("code", ["xx", "eu", "af", "et"])  # wordfreq counts Basque words in Spanish, Afrikaans in Dutch
def test_a_language_without_a_list_is_an_error_that_says_which_there_are(code):
    pytest.importorskip("wordfreq")
    for wrong in (lambda: lexicon.make("frequency", WORDS, language=code), lambda: lexicon.check(["frequency"], language=code)):
        with pytest.raises(ValueError, match=rf"no word frequencies of the language '{code}'. It has those of ar, .* nl, .* leave out"):
            wrong()
    lexicon.check(["phonemes"], language=code)  # of which nobody asks a list


@pytest.mark.parametrize("code", ["dutch", "", "n", 5, "nl "])
def test_a_language_is_a_code(code):
    with pytest.raises(ValueError, match="language must be a code such as en, nl or pt-BR, got "):
        lexicon.check([], language=code)


def test_without_wordfreq_a_language_is_not_looked_up(monkeypatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    lexicon.check(["frequency"], language="xx")


def test_a_pipeline_of_another_language_is_found_out(spacy, tmp_path):
    said = "is one of 'en', and evaluate.language is 'nl'. Set evaluate.spacy_model=nl_core_news_md .*download nl_core_news_md"
    with pytest.raises(ValueError, match=f"en_core_web_md {said}"):
        lexicon.check(["part_of_speech"], language="nl", spacy_model="en_core_web_md")
    with pytest.raises(Missing, match=said):
        lexicon.make("part_of_speech", WORDS, language="nl", spacy_model=spacy.blank("en"))
    with pytest.raises(ValueError, match="spaCy has no trained pipeline of 'et'"):
        lexicon.check(["word_embedding"], language="et", spacy_model="en_core_web_md")
    with pytest.raises(Missing, match=f"en_core_web_md {said}"):  # which nobody should download first
        lexicon.make("part_of_speech", WORDS, language="nl")
    spacy.blank("en").to_disk(tmp_path / "mine")
    with pytest.raises(Missing, match=said):
        lexicon.make("part_of_speech", WORDS, language="nl", spacy_model=str(tmp_path / "mine"))
    for good in (
        {"sets": ["phonemes"], "spacy_model": "en_core_web_md"},
        {"sets": ["phrase_embedding"], "spacy_model": "en_core_web_md", "phrase_model": "m"},
        {"sets": ["word_embedding"], "spacy_model": "nl_core_news_md"},
        {"sets": ["word_embedding"], "spacy_model": "xx_ent_wiki_sm"},
        {"sets": ["word_embedding"], "spacy_model": "folder/of_mine"},
    ):
        lexicon.check(**good, language="nl")


NAMES = {
    "nb": ["no", "nb-NO", "nob", "nn"],
    "en": ["eng"],
    "de": ["deu", "ger"],
    "nl": ["nld"],
    "fr": ["fra"],
    "zh": ["cmn", "zh-TW"],
}


@pytest.mark.parametrize(("language", "code"), [(language, code) for code, others in NAMES.items() for language in others])
def test_a_language_has_the_pipeline_that_spacy_calls_otherwise(language, code):
    usual = f"{code}_core_{'web' if code in ('en', 'zh') else 'news'}_md"
    lexicon.check(["part_of_speech"], language=language, spacy_model=usual)
    assert lexicon.usual_pipeline(language) == usual
    other = "fi_core_news_md"
    with pytest.raises(
        ValueError, match=f"{other} is one of 'fi', and evaluate.language is '{language}'. Set evaluate.spacy_model={usual} "
    ):
        lexicon.check(["part_of_speech"], language=language, spacy_model=other)


def test_a_pipeline_of_ones_own_may_have_another_code_of_the_language():
    for language, model in {"iw": "he_core_news_sm", "he": "iw_core_news_sm", "tur": "tr_core_news_md"}.items():
        lexicon.check(["word_embedding"], language=language, spacy_model=model)
    for language, model in {"da": "nb_core_news_md", "af": "nl_core_news_md", "zzz": "en_core_web_md"}.items():
        with pytest.raises(ValueError, match="is one of"):
            lexicon.check(["word_embedding"], language=language, spacy_model=model)


def test_without_langcodes_only_what_is_known_to_be_wrong_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "langcodes", None)
    lexicon.check(["part_of_speech"], language="eng", spacy_model="en_core_web_md")
    lexicon.check(["part_of_speech"], language="nl-BE", spacy_model="nl_core_news_md")
    assert lexicon.usual_pipeline("eng") == ""
    with pytest.raises(ValueError, match=r"is one of 'en', and evaluate\.language is 'nl'"):
        lexicon.check(["part_of_speech"], language="nl", spacy_model="en_core_web_md")


@pytest.mark.parametrize(("name", "library"), [("frequency", "wordfreq"), ("word_embedding", "spacy"), ("part_of_speech", "spacy")])
def test_a_missing_library_is_said_with_its_cure(monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(Missing, match=r"not installed.*Run: pip install \"brainspeech\[words\]\""):
        lexicon.make(name, WORDS)


def test_a_missing_model_is_said_with_its_cure(spacy):
    with pytest.raises(Missing, match="Run: python -m spacy download no_such_model"):
        lexicon.make("word_embedding", WORDS, spacy_model="no_such_model")
    with pytest.raises(Missing, match="Is it a folder that spaCy wrote"):
        lexicon.make("word_embedding", WORDS, spacy_model="no/such/folder")


@pytest.mark.parametrize(("name", "lacks"), [("word_embedding", "gives no word vectors"), ("part_of_speech", "gives no parts of speech")])
def test_a_model_that_does_not_know_is_no_model(spacy, name, lacks):
    with pytest.raises(Missing, match=f"{lacks}. Take one that does: python -m spacy download fr_core_news_md"):
        lexicon.make(name, WORDS, language="fr", spacy_model=spacy.blank("fr"))


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
