"""What is not finite is found, late on a GPU, and told with the names of its segments."""

import numpy as np
import pytest
import torch
from test_resident import make_data

from brainspeech.watching import CHECKED_EVERY, SEEN, Watch, listed, not_finite

CPU = torch.device("cpu")
DATA = make_data(n_recordings=4)


def gradients(**values):
    """Parameters with these gradients."""
    made = {name: torch.nn.Parameter(torch.zeros(2)) for name in values}
    for name, value in values.items():
        made[name].grad = None if value is None else torch.tensor([1.0, value])
    return made


def test_flags_on_a_device_are_read_late_and_name_the_segments_all_the_same():
    """A GPU is asked every 50 steps: what was not finite before is found, the first of it, and nothing is read in between."""
    watch = Watch(DATA, torch.device("cuda"), 1, lr=0.003)
    rows = [np.arange(4 * k, 4 * k + 4) for k in range(5)]
    for k in range(3):
        watch.see("estimate", rows[k], torch.tensor([True, True, k != 1, True]))
        watch.see("loss", rows[k], torch.tensor(k == 0).expand(4))
    bad = DATA.segments[6]
    with pytest.raises(
        RuntimeError, match=rf"estimate is not finite in epoch 1: got NaN or infinity for {bad.recording} at {bad.onset:g} s\."
    ):
        watch.read()
    watch.read()  # what was said is not said again
    for k in range(SEEN * CHECKED_EVERY - 1):
        watch.see("loss", rows[k % 5], torch.tensor(k != 0).expand(4))
    with pytest.raises(RuntimeError, match="The loss is not finite"):
        watch.see("loss", rows[4], torch.tensor(True).expand(4))


def test_a_gradient_is_told_by_its_parameter_and_its_batch():
    watch = Watch(DATA, CPU, 2, lr=0.1)
    watch.see_gradients(np.array([0, 3]), gradients(a=1e30, b=-3.0, c=None))
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(RuntimeError, match=r"gradient is not finite in epoch 2: .* for b from the batch with d/sub-0 at 1 s, d/"):
            watch.see_gradients(np.array([0, 3]), gradients(a=1.0, b=bad, c=None))
    late = Watch(DATA, torch.device("cuda"), 2, lr=0.1)
    late.see_gradients(np.array([0]), gradients(a=1.0, b=1.0))
    late.see_gradients(np.array([1]), gradients(a=torch.nan, b=1.0))
    late.see("estimate", np.array([2]), torch.tensor([False]))  # which came of it
    with pytest.raises(RuntimeError, match=r"for a from the batch with d/sub-0 at 6\.5 s, of which"):
        late.read()


def test_the_advice_is_about_what_was_seen(tmp_path):
    rows = np.array([0, 5])
    with pytest.raises(RuntimeError, match=r"for d/sub-1 at 1 s\. Look at the signal of these recordings\.$"):
        Watch(DATA, CPU, 0, lr=0.5).see("estimate", rows, torch.tensor([True, False]))
    with pytest.raises(RuntimeError, match=r"whole batch: lower the learning rate \(lr=0\.5\).* There is no checkpoint yet\.$"):
        Watch(DATA, CPU, 0, lr=0.5, checkpoint=tmp_path / "none").see("loss", rows, torch.tensor([False, False]))
    with pytest.raises(RuntimeError, match=r"The last checkpoint in .* stands\.$"):
        Watch(DATA, CPU, 0, lr=0.5, checkpoint=tmp_path).see("loss", rows, torch.tensor([False, False]))


def test_names():
    parameters = gradients(a=0.0, b=0.0)
    assert not_finite(parameters) == not_finite({}) == []
    with torch.no_grad():
        parameters["b"][1] = torch.nan
    assert not_finite(parameters) == ["b"]
    assert listed(["x", "y"]) == "x, y"
    assert listed([str(i) for i in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
