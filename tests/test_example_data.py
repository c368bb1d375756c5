"""The data that the examples hold are those of their sources."""

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
    for index, value, message in [
        (77, 26.690, "log likelihood -240.3"),  # the misprint
        (0, 9.127, "minimum"),
        (40, 20.281, "median"),
        (50, 32.185, "mean with the misprint"),
    ]:
        wrong = VELOCITIES.copy()
        wrong[index] = value
        with pytest.raises(ValueError, match=message):
            check_velocities(wrong)


def test_other_data_agree_with_published_statistics():
    from _baseball import HITS, PLAYERS, REST_OF_SEASON, check_baseball
    from _claims import POLICIES, check_claims
    from _pines import ADJUSTED_DENSITY, DENSITY, STRENGTH, check_pines

    check_baseball()
    assert len(PLAYERS) == len(HITS) == len(REST_OF_SEASON) == 18
    assert REST_OF_SEASON[PLAYERS.index("Williams")] == 0.256
    wrong = REST_OF_SEASON.copy()
    wrong[PLAYERS.index("Williams")] = 0.330
    with pytest.raises(ValueError, match="error of"):
        check_baseball(wrong)
    check_claims()
    wrong = POLICIES.copy()
    wrong[3] = 41
    with pytest.raises(ValueError, match="number of policies"):
        check_claims(wrong)
    check_pines()
    assert STRENGTH.shape == DENSITY.shape == ADJUSTED_DENSITY.shape == (42,)
    assert np.all(ADJUSTED_DENSITY <= DENSITY)
    # The circulating copy.
    wrong = STRENGTH.copy()
    wrong[8] = wrong[12]
    with pytest.raises(ValueError, match="published as 4862"):
        check_pines(wrong)
