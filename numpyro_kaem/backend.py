"""What computations depend on of the device that runs them."""

import jax

__all__ = ["on_accelerator"]


def on_accelerator() -> bool:
    """Whether the default device is not a processor.

    An accelerator waits for the launch of every turn of a loop: its loops are unrolled,
    and more is computed side by side. Results are the same, to rounding.
    """
    return jax.default_backend() != "cpu"
