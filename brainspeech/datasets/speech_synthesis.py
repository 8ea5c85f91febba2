"""Speech-like sound with known words, made from nothing but a seed.

A small formant synthesiser: sentences are drawn from a template grammar over about 180 English words (frequent words first, Zipf's law
inside each word class), each word is a sequence of phonemes, each phoneme one to three steps of a parameter track, and the tracks,
smoothed a little (coarticulation), shape a pulse train (voice) and noise (frication, bursts) frame by frame.

What is there: vowels and diphthongs with the formants of Peterson & Barney (1952), nasals, liquids, fricatives, stops with closure and
burst, affricates; stressed content words, weak function words; a falling pitch with accents, a speaking rate and a loudness for each
sentence, lengthening at its end; pauses. What is not: a second speaker, breath, real letter-to-sound rules, meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.fft
from scipy.ndimage import gaussian_filter1d

AUDIO_SFREQ = 16_000
_HOP, _WINDOW, _N_FFT = 64, 256, 512  # 4, 16 and 32 ms
_FRAME_RATE = AUDIO_SFREQ / _HOP
_BREAK = 25.0  # Hz; below half the lowest pitch
_SILENT = -120.0  # dB


class _Step(NamedTuple):
    """A piece of a phoneme: seconds, dB of voice and of noise, three formants (Hz), centre and width of the noise (Hz)."""

    duration: float
    voice: float
    noise: float
    formants: tuple[float, float, float]
    centre: float = 1500.0
    width: float = 1500.0
    elastic: bool = True  # follows the speaking rate


@dataclass(frozen=True)
class Spoken:
    """A stretch of a story; seconds from the first sample of the sound."""

    kind: str
    onset: float
    duration: float
    text: str
    sequence: str


@dataclass(frozen=True, eq=False)
class Story:
    """A sound and what is said in it.

    Parameters
    ----------
    audio : array, shape (n_samples,), float32
        Sound at ``AUDIO_SFREQ``, its peak below 1.
    spoken : tuple of Spoken
        Sentences, words and phonemes.
    """

    audio: np.ndarray
    spoken: tuple[Spoken, ...]


# Means of the male speakers of Peterson & Barney, J. Acoust. Soc. Am. 24, 175 (1952), table II.
_VOWELS = {
    "IY": (270, 2290, 3010),
    "IH": (390, 1990, 2550),
    "EH": (530, 1840, 2480),
    "AE": (660, 1720, 2410),
    "AA": (730, 1090, 2440),
    "AO": (570, 840, 2410),
    "UH": (440, 1020, 2240),
    "UW": (300, 870, 2240),
    "AH": (640, 1190, 2390),
    "ER": (490, 1350, 1690),
}
_DIPHTHONGS = {"EY": ("EH", "IY"), "AY": ("AA", "IH"), "OY": ("AO", "IH"), "AW": ("AA", "UH"), "OW": ("AO", "UH")}
_NEUTRAL = (500, 1500, 2500)


def _inventory() -> dict[str, tuple[_Step, ...]]:
    phonemes: dict[str, tuple[_Step, ...]] = {}
    for name, formants in _VOWELS.items():
        phonemes[name] = (_Step(0.085, 0, -50, formants),)
    for name, (first, second) in _DIPHTHONGS.items():
        phonemes[name] = (_Step(0.07, 0, -50, _VOWELS[first]), _Step(0.055, -2, -50, _VOWELS[second]))
    for name, formants in {"M": (250, 1000, 2200), "N": (250, 1500, 2500), "NG": (250, 2000, 2600)}.items():
        phonemes[name] = (_Step(0.065, -9, _SILENT, formants),)
    for name, formants in {"L": (360, 1100, 2600), "R": (420, 1200, 1600), "W": (300, 700, 2200), "Y": (270, 2200, 3000)}.items():
        phonemes[name] = (_Step(0.055, -5, _SILENT, formants),)
    # Voice and noise in dB, formants that the neighbours glide towards, centre and width of the noise.
    for name, voice, noise, formants, centre, width in (
        ("S", _SILENT, -8, (300, 1700, 2600), 6000, 1500),
        ("Z", -14, -12, (300, 1700, 2600), 6000, 1500),
        ("SH", _SILENT, -7, (300, 1900, 2500), 3500, 1100),
        ("F", _SILENT, -20, (300, 1000, 2300), 4500, 3500),
        ("V", -10, -24, (300, 1000, 2300), 4500, 3500),
        ("TH", _SILENT, -22, (300, 1400, 2500), 5500, 3000),
        ("DH", -10, -27, (300, 1400, 2500), 5500, 3000),
        ("HH", _SILENT, -17, _NEUTRAL, 1500, 1200),
    ):
        duration = 0.09 if voice == _SILENT else 0.065
        phonemes[name] = (_Step(duration, voice, noise, formants, centre, width),)
    for name, voiced, formants, centre, width in (
        ("P", False, (250, 900, 2200), 900, 900),
        ("B", True, (250, 900, 2200), 900, 900),
        ("T", False, (250, 1700, 2600), 4500, 1600),
        ("D", True, (250, 1700, 2600), 4500, 1600),
        ("K", False, (250, 2000, 2300), 2000, 900),
        ("G", True, (250, 2000, 2300), 2000, 900),
    ):
        closure = _Step(0.05, -26 if voiced else _SILENT, _SILENT, formants)
        burst = _Step(0.012, -18 if voiced else _SILENT, -8, formants, centre, width, elastic=False)
        aspiration = _Step(0.028, _SILENT, -22, formants, elastic=False)
        phonemes[name] = (closure, burst) if voiced else (closure, burst, aspiration)
    for name, voice in (("CH", _SILENT), ("JH", -16)):
        closure = _Step(0.045, _SILENT if name == "CH" else -26, _SILENT, (250, 1800, 2500))
        phonemes[name] = (closure, _Step(0.06, voice, -9, (250, 1900, 2500), 3500, 1200))
    return phonemes


PHONEMES = _inventory()

# A class of words to a line, frequent ones first: word, then its phonemes.
_LEXICON_TEXT = {
    "determiner": "the DH AH; a AH; his HH IH Z; her HH ER; this DH IH S; every EH V R IY; some S AH M; their DH EH R; that DH AE T",
    "pronoun": "he HH IY; she SH IY; they DH EY; we W IY; it IH T; nobody N OW B AA D IY; someone S AH M W AH N",
    "preposition": (
        "to T UW; in IH N; of AH V; with W IH TH; on AA N; from F R AH M; under AH N D ER; over OW V ER; behind B IH HH AY N D; "
        "near N IH R; through TH R UW; beyond B IH Y AA N D"
    ),
    "conjunction": "and AE N D; but B AH T; because B IH K AO Z; while W AY L; until AH N T IH L; so S OW",
    "adverb": (
        "again AH G EH N; slowly S L OW L IY; away AH W EY; quickly K W IH K L IY; always AO L W EY Z; there DH EH R; once W AH N S; "
        "together T AH G EH DH ER; softly S AO F T L IY; today T AH D EY; never N EH V ER; suddenly S AH D AH N L IY"
    ),
    "adjective": (
        "old OW L D; little L IH T AH L; long L AO NG; good G UH D; young Y AH NG; dark D AA R K; great G R EY T; quiet K W AY AH T; "
        "small S M AO L; white W AY T; cold K OW L D; strange S T R EY N JH; green G R IY N; tall T AO L; heavy HH EH V IY; "
        "golden G OW L D AH N; silver S IH L V ER; hungry HH AH NG G R IY; clever K L EH V ER; broken B R OW K AH N; deep D IY P; "
        "yellow Y EH L OW; happy HH AE P IY; sharp SH AA R P; gentle JH EH N T AH L; empty EH M P T IY; brave B R EY V; narrow N EH R OW"
    ),
    "noun": (
        "man M AE N; day D EY; house HH AW S; water W AO T ER; woman W UH M AH N; night N AY T; door D AO R; child CH AY L D; "
        "road R OW D; hand HH AE N D; boat B OW T; river R IH V ER; king K IH NG; story S T AO R IY; fish F IH SH; window W IH N D OW; "
        "garden G AA R D AH N; horse HH AO R S; mountain M AW N T AH N; fire F AY ER; dog D AO G; sea S IY; teacher T IY CH ER; "
        "letter L EH T ER; bird B ER D; village V IH L IH JH; table T EY B AH L; sister S IH S T ER; forest F AO R AH S T; "
        "captain K AE P T AH N; moon M UW N; market M AA R K AH T; stone S T OW N; island AY L AH N D; doctor D AA K T ER; "
        "music M Y UW Z IH K; bread B R EH D; shadow SH AE D OW; bridge B R IH JH; apple AE P AH L; sailor S EY L ER; "
        "winter W IH N T ER; farmer F AA R M ER; basket B AE S K AH T; rabbit R AE B AH T; kitchen K IH CH AH N; thunder TH AH N D ER; "
        "feather F EH DH ER; candle K AE N D AH L; mirror M IH R ER; tower T AW ER; castle K AE S AH L; dream D R IY M; "
        "blanket B L AE NG K AH T; monkey M AH NG K IY; pepper P EH P ER; voice V OY S; coin K OY N; valley V AE L IY; ship SH IH P"
    ),
    "verb": (
        "saw S AO; found F AW N D; took T UH K; knew N UW; heard HH ER D; followed F AA L OW D; loved L AH V D; left L EH F T; "
        "watched W AA CH T; wanted W AO N T AH D; carried K EH R IY D; opened OW P AH N D; remembered R IH M EH M B ER D; sold S OW L D; "
        "called K AO L D; painted P EY N T AH D; lost L AO S T; touched T AH CH T; feared F IH R D; helped HH EH L P T; "
        "forgot F ER G AA T; brought B R AO T; washed W AA SH T; answered AE N S ER D; broke B R OW K; caught K AO T; "
        "promised P R AA M AH S T; visited V IH Z AH T AH D; hid HH IH D; counted K AW N T AH D"
    ),
    "motion": (
        "went W EH N T; came K EY M; walked W AO K T; looked L UH K T; sat S AE T; ran R AE N; waited W EY T AH D; slept S L EH P T; "
        "turned T ER N D; stood S T UH D; jumped JH AH M P T; climbed K L AY M D; wandered W AA N D ER D; sang S AE NG; "
        "travelled T R AE V AH L D; whispered W IH S P ER D"
    ),
}
LEXICON = {
    kind: {word: tuple(phonemes) for word, *phonemes in (entry.split() for entry in text.split(";"))}
    for kind, text in _LEXICON_TEXT.items()
}
_FUNCTION = ("determiner", "pronoun", "preposition", "conjunction")
_PRONUNCIATION = {word: phonemes for words in LEXICON.values() for word, phonemes in words.items()}
_WEAK = {word for kind in _FUNCTION for word in LEXICON[kind]}
VOCABULARY = tuple(sorted(_PRONUNCIATION))


def tell_story(rng: np.random.Generator, *, duration: float, name: str) -> Story:
    """Make up a story and speak it.

    Every sentence is new, except for one refrain that comes back about once a minute.

    Parameters
    ----------
    rng : Generator
        Source of everything random here.
    duration : float
        Seconds of sound; what the last sentence leaves free is silence.
    name : str
        Put in front of the sentences' identities.
    """
    n_samples = round(duration * AUDIO_SFREQ)
    audio = np.zeros(n_samples, dtype=np.float32)
    spoken: list[Spoken] = []
    position = round(0.4 * AUDIO_SFREQ)
    last_refrain = 0.0
    told: list[tuple[str, ...]] = []
    while True:
        words = compose_sentence(rng, told)
        if len(told) > 2 and position / AUDIO_SFREQ - last_refrain > 55:
            words, last_refrain = told[2], position / AUDIO_SFREQ
        sound, pieces = speak(rng, words)
        if position + len(sound) > n_samples:
            break
        audio[position : position + len(sound)] += sound
        onset, sequence = position / AUDIO_SFREQ, f"{name}/{len(told):03d}"
        spoken += [Spoken(kind, onset + start, length, text, sequence) for kind, start, length, text in pieces]
        told.append(words)
        position += len(sound) + round(rng.uniform(0.25, 0.8) * AUDIO_SFREQ)
    audio *= 0.7 / max(float(np.abs(audio).max()), 1e-9)
    audio += rng.normal(0, 3e-4, n_samples).astype(np.float32)  # a room's hiss: no sound file is exactly silent
    return Story(audio, tuple(spoken))


def compose_sentence(rng: np.random.Generator, told: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Make up a sentence of 4 to 12 words that is not among those told."""
    while True:
        kinds = _clause(rng)
        if rng.random() < 0.35:
            kinds = [*kinds, "conjunction", *_clause(rng)]
        words = tuple(_draw_word(rng, kind) for kind in kinds)
        if 4 <= len(words) <= 12 and words not in told:
            return words


