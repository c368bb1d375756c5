"""Time of ``import numpyro_kaem`` and ``import numpyro``, each in new processes.

The two alternate, so that other load on the machine affects both.
"""

import statistics
import subprocess
import sys
import time

from _report import start


def seconds(module: str) -> float:
    """Wall time of a new interpreter that imports a module."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print and write the medians and their ratio."""
    report = start("import_time", __doc__)
    report.heading()
    repeats = 2 if report.quick else 10
    modules = ("numpyro", "numpyro_kaem")
    for module in modules:
        seconds(module)  # fills the caches of the file system and of bytecode
    times: dict[str, list[float]] = {module: [] for module in modules}
    for _ in range(repeats):
        for module in modules:
            times[module].append(seconds(module))
    medians = {module: statistics.median(values) for module, values in times.items()}
    report.compare(
        "import numpyro_kaem",
        "import numpyro",
        medians["numpyro_kaem"],
        medians["numpyro"],
        at_most=1.35,
        note=f"medians of {repeats} processes",
    )
    report.save()


if __name__ == "__main__":
    main()
