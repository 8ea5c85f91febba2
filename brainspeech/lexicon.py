"""What is known about words: features of the word at a window's anchor, and of all words of the window.

The libraries are the user's to install (``pip install "brainspeech[words]"``): wordfreq counts words, spaCy tags and embeds them. What is
missing is said with the command that installs it, and nothing is put in its place.

Shapes: N windows, D features.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainspeech.protocols import normalised

OF_WORD = ("phonemes", "frequency", "part_of_speech", "word_embedding")
OF_PHRASE = ("bag_of_words", "phrase_embedding")
SETS = (*OF_WORD, *OF_PHRASE)
MEANINGS = {
    "phonemes": "how many phonemes (or letters) the word has, and which",
    "frequency": "how frequent the word is: Zipf value of wordfreq",
    "part_of_speech": "the word's part of speech, by spaCy",
    "word_embedding": "the word's vector in spaCy",
    "bag_of_words": "how often each word stands in the window",
    "phrase_embedding": "the mean vector of the window's words, or the mean state of a language model",
}
INSTALL = 'pip install "brainspeech[words]"'
SILENCES = frozenset({"", "sil", "sp", "spn", "<p:>", "silence"})
BATCH = 32  # phrases that a language model reads at once
CODE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*")
# langcodes' distance up to which two codes name one language or its dialects; beyond it are the languages that its speakers also know.
SAME_LANGUAGE = 10
# Languages that spaCy has trained pipelines of, with parts of speech and vectors: https://spacy.io/models
PIPELINES = "ca da de el en es fi fr hr it ja ko lt mk nb nl pl pt ro ru sl sv uk zh"
# Of the two written forms of Norwegian spaCy has trained one, which is as near to the other as there is.
OTHER_FORM = {"nn": "nb", "nno": "nb"}
ANY_LANGUAGE = "xx"  # spaCy's name for a pipeline of several


class Missing(RuntimeError):
    """A library or a model that a feature needs is not here; the message says which, and what installs it."""


@dataclass(frozen=True, eq=False)
class Words:
    """The words of N windows.

    Parameters
    ----------
    anchors : list of str
        The word at each window's anchor; empty where there is none.
    texts : list of str
        The words inside each window.
    phonemes : list of tuple of str, optional
        Phonemes of each anchor word; None where the dataset has none, and letters are used.
    """

    anchors: list[str]
    texts: list[str]
    phonemes: list[tuple[str, ...]] | None = None


@dataclass(frozen=True, eq=False)
class Features:
    """A set of features (N, D), and a sentence on how it was made."""

    values: np.ndarray
    note: str


def check(sets: Sequence[str], *, language: str = "en", spacy_model: Any = "", phrase_model: str = "") -> None:
    """Find what cannot be made, whatever is installed, before anything is computed.

    Parameters
    ----------
    sets : sequence of str
        Of ``SETS``.
    language : str
        A code such as ``"en"`` or ``"nl"``. That it has a list of word frequencies is looked up where one is asked for and wordfreq is
        installed.
    spacy_model, phrase_model
        See ``make``. Where a set needs spaCy, a pipeline whose name says another language is found out; empty: not looked at.

    Raises
    ------
    ValueError
        If there is no such set, the language is no code, wordfreq does not know it, or the pipeline is one of another.
    """
    unknown = [name for name in sets if name not in SETS]
    if unknown:
        raise ValueError(f"Sets of word features must be among {', '.join(SETS)}, got {', '.join(map(repr, unknown))}.")
    if not CODE.fullmatch(str(language)):
        raise ValueError(f"language must be a code such as en, nl or pt-BR, got {language!r}.")
    if "frequency" in sets:
        with suppress(Missing):  # the report says so, and the other sets are made
            frequency_list(language)
    needed = set(sets) & {"part_of_speech", "word_embedding", *(() if phrase_model else ("phrase_embedding",))}
    if needed and (said := other_language(spacy_model, language)):
        raise ValueError(said)


def other_language(pipeline: Any, language: str) -> str:
    """Say that a pipeline, loaded or by its name, is one of another language, and which to take; nothing if it is not, or is not known."""
    if isinstance(pipeline, str):
        named = re.match(r"([a-z]{2,3})_(?:core|dep|ent|sent)_", pipeline)
        of_pipeline, name = named[1] if named else "", pipeline
    else:
        of_pipeline, name = pipeline.lang, _name(pipeline)
    if of_pipeline in ("", ANY_LANGUAGE) or _find(_of_spacy(language), [of_pipeline]) is not None:
        return ""
    usual = usual_pipeline(language)
    cure = (
        f"Set evaluate.spacy_model={usual} (python -m spacy download {usual})"
        if usual
        else f"spaCy has no trained pipeline of {language!r}: name one of your own, or leave out what needs it"
    )
    return f"The spaCy pipeline {name} is one of {of_pipeline!r}, and evaluate.language is {language!r}. {cure}."


def usual_pipeline(language: str) -> str:
    """Name spaCy's middle-sized pipeline of a language, ``nl_core_news_md``; empty where spaCy has none."""
    code = _find(_of_spacy(language), PIPELINES.split())
    return f"{code}_core_{'web' if code in ('en', 'zh') else 'news'}_md" if code else ""


