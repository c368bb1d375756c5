"""Time of ``import numpyro_kaem`` beside ``import numpyro``, each in new processes.

The two alternate, so that a slow moment of the machine falls on both.
"""

import argparse
import statistics
import subprocess
import sys
import time


def seconds(module: str) -> float:
    """Wall time of a new interpreter that imports a module."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two repeats, not ten")
    repeats = 2 if parser.parse_args().quick else 10
    modules = ("numpyro", "numpyro_kaem")
    for module in modules:
        seconds(module)  # fills the caches of the file system and of bytecode
    times = {module: [] for module in modules}
    for _ in range(repeats):
        for module in modules:
            times[module].append(seconds(module))
    medians = {module: statistics.median(values) for module, values in times.items()}
    for module, median in medians.items():
        print(f"import {module:14s} {median:6.2f} s (median of {repeats})")
    print(f"ratio                 {medians['numpyro_kaem'] / medians['numpyro']:6.2f}")


if __name__ == "__main__":
    main()
