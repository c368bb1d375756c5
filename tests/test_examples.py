"""The examples run in their short form."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.long, pytest.mark.optimised]
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    """Import as a script in the folder would."""
    monkeypatch.syspath_prepend(EXAMPLES)


def run(name, tmp_path, monkeypatch, capsys):
    """Run an example in its short form; what it printed."""
    arguments = [f"{name}.py", "--quick", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert str(tmp_path) in printed.splitlines()[-1]
    figures = sorted(tmp_path.glob("*.png"))
    assert figures
    for path in figures:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    return printed


@pytest.mark.arviz
def test_quickstart(tmp_path, monkeypatch, capsys):
    printed = run("quickstart", tmp_path, monkeypatch, capsys)
    assert printed.count("r_hat") == 2
    errors = re.findall(r"([\d.]+) Monte Carlo standard errors", printed)
    assert len(errors) == 2
    assert max(map(float, errors)) < 5.0
    figures = sorted(path.name for path in tmp_path.iterdir())
    assert figures == ["quickstart_1.png", "quickstart_2.png"]


@pytest.mark.arviz
def test_results(tmp_path, monkeypatch, capsys):
    """Three samplers agree, under either line of ArviZ; so does what is saved."""
    printed = run("results", tmp_path, monkeypatch, capsys)
    assert "the loaded prior is equal: True" in printed
    rows = [
        [float(x) for x in re.findall(r"(-?[\d.]+) ± ([\d.]+)", line) for x in x]
        for line in printed.splitlines()
        if line.startswith(("NUTS", "importance", "annealed")) and "±" in line
    ]
    assert len(rows) == 3
    nuts, importance, annealed = np.array(rows).reshape(3, 5, 2).transpose(0, 2, 1)
    for mean, sd in (nuts, annealed):
        assert np.all(np.abs(mean - importance[0]) < 0.35 * importance[1])
        np.testing.assert_allclose(sd, importance[1], rtol=0.3)
    line = next(x for x in printed.splitlines() if x.startswith("log evidence"))
    first, error, second, other = map(float, re.findall(r"-?\d[\d.]*", line))
    assert abs(first - second) < 5 * np.hypot(error, other)


def test_baseball(tmp_path, monkeypatch, capsys):
    printed = run("baseball", tmp_path, monkeypatch, capsys)
    errors = [float(line.split()[-1]) for line in printed.splitlines()[-6:-2]]
    likelihood, mean, james_stein, learned = errors
    assert likelihood == 0.0755
    assert james_stein == 0.0214
    assert learned < 0.5 * likelihood
    assert learned < mean


def test_automobile_claims(tmp_path, monkeypatch, capsys):
    printed = run("automobile_claims", tmp_path, monkeypatch, capsys)
    value = float(re.search(r"learned prior +(-[\d.]+)", printed)[1])
    assert -5348.040 < value < -5340.704
    rows = [line.split() for line in printed.splitlines() if line.startswith("      ")]
    gamma = [float(row[3]) for row in rows[:7]]
    assert gamma == [0.164, 0.398, 0.632, 0.866, 1.100, 1.334, 1.568]


def test_deconvolution(tmp_path, monkeypatch, capsys):
    printed = run("deconvolution", tmp_path, monkeypatch, capsys)
    rows = [line.split() for line in printed.splitlines()[1:3]]
    assert [row[0] for row in rows] == ["300", "1000"]
    for row in rows:
        assert 0.0 < float(row[2]) < 0.1


@pytest.mark.arviz
def test_full_bayes(tmp_path, monkeypatch, capsys):
    printed = run("full_bayes", tmp_path, monkeypatch, capsys)
    assert float(re.search(r"largest R-hat: ([\d.]+)", printed)[1]) < 1.05
    assert float(re.search(r"effective sample size: ([\d.]+)", printed)[1]) > 50
    widths = dict(re.findall(r"(\w+ Bayes) +mean width ([\d.]+)", printed))
    assert float(widths["full Bayes"]) > float(widths["empirical Bayes"])


def test_choose_regression(tmp_path, monkeypatch, capsys):
    printed = run("choose_regression", tmp_path, monkeypatch, capsys)
    for name, published in (("density", -309.924), ("adjusted density", -301.435)):
        row = re.search(rf"^{name} +(-.*)$", printed, re.MULTILINE)[1]
        exact, *estimates = map(float, re.findall(r"-?[\d.]+", row))
        assert exact == published
        for value, error in (estimates[:2], estimates[2:]):
            assert abs(value - exact) < 4 * error
            assert error < 0.1
    low, high = re.search(r"standard errors (\d+) to (\d+)", printed).groups()
    assert int(low) < 4862 < int(high)


def test_two_modes(tmp_path, monkeypatch, capsys):
    printed = run("two_modes", tmp_path, monkeypatch, capsys)
    rows = {line[:20].strip(): line[20:].split() for line in printed.splitlines()}
    exact = float(rows["exact"][0])
    assert [float(x) for x in rows["NUTS"]] == [0.0, 1.0]
    north, r_hat = map(float, rows["annealed population"])
    assert abs(north - exact) < 0.05
    assert r_hat < 1.05


@pytest.mark.filterwarnings("ignore:the normalizing constant has an estimated")
def test_digits_objectives(tmp_path, monkeypatch, capsys):
    printed = run("digits_objectives", tmp_path, monkeypatch, capsys)
    names = ("importance", "Langevin", "thermodynamic", "encoder")
    pattern = r"^ +2  (\w+) +\d+ +(-?[\d.]+) \(([\d.]+)\) +([\d.]+)"
    found = re.findall(pattern, printed, re.MULTILINE)
    assert tuple(row[0] for row in found) == names
    likelihood, error, distance = np.array([row[1:] for row in found], float).T
    assert np.all(likelihood > -60)
    assert np.all((error > 0) & (error < 5))
    # Hardly trained: the images are far off, and no more than that.
    assert np.all(distance < 100)
    assert re.search(r"with 2 latents: \d+% of the units have a Pareto k", printed)


@pytest.mark.arviz
@pytest.mark.filterwarnings("ignore:the normalizing constant has an estimated")
def test_digits_posterior(tmp_path, monkeypatch, capsys):
    printed = run("digits_posterior", tmp_path, monkeypatch, capsys)
    rows = [line.split() for line in printed.splitlines() if line.startswith("z[")]
    table = np.array([row[1:] for row in rows], float)
    assert table.shape == (4, 12)
    mean, sd = table[:, 0::4], table[:, 1::4]
    assert np.all(sd > 0)
    # The importance weights and the population estimate one posterior.
    assert np.all(np.abs(mean[:, 1] - mean[:, 2]) < sd[:, 2])
    shares = [line for line in printed.splitlines() if line.startswith("NUTS, chain")]
    assert len(shares) == 4
    for line in shares:
        assert 95 <= sum(map(int, line.split()[3:])) <= 105
    assert re.search(r"Pareto k of the weights: -?[\d.]+", printed)


@pytest.mark.arviz
def test_importance_dimension(tmp_path, monkeypatch, capsys):
    printed = run("importance_dimension", tmp_path, monkeypatch, capsys)
    rows = np.array([line.split() for line in printed.splitlines()[2:6]], float)
    dimension, pareto_k, ess, true_ess, error, reported = rows.T
    np.testing.assert_array_equal(dimension, [1, 4, 16, 64])
    # Right while the weights have a light tail, and told to be wrong when it is heavy.
    assert pareto_k[0] < 0.5
    assert np.all(pareto_k[2:] > 0.7)
    np.testing.assert_allclose(ess[0], true_ess[0], rtol=0.1)
    assert error[0] < 4 * reported[0]
    assert np.all(error[2:] > 2 * reported[2:])
    assert "Not reliable" in printed
    assert "AnnealedLangevin" in printed


# A decoder that is hardly trained explains few images well.
@pytest.mark.filterwarnings("ignore:fewer than a twentieth of the draws")
# Whether one of 60 components for few images is lost depends on rounding.
@pytest.mark.filterwarnings("ignore:1 of 60 components were left without samples")
def test_digits(tmp_path, monkeypatch, capsys):
    printed = run("digits", tmp_path, monkeypatch, capsys)
    number = r"(-?[\d.]+)"
    distance = {
        name: float(value)
        for name, value in re.findall(
            rf"^(\S[\w -]*?) +{number} +[\d.]+ +[\d.]+ +\d+$", printed, re.M
        )
    }
    assert list(distance)[2:] == ["normal", "mixture"]
    # Hardly trained, the learned prior is nearer the images already.
    assert distance["held-out images"] < distance["mixture"] < distance["normal"]
    likelihoods = re.findall(rf"^(\w+) +{number} ± {number}$", printed, re.M)
    assert [name for name, *_ in likelihoods] == ["normal", "mixture"]
    errors = [float(x) for x in re.findall(r"filled in to ([\d.]+)", printed)]
    assert len(errors) == 2
    # The standard deviation of a pixel is 0.38.
    assert max(errors) < 0.38
    for name in ("draws", "prior", "components", "filled_in"):
        assert (tmp_path / f"digits_{name}.png").stat().st_size > 10_000


# Of a decoder that is hardly trained, a component of few draws is narrow.
@pytest.mark.filterwarnings("ignore:the normalizing constant has an estimated")
@pytest.mark.filterwarnings("ignore:the fit stopped after max_steps")
def test_darcy_flow(tmp_path, monkeypatch, capsys):
    printed = run("darcy_flow", tmp_path, monkeypatch, capsys)
    untrained, half = re.findall(r"^   .* (-?[\d.]+) ± [\d.]+$", printed, re.M)
    assert float(untrained) < float(half)
    rows = re.findall(r"^(\w+) +(-?[\d.]+) ± ([\d.]+) +([\d.]+)", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["Normal", "RBF", "Fourier"]
    likelihood = {name: float(value) for name, value, _, _ in rows}
    distance = {name: float(value) for name, _, _, value in rows}
    for name in ("RBF", "Fourier"):
        assert likelihood[name] > float(untrained)
        # Hardly trained, they are as good as the Normal prior that they start from.
        assert distance[name] < 3 * distance["Normal"]
    # By the maximum principle.
    training = re.search(r"^training.* ([\d.]+)$", printed, re.MULTILINE)[1]
    assert float(training) == 0.0
    inside = float(re.search(r"sensors: (\d+)% of the cells", printed)[1])
    assert inside > 50
    figures = sorted(path.stem for path in tmp_path.iterdir())
    assert figures == [
        f"darcy_flow_{name}" for name in ("checks", "fields", "prior", "sensors")
    ]


def test_text(tmp_path, monkeypatch, capsys):
    printed = run("text", tmp_path, monkeypatch, capsys)
    rows = re.findall(
        r"^(Normal|no latents|learned) +([\d.]+) ± ([\d.]+)(.*)$", printed, re.MULTILINE
    )
    names = [row[0] for row in rows]
    assert names == ["Normal", "no latents", "Normal", "learned"]
    bits = [float(row[1]) for row in rows]
    # Characters that are equally likely take this many.
    assert max(bits[1:]) < np.log2(35) < bits[0]
    assert all(float(row[2]) < 0.1 for row in rows)
    # The latents have not collapsed.
    for row in rows[2:]:
        assert float(row[3].split()[-1]) > 1.0
    drawn = printed.split("Draws")[1].split("Between")[0].strip().splitlines()
    assert len(drawn) == 6
    figures = sorted(path.stem for path in tmp_path.iterdir())
    assert figures == ["text_prior", "text_training"]
