"""What is decoded, in sentences and tables: words, repeated presentations, and what goes along with being decoded well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brainspeech import lexicon
from brainspeech.evaluate import RetrievalReport
from brainspeech.figures import label, percent, widest

from .saying import many, markdown_table, say_entry, say_p

FLAT = 0.5  # a softmax over more than this share of the candidates tells them apart too little for a sum of probabilities
REPEATS = "Repeated presentations"
NO_REPEATS = "No segment of the test split was heard twice by a subject, so there is nothing to average."
NEAREST, SAME = "nearest candidate", "same k words"
GROUPS = {"all": "all windows", "seen": "word in training", "unseen": "word not in training"}


@dataclass(frozen=True)
class Part:
    """A part of the section: what is said, a table (none without body), and notes below it."""

    title: str
    sentences: Sequence[str]
    header: Sequence[str] = ()
    body: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    classes: Mapping[str, str] = field(default_factory=dict)


def parts(report: RetrievalReport) -> list[Part]:
    """Say what is decoded; nothing for a report in which it was not looked at."""
    found = report.curves.get("decoded") or {}
    out = []
    for name, say in (("words", _words), ("repeats", _repeats), ("regression", _regression)):
        if found.get(name):
            out.append(say(found[name], report))
        elif name == "repeats" and name in found:  # silence would read as a failure
            out.append(Part(REPEATS, [NO_REPEATS]))
    return out


def markdown(report: RetrievalReport) -> list[str]:
    """Write the section as lines of markdown; none where there is nothing."""
    lines: list[str] = []
    for part in parts(report):
        lines += [f"### {part.title}", "", *(line for text in part.sentences for line in (text, ""))]
        lines += [*markdown_table(part.header, part.body), ""] if part.body else []
        lines += [*(f"- {note}" for note in part.notes), ""] if part.notes else []
    return ["## What is decoded", "", *lines] if lines else []


def _words(found: Mapping[str, Any], report: RetrievalReport) -> Part:
    if "why" in found:
        return Part("Words", [found["why"]])
    ks = _ks(report)
    k = max([k for k in ks if k < found["vocabulary"]], default=ks[0])  # the largest that can be missed
    key, groups = f"top{k}", found["groups"]
    body = [
        _line(said, groups[name], [_entry(groups[name]["sum"][f"top{i}"]) for i in ks], _entry(groups[name]["segment"][key]))
        for name, said in GROUPS.items()
        if groups[name]["windows"]
    ]
    body.append(_line(NEAREST, groups["all"], [_entry(groups["all"]["nearest"][f"top{i}"]) for i in ks], "-"))
    body.append(_line(SAME, groups["all"], [percent(groups["all"]["frequent"][f"top{i}"]) for i in ks], "-"))
    body.append(["chance", "-", "-", *(percent(found["chance"][f"top{i}"]) for i in ks), percent(report.chance[key])])
    return Part(
        "Words",
        _words_said(found, label(report.curves["lead"]), k),
        ["word", "windows", "words", *(f"top-{i}, %" for i in ks), f"segment top-{k}, %"],
        [[cell.removesuffix(" %") for cell in line] for line in body],
        notes=[
            f"{NEAREST}: all windows again, words in the order of their nearest candidates. No temperature has a part in it.",
            f"{SAME}: one answer for all windows, the words that are right most often.",
        ],
        classes={GROUPS["all"]: "lead", SAME: "chance", "chance": "chance"},
    )


def _words_said(found: Mapping[str, Any], lead: str, k: int) -> list[str]:
    """Say how words were aggregated, what was found, and where a sum of probabilities misleads."""
    key, everything, unseen, left = f"top{k}", found["groups"]["all"], found["groups"]["unseen"], found["left_out"]
    how = (
        f"A window stands for the word at its anchor. The scores of the {lead} are the logits of a softmax over candidates, as they are: "
        "no temperature is fitted. The probabilities of candidates with the same word are added: "
        f"{many(found['candidates'], 'candidate')}, {many(found['vocabulary'], 'word')}."
    )
    if left["windows"] or left["candidates"]:
        how += f" {many(left['windows'], 'window')} and {many(left['candidates'], 'candidate')} without an anchor word are left out."
    value, frequent = everything["sum"][key]["value"], everything["frequent"][key]
    same = f"the same {k} words" if k > 1 else "the same word"
    what = (
        f"The word is among the best {k} in {percent(value)} of the windows; answering {same} for all would be right in "
        f"{percent(frequent)} of them, and guessing in {percent(found['chance'][key])}."
    )
    if value <= frequent:
        what += " So nothing about the word needs to have been decoded."
    if unseen["windows"]:
        what += (
            f" {many(unseen['words'], 'word')} ({many(unseen['windows'], 'window')}) stand in no training window; for these it is "
            f"{percent(unseen['sum'][key]['value'])}. Such words tend to be rarer and longer: the groups differ in more than training."
        )
    else:
        what += " No test word is absent from training."
    if found["spread"] is None or found["spread"] <= FLAT:
        return [how, what]
    flat = (
        f"As logits these scores are flat: the softmax spreads over {percent(found['spread'], 0)} of the candidates, so a sum of "
        f"probabilities mostly counts the candidates of a word. The row `{NEAREST}` does not."
    )
    return [how, what, flat]


def _line(name: str, group: Mapping[str, Any], cells: Sequence[str], segment: str) -> list[str]:
    return [name, f"{group['windows']:,}", f"{group['words']:,}", *cells, segment]


def _entry(entry: Mapping[str, float | None]) -> str:
    return say_entry(entry, short=True)


def _repeats(found: Mapping[str, Any], report: RetrievalReport) -> Part:
    n, ks = found["presentations"], _ks(report)
    k = widest(report)
    gain = found["gain"][f"top{k}"]
    limits = "" if gain["low"] is None else f" [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
    said = (
        f"The same subject heard the same segment more than once: {many(found['repeated'], 'pair')} of subject and segment, of which "
        f"{found['pairs']:,} have {n} presentations and count here. Scores are averaged over the first r of them. From one presentation to "
        f"{n}, top-{k} accuracy changes by {100 * gain['value']:+.1f} points{limits}."
    )
    body = []
    for r in range(n):
        body.append(
            [
                str(r + 1),
                *(_entry(found["averaged"][r][f"top{i}"]).removesuffix(" %") for i in ks),
                percent(found["alone"][r][f"top{k}"])[:-2],
            ]
        )
    body.append(["chance", *(percent(report.chance[f"top{i}"])[:-2] for i in ks), percent(report.chance[f"top{k}"])[:-2]])
    header = ["r", *(f"top-{i}, %" for i in ks), f"top-{k} of presentation r alone, %"]
    return Part(REPEATS, [said], header, body, classes={"chance": "chance"})


def _regression(found: Mapping[str, Any], report: RetrievalReport) -> Part:
    title = "What goes along with being decoded well"
    if "why" in found:
        return Part(title, [found["why"]])
    stimuli = "1 stimulus" if found["stimuli"] == 1 else f"{found['stimuli']:,} stimuli"
    says = (
        "How well a stimulus is decoded is the log-odds of its rank, log((N - rank - 1/2) / (rank + 1/2)), averaged over seeds and "
        f"{many(found['subjects'], 'subject')}, each around its own mean; the softmax's own log-odds would depend on the scale of the "
        f"scores. Ridge regression predicts it from features of the words, in {stimuli} of {many(found['blocks'], 'block')}, whole blocks "
        "held out. R is the correlation of predicted and observed values of held-out stimuli; null is the central 95 % of R with blocks "
        f"exchanged ({found['permutations']:,} draws), p is one-sided, and Holm corrects it for the number of sets. Sets of features are "
        "correlated with each other and with the sound: R says what goes along, not why."
    )
    if found["left_out"]:
        says += f" {many(found['left_out'], 'candidate')} without words are left out."
    body, notes = [], []
    for name, entry in found["sets"].items():
        said = label(name)
        if "why" in entry:
            body.append([said, "-", "-", "-", "-"])
            notes.append(f"{said}: {entry['why']}")
            continue
        body.append(
            [
                said,
                f"{entry['r']:.3f} [null {entry['low']:+.3f}, {entry['high']:+.3f}]",
                say_p(entry["p"]).removeprefix("p = "),
                say_p(entry["p_holm"]).removeprefix("p = "),
                str(entry["n_features"]),
            ]
        )
        notes.append(f"{said}: {lexicon.MEANINGS[name]}. {entry['note']}")
    return Part(title, [says], ["features", "R", "p", "p, Holm", "numbers"], body, notes)


def _ks(report: RetrievalReport) -> list[int]:
    return sorted(int(key[3:]) for key in report.chance if key.startswith("top"))
