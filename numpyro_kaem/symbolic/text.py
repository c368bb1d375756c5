"""Laws and short energies as text and as LaTeX."""

from typing import Any

import jax
import numpy as np

from numpyro_kaem.references import ReferenceParameters
from numpyro_kaem.symbolic.energy_fit import Features
from numpyro_kaem.symbolic.laws import NamedLaw, Unit

__all__ = ["as_table", "describe_energy", "describe_law", "number"]


def number(value: float, digits: int = 12) -> str:
    """Shortest text of a number with at most so many significant digits."""
    text = f"{float(value):.{digits}g}"
    return "0" if text == "-0" else text


def _latex_number(value: float, digits: int = 12) -> str:
    text = number(value, digits)
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return rf"{mantissa} \times 10^{{{int(exponent)}}}"


def describe_law(
    law: NamedLaw, values: dict[str, np.ndarray], unit: Unit
) -> tuple[str, str]:
    """Text and LaTeX of a named law.

    Parameters
    ----------
    law
        The family.
    values
        Its parameters.
    unit
        Support of the density, for laws that share it.

    Returns
    -------
    tuple
        Text, in NumPyro's names, and LaTeX.
    """
    if law.num_components > 1:
        parts = list(zip(values["probs"], values["loc"], values["scale"], strict=True))
        text = " + ".join(
            f"{number(w)} Normal({number(loc)}, {number(scale)})"
            for w, loc, scale in parts
        )
        latex = " + ".join(
            rf"{_latex_number(w)}\,\mathrm{{Normal}}"
            rf"({_latex_number(loc)},\ {_latex_number(scale)})"
            for w, loc, scale in parts
        )
        return text, latex
    names = [f"{p.name}={number(values[p.name])}" for p in law.parameters]
    symbols = [f"{p.symbol} = {_latex_number(values[p.name])}" for p in law.parameters]
    if law.support is None:
        low, high = number(unit.low), number(unit.high)
        if (low, high) != ("0", "1") or law.name != "Beta":
            names.append(f"low={low}, high={high}")
            interval = rf"[{_latex_number(unit.low)},\ {_latex_number(unit.high)}]"
            symbols.append(interval)
    text = f"{law.name}({', '.join(names)})"
    joined = r",\ ".join(symbols)
    return text, rf"\mathrm{{{law.name}}}({joined})"


def describe_energy(
    features: Features,
    terms: tuple[int, ...],
    coefficients: np.ndarray,
    parameters: ReferenceParameters | None,
) -> tuple[str, str]:
    """Text and LaTeX of a density with a short energy.

    Parameters
    ----------
    features
        The dictionary.
    terms, coefficients
        The terms and their coefficients.
    parameters
        Parameters of the reference, which is multiplied.

    Returns
    -------
    tuple
        Text and LaTeX, the variable being ``z``.
    """
    text, latex = "", ""
    for term, value in zip(terms, coefficients, strict=True):
        sign = "-" if value < 0 else "+"
        lead = f" {sign} " if text else sign.replace("+", "")
        entry = features.basis.terms[term]
        text += f"{lead}{number(abs(value))} {entry.text}"
        latex += rf"{lead}{_latex_number(abs(value))}\,{entry.latex}"
    low, high = features.basis.low, features.basis.high
    location, scale = features.location, features.scale
    scaled = "z" if location == 0 else f"z {'-' if location > 0 else '+'} "
    scaled += "" if location == 0 else number(abs(location))
    plain = scaled if location == 0 else f"({scaled})"
    law, values = "Uniform", {"low": number(low, 4), "high": number(high, 4)}
    if parameters is not None:
        law, values = parameters.law.__name__, _values(parameters)
    named = ", ".join(f"{name}={value}" for name, value in values.items())
    text = (
        f"{law}({named}) * exp({text}), t = {plain} / {number(scale)}, "
        f"z cut to [{number(low, 4)}, {number(high, 4)}] in t"
    )
    symbols = r",\ ".join(
        rf"\mathrm{{{name}}} = {value}".replace("_", r"\_")
        for name, value in values.items()
    )
    latex = (
        rf"\mathrm{{{law}}}(z;\ {symbols})\,\exp({latex}),"
        rf"\quad t = {plain} / {_latex_number(scale)}"
    )
    return text, latex


def _values(parameters: ReferenceParameters, prefix: str = "") -> dict[str, str]:
    """Numbers among parameters as text, by name, those of inner laws included."""
    found: dict[str, str] = {}
    for name, value in parameters.values.items():
        if isinstance(value, ReferenceParameters):
            found |= _values(value, f"{prefix}{name}.")
        elif _is_number(value):
            found[prefix + name] = number(float(value), 4)
    return found


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float | np.ndarray | jax.Array) and np.ndim(value) == 0
    )


def as_table(rows: list[tuple[str, ...]]) -> str:
    """Rows of text, the first of them the head, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
