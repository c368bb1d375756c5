"""The shortest description of a learned density."""

from math import comb, log
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike  # noqa: F401

from numpyro_kaem.bases._checks import as_count
from numpyro_kaem.distributions import KAEMPrior
from numpyro_kaem.energy import Energy
from numpyro_kaem.marginals import as_positive
from numpyro_kaem.symbolic.energy_fit import (
    EnergyFit,
    Features,
    divergence,
    fit_energies,
    make_features,
)
from numpyro_kaem.symbolic.law_fit import LawFit, divergence_of, fit_law
from numpyro_kaem.symbolic.laws import LAWS, NamedLaw
from numpyro_kaem.symbolic.nodes import Component, components, distance, marginals_of
from numpyro_kaem.symbolic.results import (
    NO_SHORT_FORM,
    Candidate,
    SymbolicResult,
    SymbolicResults,
)
from numpyro_kaem.symbolic.text import describe_energy, describe_law

__all__ = ["symbolic"]

_MAX_DIGITS = 7


def symbolic(prior, *, num_samples=1000.0, tolerance=0.02, max_terms=4):
    num_samples = as_positive("num_samples", num_samples)
    tolerance = as_positive("tolerance", tolerance)
    max_terms = as_count("max_terms", max_terms, minimum=0)
    marginals = marginals_of(prior, "symbolic")
    results = np.empty(marginals.batch_shape, object)
    for index, component in zip(
        np.ndindex(marginals.batch_shape), components(marginals), strict=True
    ):
        results[index] = _describe(component, num_samples, tolerance, max_terms)
    return SymbolicResults(results) if results.shape else results[()]


class _Option(NamedTuple):
    candidate: Candidate
    law: NamedLaw | None
    fit: LawFit | EnergyFit


def _describe(
    component: Component, num_samples: float, tolerance: float, max_terms: int
) -> SymbolicResult:
    used = component.used()
    options = []

    def add(name: str, count: int, choices: int, law: Any, fit: Any) -> None:
        length = 0.5 * count * log(num_samples) + log(choices)
        criterion = num_samples * fit.divergence + length
        options.append(
            _Option(Candidate(name, count, fit.divergence, criterion), law, fit)
        )

    for law in LAWS:
        if law.covers(component.unit):
            add(law.name, law.num_free, len(LAWS), law, fit_law(used, law))
    features = make_features(component)
    num_reference = _num_parameters(component)
    for fit in fit_energies(component, features, max_terms):
        count = len(fit.terms)
        name = "energy in " + ", ".join(features.basis.terms[t].text for t in fit.terms)
        choices = len(LAWS) * comb(len(features.basis.terms), count)
        add(name, count + num_reference, choices, None, fit)
    options.sort(key=lambda option: option.candidate.criterion)
    candidates = tuple(option.candidate for option in options)
    near = [o for o in options if o.candidate.divergence <= tolerance]
    best = near[0] if near else min(options, key=lambda o: o.candidate.divergence)
    slack = 0.5 / num_samples
    if best.law is not None:
        name, text, latex, law = _finish_law(used, best, slack)
    else:
        name, text, latex, law = _finish_energy(component, features, best, slack)
    value, error = distance(used, law)
    criterion = best.candidate.criterion
    if not near:
        return SymbolicResult(
            NO_SHORT_FORM,
            NO_SHORT_FORM,
            r"\mathrm{no\ short\ form}",
            None,
            value,
            error,
            criterion,
            candidates,
        )
    return SymbolicResult(name, text, latex, law, value, error, criterion, candidates)


def _num_parameters(component: Component) -> int:
    """Number of parameters of the reference, ends of its support not counted."""
    import jax

    if component.parameters is None or component.parameters.law is dist.Uniform:
        return 0
    return len(jax.tree_util.tree_leaves(component.parameters))


def _finish_law(
    component: Component, option: _Option, slack: float
) -> tuple[str, str, str, dist.Distribution]:
    """Round the parameters as far as the divergence allows."""
    law, unit = option.law, component.unit
    for digits in range(2, _MAX_DIGITS + 1):
        values = law.rounded(option.fit.values, digits, unit)
        if divergence_of(component, law, values) <= option.fit.divergence + slack:
            break
    arrays = {name: jnp.asarray(value, float) for name, value in values.items()}
    return law.name, *describe_law(law, values, unit), law.build(unit, **arrays)


def _finish_energy(
    component: Component, features: Features, option: _Option, slack: float
) -> tuple[str, str, str, dist.Distribution]:
    terms, exact = option.fit.terms, option.fit.coefficients
    for digits in range(2, _MAX_DIGITS + 1):
        coefficients = np.array([float(f"{c:.{digits - 1}e}") for c in exact])
        value = divergence(component, features, terms, coefficients)
        if value <= option.fit.divergence + slack:
            break
    dense = np.zeros(len(features.basis.terms))
    dense[list(terms)] = coefficients
    law = KAEMPrior(Energy(features.basis, dense), component.reference)
    name = f"energy of {len(terms)} term{'s' * (len(terms) > 1)}"
    text = describe_energy(features, terms, coefficients, component.parameters)
    return name, *text, law
