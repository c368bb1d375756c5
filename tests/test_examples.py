"""The examples run, and the data they hold are those of their sources."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    """Import as a script in the folder would."""
    monkeypatch.syspath_prepend(EXAMPLES)


def test_galaxies_agree_with_published_statistics():
    from _galaxies import VELOCITIES, check_velocities

    check_velocities()
    assert VELOCITIES.shape == (82,)
    assert np.all(np.diff(VELOCITIES) > 0)
    assert (VELOCITIES[0], VELOCITIES[77], VELOCITIES[-1]) == (9.172, 26.960, 34.279)
    np.testing.assert_allclose(VELOCITIES.mean(), 20.8315, atol=5e-5)
    np.testing.assert_allclose(VELOCITIES.std(ddof=1), 4.5681, atol=5e-5)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (77, 26.690, "log likelihood -240.3"),  # the misprint
        (0, 9.127, "minimum"),
        (40, 20.281, "median"),
        (50, 32.185, "mean with the misprint"),
    ],
)
def test_mistyped_velocity_is_found(index, value, message):
    from _galaxies import VELOCITIES, check_velocities

    wrong = VELOCITIES.copy()
    wrong[index] = value
    with pytest.raises(ValueError, match=message):
        check_velocities(wrong)


@pytest.mark.slow
@pytest.mark.arviz
def test_quickstart(tmp_path, monkeypatch, capsys):
    arguments = ["quickstart.py", "--quick", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / "quickstart.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert str(tmp_path) in printed.splitlines()[-1]
    assert printed.count("r_hat") == 2
    errors = re.findall(r"([\d.]+) Monte Carlo standard errors", printed)
    assert len(errors) == 2
    assert max(map(float, errors)) < 5.0
    figures = sorted(path.name for path in tmp_path.iterdir())
    assert figures == ["quickstart_1.png", "quickstart_2.png"]
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


@pytest.mark.slow
@pytest.mark.arviz
def test_full_bayes(tmp_path, monkeypatch, capsys):
    arguments = ["full_bayes.py", "--quick", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / "full_bayes.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert str(tmp_path) in printed.splitlines()[-1]
    assert float(re.search(r"largest R-hat: ([\d.]+)", printed)[1]) < 1.05
    assert float(re.search(r"number of draws: ([\d.]+)", printed)[1]) > 50
    widths = dict(re.findall(r"(\w+ Bayes) +mean width ([\d.]+)", printed))
    assert float(widths["full Bayes"]) > float(widths["empirical Bayes"])
    figure = (tmp_path / "full_bayes.png").read_bytes()
    assert figure.startswith(b"\x89PNG")
    assert len(figure) > 10_000
