"""The model card of a decoder: what it decodes, from whose data, how well, with which constants, and where it ends.

A card is made from what was saved and measured: the config of the saved folder, a report, the dataset's manifest. What nobody stated is
said not to be stated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from brainspeech import manifests, naming
from brainspeech.listing import some

# The entries of a report that a card says something about.
KEPT = ("title", "n_candidates", "n_windows", "chance", "subjects", "blocks", "folds", "seeds", "warnings")
KEPT_OF_ROW = ("median_rank", "p_above_chance", "p_above_shuffled", "control", "meaning")
SECTIONS = ("preprocess", "segments", "feature", "context", "batches", "model", "target_encoder", "loss", "train")


def condense(report: Mapping[str, Any], *, alarms: Iterable[str] = ()) -> dict[str, Any]:
    """Keep what a card needs of a report (``RetrievalReport.to_dict()``), small enough to travel with the weights.

    Parameters
    ----------
    alarms : iterable of str
        What makes the whole table doubtful (``RetrievalReport.alarms``).
    """
    rows = {
        name: {key: value for key, value in row.items() if key in KEPT_OF_ROW or key.startswith("top")}
        for name, row in report["rows"].items()
    }
    provenance = {key: report["provenance"].get(key) for key in ("versions", "commit", "device", "feature")}
    return {key: report.get(key) for key in KEPT} | {"rows": rows, "alarms": list(alarms), "provenance": provenance}


def data_terms(dataset: str) -> str:
    """Say on what terms a dataset may be had, from its manifest; of data without one, that nothing is stated.

    Parameters
    ----------
    dataset : str
        Its name in the recipe.
    """
    if dataset == "simulated":
        return "Simulated by brainspeech; there is nobody whose data they are, and no licence applies."
    if dataset not in manifests.names():
        return f"`{dataset}` has no manifest in brainspeech: who was recorded, and on what terms, is not stated here."
    manifest = manifests.load(dataset)
    doi = f", doi {manifest.doi}" if manifest.doi else ""
    return (
        f"{manifest.title} (version {manifest.version or 'not stated'}{doi}). Licence of the data: {manifest.licence}; access: "
        f"{manifest.access}. <{manifest.homepage}>"
    )


def model_card(
    config: Mapping[str, Any],
    report: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    licence: str | None = None,
) -> str:
    """Write the card as markdown with the header that hubs read.

    Parameters
    ----------
    config : mapping
        ``hub.Saved.config``, or what is about to be saved: model, model_config, recipe, subjects, ch_names, ch_types; and, where there are
        any, target_encoder and classes.
    report : mapping, optional
        What ``condense`` gave.
    name : str
        Of the model; the recipe's name without one.
    licence : str, optional
        Of the weights, as hubs write it (``cc-by-4.0``); None: not stated.

    Returns
    -------
    str
    """
    recipe = config["recipe"]
    name = name or recipe["name"]
    dataset = recipe["dataset"]["name"]
    lines = ["---", *_header(config, report, name, licence), "---", "", f"# {name}", ""]
    if report:
        lines += [line for alarm in report["alarms"] for line in (f"> **Warning.** {alarm}", "")]
    title = (report or {}).get("title") or recipe["title"]
    lines += [title, ""] if title else []
    lines += _what(config)
    lines += ["## Data", "", data_terms(dataset), ""]
    lines += ["Please cite:", "", "```bibtex", manifests.load(dataset).citation.strip(), "```", ""] if dataset in manifests.names() else []
    lines += _counts(config, report)
    lines += _licence(dataset, licence)
    lines += ["## How well", "", *_results(report), *_which(recipe, report)]
    lines += ["## How it was trained", "", *_constants(recipe), ""]
    lines += ["## Where it ends", "", *_limits(config, report), ""]
    lines += ["## How to use it", "", *_needs(config), *_usage(config), ""]
    if report:
        kept = {key: value for key, value in report["provenance"].items() if key != "feature"}
        lines += ["## Provenance", "", "```json", json.dumps(kept, indent=1, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


def _header(config: Mapping[str, Any], report: Mapping[str, Any] | None, name: str, licence: str | None) -> list[str]:
    """Write the YAML header; every value as JSON, which YAML reads."""
    kinds = {"mag": "meg", "grad": "meg"}
    tags = ["brain-decoding", "speech", *sorted({kinds.get(kind, kind) for kind in config.get("ch_types", [])})]
    lines = ["library_name: brainspeech", *([f"license: {json.dumps(licence)}"] if licence else []), f"tags: {json.dumps(tags)}"]
    if report:
        dataset = config["recipe"]["dataset"]["name"]
        metrics = [
            {
                "type": "accuracy",
                "name": f"{key.replace('top', 'top-')} segment accuracy among {report['n_candidates']} candidates{_interval(entry)}",
                "value": entry["value"],
                "args": {"low": entry["low"], "high": entry["high"], "chance": report["chance"][key]},
            }
            for key, entry in _accuracies(report["rows"][_lead(report)])
        ]
        task = {"type": "brain-to-speech-retrieval", "name": "which speech segment was heard"}
        lines.append(
            "model-index: "
            + json.dumps([{"name": name, "results": [{"task": task, "dataset": {"type": dataset, "name": dataset}, "metrics": metrics}]}])
        )
    return lines


def _what(config: Mapping[str, Any]) -> list[str]:
    recipe = config["recipe"]
    sections = recipe["segments"]
    kinds = ", ".join(config.get("ch_types", [])) or "M/EEG"
    n_estimated = config["model_config"].get("n_features", "")
    feature = f"(`{recipe['feature']['name']}`) of the speech that was heard"
    estimated = f"the {n_estimated} features {feature}"
    if target := config.get("target_encoder"):
        estimated = (
            f"{n_estimated} numbers, at every moment, that an audio encoder (`{target['name']}`), trained jointly with it and a part of "
            f"these weights, makes of the {target['config'].get('n_features', '')} features {feature}"
        )
    return [
        f"An encoder (`{config['model']}`) that estimates, from {sections['tmax'] - sections['tmin']:g} s of {kinds} in "
        f"{len(config['ch_names'])} channels, {estimated}. The estimate ranks candidate segments of speech; it is no text.",
        "",
    ]


def _counts(config: Mapping[str, Any], report: Mapping[str, Any] | None) -> list[str]:
    lines = [f"Fitted on {len(config['subjects'])} listeners: {some(config['subjects'], 40)}."]
    if report:
        lines[0] += (
            f" Tested on {report['n_windows']} windows of {report['subjects']} listeners in {report['blocks']} blocks of speech "
            "that training did not see."
        )
    return [*lines, ""]


def _licence(dataset: str, licence: str | None) -> list[str]:
    terms = f"Licence of the weights: {licence}." if licence else "Licence of the weights: not stated."
    if dataset in manifests.names():
        terms += f" They were fitted on data under {manifests.load(dataset).licence}, whose terms hold for what is made from them."
    return [terms, ""]


def _results(report: Mapping[str, Any] | None) -> list[str]:
    if not report:
        return ["It has not been tested: there is no report.", ""]
    keys = [key for key, _ in _accuracies(report["rows"][_lead(report)])]
    header = ["row", *(key.replace("top", "top-") + ", %" for key in keys), "median rank", "p > chance"]
    body = [
        [
            name,
            *(f"{100 * row[key]['value']:.1f}{_interval(row[key])}" for key in keys),
            f"{row['median_rank']:.4g}",
            "-" if row.get("p_above_chance") is None else f"{row['p_above_chance']:.2g}",
        ]
        for name, row in report["rows"].items()
    ]
    body.append(["chance", *(f"{100 * report['chance'][key]:.1f}" for key in keys), f"{(report['n_candidates'] - 1) / 2:.4g}", "-"])
    lines = [f"Segments found among {report['n_candidates']} candidates, percent [interval]; rank 0 is best.", ""]
    lines += [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *body)]
    return [*lines, "", *(f"- `{name}`: {row['meaning']}" for name, row in report["rows"].items() if row.get("meaning")), ""]


def _which(recipe: Mapping[str, Any], report: Mapping[str, Any] | None) -> list[str]:
    """Say of which fold and which seed the weights are, and what the figures are of."""
    seed = recipe["seeds"][0]
    n_folds, n_seeds = ((report.get("folds") or 1), len(report.get("seeds") or [seed])) if report else (1, 1)
    if n_folds == n_seeds == 1:
        return [f"The weights are those of the only fold and the only seed, {seed}" + (": the figures are theirs." if report else "."), ""]
    of = [f"fold 1 of {n_folds}" if n_folds > 1 else "the only fold", f"seed {seed}" + (f", the first of {n_seeds}" if n_seeds > 1 else "")]
    over = [f"all {n_folds} folds"] * (n_folds > 1) + [f"all {n_seeds} seeds"] * (n_seeds > 1)
    said = f"The weights are those of {of[0]} and of {of[1]}. The figures above are over {' and '.join(over)}, not of these weights alone."
    if n_folds > 1:
        seen = "listeners" if recipe.get("folds") == "leave_subject_out" else "speech"
        said += f" Each fold was tested on {seen} that its own training did not see; these weights have seen {seen} of other folds' tests."
    return [said, ""]


def _constants(recipe: Mapping[str, Any]) -> list[str]:
    lines = ["| constant | value |", "| --- | --- |"]
    for section in SECTIONS:
        value = recipe.get(section)
        if value is None:
            continue
        if isinstance(value, Mapping) and set(value) == {"name", "options"}:
            value = {"name": value["name"], **value["options"]}
        for key, entry in value.items() if isinstance(value, Mapping) else [("", value)]:
            text = json.dumps(entry, ensure_ascii=False).replace("|", "\\|")
            lines.append(f"| {section}{'.' if key else ''}{key} | `{text}` |")
    return [*lines, f"| seeds | `{json.dumps(recipe['seeds'])}` |"]


def _limits(config: Mapping[str, Any], report: Mapping[str, Any] | None) -> list[str]:
    unseen = (
        "a generic subject layer"
        if config["model_config"].get("generic_subject")
        else "the average of the subject layers, or what stands for it"
    )
    lines = [
        f"A listener who is not among the {len(config['subjects'])} above is decoded with {unseen}, and with scales borrowed from "
        "the others.",
        "Signals must be in volt or tesla, preprocessed with the constants above; channels are matched by name, and those that are missing "
        "are masked.",
        "Perceived speech only, heard by listeners who were recorded for it. It has not been shown to read inner speech, or anybody who "
        "does not cooperate.",
    ]
    return [f"- {text}" for text in [*lines, *(w for w in (report or {}).get("warnings", []) if w not in (report or {})["alarms"])]]


def _needs(config: Mapping[str, Any]) -> list[str]:
    """Name the classes that whoever uses the weights has to have, and where they come from."""
    if not config.get("classes"):
        return []
    lines = ["Classes of its authors' own are needed, which are not in these files: no code is. Get them first, and read them.", ""]
    for entry in config["classes"]:
        origin = entry["origin"] or "where it comes from was not known when this was written"
        use = " Only new candidates need it." if entry["what"] == "feature" else ""
        lines.append(f"- {entry['what']} `{entry['name']}`: {origin}.{use}")
    return [*lines, ""]


def _usage(config: Mapping[str, Any]) -> list[str]:
    recipe = config["recipe"]
    sfreq, duration = recipe["preprocess"]["sfreq"], recipe["segments"]["tmax"] - recipe["segments"]["tmin"]
    own = list(dict.fromkeys(naming.how_to_import(entry["name"]) for entry in config.get("classes", [])))
    modules = [line for line in own if line.startswith("import ")]
    return [
        "```python",
        *["import brainspeech.recipe"] * any(line.startswith("brainspeech.recipe.") for line in own),
        *modules,
        "from brainspeech import SpeechDecoder",
        "",
        *(line for line in own if line not in modules),
        'decoder = SpeechDecoder.from_pretrained("owner/name")  # or a folder',
        f"estimates = decoder.predict(windows)  # (n, {len(config['ch_names'])}, {round(duration * sfreq)}) at {sfreq:g} Hz, or mne.Epochs",
        "```",
    ]


def _lead(report: Mapping[str, Any]) -> str:
    return "encoder" if "encoder" in report["rows"] else next(iter(report["rows"]))


def _accuracies(row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(((key, value) for key, value in row.items() if key.startswith("top")), key=lambda item: int(item[0][3:]))


def _interval(entry: Mapping[str, float | None]) -> str:
    low, high = entry["low"], entry["high"]
    return "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
