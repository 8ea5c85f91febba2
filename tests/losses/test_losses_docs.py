"""The table of presets, the pages on losses, and losses put together."""

from __future__ import annotations

import re
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from paper_loops import make_vectors

from brainspeech import losses
from brainspeech.losses import catalogue
from brainspeech.losses.auxiliary import Weighted
from brainspeech.losses.clip import ClipLoss

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_table_of_presets_is_current():
    page = (DOCS / "losses.md").read_text()
    assert catalogue.update(page) == page, "Run: python -m brainspeech.losses.catalogue docs/losses.md"
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert list(rows) == list(losses.LOSSES)
    assert "claimed" in rows["cmim"]
    assert [rows[name].split(" | ")[2] for name in ("clip", "dcl", "siglip")] == ["1", "0.1", "0.1, learned"]


def test_the_table_is_rewritten_in_place(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{catalogue.BEGIN}\nold\n{catalogue.END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["catalogue", str(page)])
    with pytest.warns(RuntimeWarning, match="found in sys.modules"):
        runpy.run_module("brainspeech.losses.catalogue", run_name="__main__")
    text = page.read_text()
    assert text == f"before\n{catalogue.BEGIN}\n{catalogue.table()}\n{catalogue.END}\nafter\n"
    with pytest.raises(ValueError, match="must have the lines"):
        catalogue.update("no marks")


def test_a_docstring_without_evidence_is_an_error():
    class Undocumented(ClipLoss):
        """A loss.

        Paper: someone.
        Changes: something.
        """

    with pytest.raises(ValueError, match='Undocumented has no line that begins with "Evidence:"'):
        catalogue.describe(Undocumented)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_every_docstring_says_where_it_departs(name):
    text = type(losses.build(name)).__doc__
    assert "depart" in text.lower()
    if catalogue.describe(type(losses.build(name)))["Evidence"].startswith(("C", "B/C")):
        assert "no fidelity" in text.lower()


def test_the_picture_is_an_svg():
    assert ElementTree.parse(DOCS / "figures" / "masks.svg").getroot().get("aria-label")


def test_weighted_adds_and_scores_by_the_first():
    estimates, candidates = make_vectors(4, 0).requires_grad_(), make_vectors(4, 1)
    clip, dcl = losses.build("clip"), losses.build("dcl")
    both = Weighted({"clip": (clip, 1.0), "dcl": (dcl, 0.25)})
    ids = torch.tensor([1, 2, 1, 3])
    output = both(estimates, candidates, row_ids=ids, col_ids=ids)
    parts = [loss(estimates, candidates, row_ids=ids).loss for loss in (clip, dcl)]
    torch.testing.assert_close(output.loss, parts[0] + 0.25 * parts[1])
    assert output.logs["dcl"] == parts[1]
    assert output.logs["clip/n_ignored"] == 2
    assert torch.equal(both.scores(estimates, candidates), clip.scores(estimates, candidates))
    control = Weighted({"clip": (clip, 1.0), "dcl": (dcl, 0.0)})(estimates, candidates)
    assert torch.equal(torch.autograd.grad(control.loss, estimates)[0], torch.autograd.grad(clip(estimates, candidates).loss, estimates)[0])
    assert control.logs["dcl"] == dcl(estimates, candidates).loss
    assert set(Weighted({"clip": (losses.build("clip_symmetric"), 1.0)}).state_dict()) == {"losses.clip.objective.scale.log_change"}
    with pytest.raises(ValueError, match="at least one loss"):
        Weighted({})
    with pytest.raises(ValueError, match="finite numbers"):
        Weighted({"clip": (clip, float("nan"))})