def _clause(rng: np.random.Generator) -> list[str]:
    def noun_phrase(pronoun: float) -> list[str]:
        if rng.random() < pronoun:
            return ["pronoun"]
        return ["determiner", "adjective", "noun"] if rng.random() < 0.45 else ["determiner", "noun"]

    if rng.random() < 0.5:
        kinds = [*noun_phrase(0.25), "verb", *noun_phrase(0)]
    else:
        kinds = [*noun_phrase(0.25), "motion", "preposition", *noun_phrase(0)]
    return [*kinds, "adverb"] if rng.random() < 0.25 else kinds


def _draw_word(rng: np.random.Generator, kind: str) -> str:
    words = list(LEXICON[kind])
    weights = 1 / (np.arange(len(words)) + 2.0)
    return words[int(rng.choice(len(words), p=weights / weights.sum()))]


def speak(rng: np.random.Generator, words: tuple[str, ...]) -> tuple[np.ndarray, list[tuple[str, float, float, str]]]:
    """Speak one sentence.

    Returns
    -------
    sound : array, shape (n_samples,), float32
        At ``AUDIO_SFREQ``; about 0 dB = 1.
    pieces : list of (kind, onset, duration, text)
        The sentence, its words and their phonemes, seconds from the first sample.
    """
    rate = float(np.exp(rng.normal(0, 0.1)))
    loudness = float(rng.normal(0, 2.0))
    steps: list[_Step] = []
    accents: list[tuple[float, float]] = []  # (time, height in octaves)
    pieces: list[tuple[str, float, float, str]] = []
    time = 0.0
    for index, word in enumerate(words):
        weak = word in _WEAK
        word_onset, stressed = time, weak
        for phoneme in _PRONUNCIATION[word]:
            phoneme_onset = time
            vowel = phoneme in _VOWELS or phoneme in _DIPHTHONGS
            stretch = rate * float(np.exp(rng.normal(0, 0.12))) * (0.8 if weak else 1.0) * (1.3 if index == len(words) - 1 else 1.0)
            gain = loudness - (4.0 if weak else 0.0)
            if vowel and not stressed:  # the first vowel of a content word carries the stress
                stressed, stretch, gain = True, stretch * 1.35, gain + 2.0
                accents.append((time + 0.04, float(rng.uniform(0.05, 0.3))))
            for step in PHONEMES[phoneme]:
                length = step.duration * (stretch if step.elastic else 1.0)
                steps.append(step._replace(duration=length, voice=step.voice + gain, noise=step.noise + gain))
                time += length
            pieces.append(("phoneme", phoneme_onset, time - phoneme_onset, phoneme))
        pieces.append(("word", word_onset, time - word_onset, word))
        if index < len(words) - 1:
            # Most words run into the next; before a conjunction and now and then the speaker halts.
            halt = words[index + 1] in LEXICON["conjunction"] or rng.random() < 0.12
            pause = float(rng.uniform(0.1, 0.25)) if halt else float(rng.uniform(0.0, 0.03))
            steps.append(_Step(pause, _SILENT, _SILENT, steps[-1].formants))
            time += pause
    pieces.append(("sentence", 0.0, time, " ".join(words)))
    return _render(rng, steps, accents), pieces