def frequency_list(language: str) -> str:
    """Name wordfreq's list of a language: ``"nl"`` for ``"nl-BE"``.

    wordfreq by itself takes the nearest language that it has, which for Basque is Spanish; here that is an error.

    Raises
    ------
    ValueError
        If there is none, with those that there are.
    Missing
        If wordfreq is not installed.
    """
    try:
        import wordfreq
    except ImportError as error:
        raise Missing(f"wordfreq is not installed ({error}). Run: {INSTALL}") from error
    available = sorted(wordfreq.available_languages())
    found = _find(language, available)
    if not found:
        raise ValueError(
            f"wordfreq has no word frequencies of the language {language!r}. It has those of {', '.join(available)}. "
            "Set evaluate.language to one of them, or leave out the set 'frequency'."
        )
    return found


def _find(language: str, known: Sequence[str]) -> str | None:
    """Find a language among codes by its own code, another code for it (``nld`` for ``nl``), or that of a dialect; None if it is not there.

    Without langcodes, which comes with wordfreq, a code of three letters and one of two may name the same: it is not known, "".
    """
    first = re.split("[-_]", language)[0].lower()
    if first in known:
        return first
    try:
        from langcodes import closest_match
    except ImportError:
        return "" if any(len(code) != len(first) for code in known) else None
    try:
        found, _ = closest_match(language, list(known), max_distance=SAME_LANGUAGE)
    except ValueError:  # it is no code
        return None
    return found if found in known else None


def _of_spacy(language: str) -> str:
    return OTHER_FORM.get(language.lower(), language)


def make(name: str, words: Words, *, language: str = "en", spacy_model: Any = "en_core_web_md", phrase_model: str = "") -> Features:
    """Make a set of features.

    Parameters
    ----------
    name : str
        One of ``SETS``.
    words : Words
    language : str
        Such as ``"en"`` or ``"nl"``.
    spacy_model : str or spacy.Language
        Name of an installed pipeline, a folder with one, or one that is loaded.
    phrase_model : str
        A language model of transformers, by name or folder, for ``phrase_embedding``; empty: the mean of spaCy's vectors.

    Raises
    ------
    Missing
        If a library or a model is not installed, or the model does not know what is asked of it or is one of another language.
    ValueError
        If there is no such set, or there are no frequencies of the language.
    """
    check([name], language=language)
    if name == "phonemes":
        return _phonemes(words)
    if name == "frequency":
        return _frequency(words.anchors, language)
    if name == "bag_of_words":
        return _bag_of_words(words.texts)
    if name == "phrase_embedding" and phrase_model:
        return _states(words.texts, phrase_model)
    pipeline = load_spacy(spacy_model, language=language)
    if name == "part_of_speech":
        return _parts_of_speech(words, pipeline)
    if name == "word_embedding":
        vectors, known = _vectors(words.anchors, pipeline)
        lacking = f"{(~known).sum()} of {len(known)} words have no vector and are zero"
        return Features(vectors, f"{vectors.shape[1]} numbers per word ({_name(pipeline)}); {lacking}.")
    return _mean_vectors(words.texts, pipeline)


