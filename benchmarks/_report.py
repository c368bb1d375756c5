"""Tables of measurements and what they are compared with, printed and as JSON."""

import argparse
import json
import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

PACKAGES = (
    "numpyro-kaem",
    "numpyro",
    "jax",
    "jaxlib",
    "equinox",
    "scipy",
    "scikit-learn",
    "flowjax",
    "blackjax",
    "dynesty",
)


@dataclass
class Report:
    """Rows of one benchmark."""

    name: str
    quick: bool
    output: Path
    options: argparse.Namespace
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.machine = describe_machine()
        print(f"{self.name}: {one_line(self.machine)}")

    def heading(self) -> None:
        """Print the heads of the columns of :meth:`compare`."""
        print(
            f"{'work':46s} {'beside':32s} {'ms':>10s} {'beside':>10s} "
            f"{'ratio':>8s}  {'target':8s}    {'compile s':>9s} {'MB':>7s}"
        )

    def record(self, **row: Any) -> None:
        """Add a row of any columns, without printing it."""
        self.rows.append(row)

    def compare(
        self,
        work: str,
        peer: str,
        seconds: float,
        peer_seconds: float,
        at_most: float | None = None,
        at_least: float | None = None,
        **more: Any,
    ) -> None:
        """Add and print a row: our time compared with a peer's.

        The ratio is ours over the peer's, which should be ``at_most`` something; or the
        peer's over ours, which should be ``at_least`` something. Further columns are
        ``compile_seconds``, ``scratch_megabytes`` and ``note``.
        """
        ratio, target, reached = seconds / peer_seconds, "", None
        if at_most is not None:
            target, reached = f"<= {at_most:g}", ratio <= at_most
        elif at_least is not None:
            ratio = peer_seconds / seconds
            target, reached = f">= {at_least:g}", ratio >= at_least
        self.record(
            work=work,
            peer=peer,
            seconds=seconds,
            peer_seconds=peer_seconds,
            ratio=ratio,
            target=target,
            reached=reached,
            **more,
        )
        mark = {True: "yes", False: "NO", None: ""}[reached]
        columns = [
            f"{work:46s} {peer:32s} {1e3 * seconds:10.3f} {1e3 * peer_seconds:10.3f}",
            f"{ratio:8.2f}  {target:8s} {mark:3s}",
            _number(more.get("compile_seconds"), 9),
            _number(more.get("scratch_megabytes"), 7),
            f" {more.get('note', '')}",
        ]
        print(" ".join(columns).rstrip(), flush=True)

    def save(self) -> None:
        """Write everything to a JSON file, whose path is printed."""
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / f"{self.name}.json"
        content = {
            "name": self.name,
            "quick": self.quick,
            "machine": self.machine,
            "rows": self.rows,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"written to {path}\n")


def start(
    name: str, description: str, parser: argparse.ArgumentParser | None = None
) -> Report:
    """Read the command line; a benchmark may add options to the common ones."""
    parser = argparse.ArgumentParser() if parser is None else parser
    parser.description = description.splitlines()[0]
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats")
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    options = parser.parse_args()
    return Report(name, options.quick, options.output, options)


def describe_machine() -> dict[str, str | int]:
    """Versions and machine."""
    device = jax.devices()[0]
    found: dict[str, str | int] = {
        "python": platform.python_version(),
        "platform": device.platform,
        "device": device.device_kind,
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "precision": str(jnp.zeros(()).dtype),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def one_line(machine: dict[str, str | int]) -> str:
    """One line that describes the machine."""
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def _number(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:{width}.1f}"