def _render(rng: np.random.Generator, steps: list[_Step], accents: list[tuple[float, float]]) -> np.ndarray:
    """Turn parameter steps into sound: excitation, short-time spectrum, envelope, overlap-add."""
    stops = np.cumsum([step.duration for step in steps])
    n_samples = round(float(stops[-1]) * AUDIO_SFREQ)
    n_frames = n_samples // _HOP + 1
    times = np.arange(n_frames) / _FRAME_RATE  # centres of the frames
    which = np.minimum(np.searchsorted(stops, times, side="right"), len(steps) - 1)
    table = np.array([(step.voice, step.noise, *step.formants, step.centre, step.width) for step in steps], dtype=np.float32)
    tracks = table[which]
    gains = gaussian_filter1d(10 ** (tracks[:, :2] / 20), 0.004 * _FRAME_RATE, axis=0, mode="nearest")
    formants = gaussian_filter1d(tracks[:, 2:5], 0.014 * _FRAME_RATE, axis=0, mode="nearest")

    moments = np.arange(n_samples) / AUDIO_SFREQ
    octaves = 0.15 - 0.35 * moments / moments[-1]
    for time, height in accents:
        octaves += height * np.exp(-0.5 * ((moments - time) / 0.07) ** 2)
    octaves += 0.02 * np.sin(2 * np.pi * (5.2 * moments + rng.random()))
    turns = np.cumsum(118.0 * 2**octaves) / AUDIO_SFREQ
    pulses = np.diff(np.floor(turns), prepend=0.0).astype(np.float32) * 12
    hiss = rng.standard_normal(n_samples, dtype=np.float32)

    spectrum = _short_time_spectrum(pulses) * _voice_envelope(formants) * gains[:, :1]
    spectrum += _short_time_spectrum(hiss) * _noise_envelope(tracks[:, 5:6], tracks[:, 6:7]) * gains[:, 1:2]
    return _overlap_add(spectrum, n_samples)