def load_spacy(model: Any, *, language: str) -> Any:
    """Load a spaCy pipeline by name or from a folder; one that is loaded is given back.

    Raises
    ------
    Missing
        If spaCy or the pipeline is not installed, or the pipeline is one of another language.
    """
    if said := other_language(model, language):
        raise Missing(said)
    if not isinstance(model, str):
        return model
    try:
        import spacy
    except ImportError as error:
        raise Missing(f"spaCy is not installed ({error}). Run: {INSTALL}") from error
    try:
        pipeline = spacy.load(model)
    except (OSError, ValueError, ImportError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        cure = "Is it a folder that spaCy wrote?" if Path(model).name != model else f"Run: python -m spacy download {model}"
        raise Missing(f"The spaCy pipeline {model!r} cannot be loaded ({said}). {cure}") from error
    if said := other_language(pipeline, language):  # a folder's name says nothing
        raise Missing(said)
    return pipeline


def phone(label: str) -> str:
    """Reduce a phoneme's label to the phoneme: without stress (``AH0``) and without its place in the word (``ah_B``)."""
    return re.sub(r"(?<=.)[\d_].*$", "", label.strip().lower())


def _phonemes(words: Words) -> Features:
    if words.phonemes is not None:
        units = [[p for p in map(phone, own) if p not in SILENCES] for own in words.phonemes]
        what = "phonemes"
    else:
        units = [[c for c in word.lower() if c.isalnum()] for word in words.anchors]
        what = "letters"
    counts, names = _counts(units)
    values = np.concatenate([counts.sum(1, keepdims=True), counts], 1)
    return Features(values, f"The number of {what} of the word, and how often each of {len(names)} {what} is in it.")


def _frequency(anchors: Sequence[str], language: str) -> Features:
    code = frequency_list(language)
    import wordfreq  # it is there: the list has been found

    try:
        values = np.array([[wordfreq.zipf_frequency(word, code)] for word in anchors])
    except ImportError as error:  # Chinese, Japanese and Korean are cut into words by libraries of their own
        said = str(error).splitlines()[0]
        raise Missing(f"wordfreq cannot count words of {language!r} ({said}). Run: pip install 'wordfreq[cjk]'") from error
    unknown = int((values == 0).sum())
    return Features(values, f"One number; {unknown} of {len(anchors)} words are not in wordfreq's list of {code!r} and count as 0.")


def _parts_of_speech(words: Words, pipeline: Any) -> Features:
    """Tag each anchor word among the words of its window; the first of its kind, since a window begins shortly before its anchor."""
    from spacy.tokens import Doc

    phrases, places = [], []
    for anchor, text in zip(words.anchors, words.texts, strict=True):
        phrase, word = [_bare(w) for w in text.split()], _bare(anchor)
        if word not in phrase:
            phrase = [word]
        phrases.append([w or "-" for w in phrase])
        places.append(phrase.index(word))
    idle = [name for name in pipeline.pipe_names if name in ("parser", "ner", "lemmatizer")]
    with pipeline.select_pipes(disable=idle):
        docs = list(pipeline.pipe([Doc(pipeline.vocab, words=phrase) for phrase in phrases]))
    tags = [[doc[place].pos_] for doc, place in zip(docs, places, strict=True)]
    if not any(tag for [tag] in tags):
        raise Missing(f"The spaCy pipeline {_name(pipeline)} gives no parts of speech. {_another(pipeline)}")
    values, names = _counts(tags)
    return Features(values, f"One of {len(names)} parts of speech per word ({_name(pipeline)}).")


def _vectors(words: Sequence[str], pipeline: Any) -> tuple[np.ndarray, np.ndarray]:
    """Look up the vectors of words as they stand or in lower case: (N, D), zero where there is none, and which have one (N,)."""
    vocab = pipeline.vocab
    if not vocab.vectors_length:
        raise Missing(f"The spaCy pipeline {_name(pipeline)} gives no word vectors. {_another(pipeline)}")
    values, known = np.zeros((len(words), vocab.vectors_length)), np.zeros(len(words), bool)
    for i, word in enumerate(words):
        for form in (_bare(word), _bare(word).lower()):
            if form and vocab.has_vector(form):
                values[i], known[i] = np.asarray(vocab.get_vector(form), float), True
                break
    return values, known


def _mean_vectors(texts: Sequence[str], pipeline: Any) -> Features:
    phrases = [text.split() for text in texts]
    vectors, known = _vectors([word for phrase in phrases for word in phrase], pipeline)
    row = np.repeat(np.arange(len(phrases)), [len(phrase) for phrase in phrases])
    values = np.zeros((len(phrases), vectors.shape[1]))
    np.add.at(values, row[known], vectors[known])
    n = np.bincount(row[known], minlength=len(phrases))
    return Features(
        values / np.maximum(n, 1)[:, None],
        f"Mean of the {values.shape[1]} numbers of the window's words ({_name(pipeline)}); {(~known).sum()} of {len(known)} words have no "
        f"vector, and {(n == 0).sum()} windows no word that has one.",
    )


def _bag_of_words(texts: Sequence[str]) -> Features:
    """Count the words of each window; a word of one window only tells nothing about another and is left out."""
    phrases = [normalised(text) for text in texts]
    among = Counter(word for phrase in phrases for word in set(phrase))
    values, names = _counts([[word for word in phrase if among[word] > 1] for phrase in phrases])
    return Features(values, f"Counts of {len(names)} words; {len(among) - len(names)} that stand in one window only are left out.")


def _states(texts: Sequence[str], name: str) -> Features:
    """Average the last hidden states of a language model over each window's tokens."""
    from transformers import AutoModel, AutoTokenizer

    try:
        with torch.random.fork_rng(devices=[]):  # making a network draws random numbers
            tokenizer, network = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name, use_safetensors=True).eval()
    except (OSError, ValueError, ImportError) as error:
        said = str(error).splitlines()[0]
        raise Missing(
            f"The language model {name!r} cannot be loaded ({said}). Run once where there is a network: hf download {name}"
        ) from error
    parts = []
    for start in range(0, len(texts), BATCH):
        tokens = tokenizer(list(texts[start : start + BATCH]), return_tensors="pt", padding=True, truncation=True)
        with torch.inference_mode():
            states = network(**tokens).last_hidden_state.float()  # (b, tokens, D)
        mask = tokens["attention_mask"][..., None]
        parts.append(((states * mask).sum(1) / mask.sum(1).clamp_min(1)).numpy().astype(float))
    values = np.concatenate(parts)
    return Features(values, f"Mean of the last hidden states of {name} over the window's tokens, {values.shape[1]} numbers.")


def _counts(units: Sequence[Sequence[str]]) -> tuple[np.ndarray, list[str]]:
    """Count what each of N lists holds: (N, D), and the names of the columns."""
    names = sorted({unit for own in units for unit in own})
    column = {name: d for d, name in enumerate(names)}
    values = np.zeros((len(units), len(names)))
    for i, own in enumerate(units):
        for unit in own:
            values[i, column[unit]] += 1
    return values, names


def _bare(word: str) -> str:
    """Take the punctuation off the ends of a word."""
    return word.strip(string.punctuation + "“”‘’«»…–—")


def _another(pipeline: Any) -> str:
    usual = usual_pipeline(pipeline.lang)
    return f"Take one that does: python -m spacy download {usual}" if usual else "Take one that does."


def _name(pipeline: Any) -> str:
    meta = pipeline.meta
    return f"{meta.get('lang', '')}_{meta.get('name', '')}".strip("_")