_FREQUENCIES = np.fft.rfftfreq(_N_FFT, 1 / AUDIO_SFREQ).astype(np.float32)
_SQRT_HANN = np.sin(np.pi * (np.arange(_WINDOW) + 0.5) / _WINDOW).astype(np.float32)


def _voice_envelope(formants: np.ndarray) -> np.ndarray:
    """Cascade of resonators over a falling glottal spectrum, shape (n_frames, n_bins)."""
    envelope = 1 / (1 + (_FREQUENCIES / 250.0) ** 1.2) * (_FREQUENCIES > _BREAK)
    resonators = [
        (formants[:, [0]], 80.0),
        (formants[:, [1]], 110.0),
        (formants[:, [2]], 170.0),
        (np.full((1, 1), 3500.0, np.float32), 250.0),
    ]
    envelope = np.broadcast_to(envelope, (len(formants), len(_FREQUENCIES)))
    for centre, bandwidth in resonators:
        envelope = envelope * (centre**2 / np.sqrt((_FREQUENCIES**2 - centre**2) ** 2 + (bandwidth * _FREQUENCIES) ** 2))
    # The gain of a vowel does not depend on where its formants stand.
    return envelope / np.sqrt(np.mean(envelope**2, axis=1, keepdims=True))


def _noise_envelope(centre: np.ndarray, width: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((_FREQUENCIES - centre) / width) ** 2)


def _short_time_spectrum(sound: np.ndarray) -> np.ndarray:
    padded = np.pad(sound, (_WINDOW // 2, _WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][: len(sound) // _HOP + 1] * _SQRT_HANN
    # The frame stands in the middle of the transform: the envelopes have no phase, so they smear to both sides.
    margin = (_N_FFT - _WINDOW) // 2
    return scipy.fft.rfft(np.pad(frames, ((0, 0), (margin, margin))), axis=1)


def _overlap_add(spectrum: np.ndarray, n_samples: int) -> np.ndarray:
    margin = (_N_FFT - _WINDOW) // 2
    frames = scipy.fft.irfft(spectrum, _N_FFT, axis=1)[:, margin : margin + _WINDOW] * _SQRT_HANN
    n_steps = _WINDOW // _HOP
    out = np.zeros((len(frames) + n_steps - 1, _HOP), dtype=np.float32)
    for step in range(n_steps):
        out[step : step + len(frames)] += frames[:, step * _HOP : (step + 1) * _HOP]
    # Four overlapping squared windows sum to 2.
    return out.reshape(-1)[_WINDOW // 2 : _WINDOW // 2 + n_samples] / (n_steps / 2)
