"""Arrays of a file, in the precision of the process that reads them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem.files.container import as_weak, describe_array, to_stored

__all__ = ["LoadedArrays", "describe_for_file", "is_array", "to_stored"]


def is_array(value: Any) -> bool:
    """Whether a value is an array or a scalar of JAX or NumPy."""
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def describe_for_file(name: str, array: Any) -> dict[str, Any]:
    """Describe an array as :func:`describe_array` does, and whose it is."""
    if isinstance(array, jax.Array):
        container = "jax"
    else:
        container = "array" if isinstance(array, np.ndarray) else "scalar"
    return {**describe_array(name, array), "container": container}


class LoadedArrays:
    """Arrays of a file, each of which is taken once.

    Parameters
    ----------
    descriptions
        Description of each array by name, as in the header.
    arrays
        Arrays by name, as stored.
    dtype
        Floating-point format of all real JAX arrays; ``None`` keeps their own, or the
        widest that is enabled.

    Raises
    ------
    ValueError
        If some have no description, or descriptions no array.
    """

    def __init__(
        self, descriptions: Any, arrays: Mapping[str, np.ndarray], dtype: Any
    ) -> None:
        if not isinstance(descriptions, dict) or descriptions.keys() != arrays.keys():
            raise ValueError("its arrays are not those of its header")
        self._descriptions, self._left = descriptions, dict(arrays)
        self._dtype = dtype
        self.num_rounded = 0
        """Number of arrays that lost digits without being asked to."""

    def take(self, name: Any) -> Any:
        """Array of a name.

        Raises
        ------
        ValueError
            If there is none, it was taken, or it is not as described.
        """
        if type(name) is not str or name not in self._left:
            raise ValueError(f"expected the name of an array, got {name!r}")
        description, array = self._descriptions[name], self._left.pop(name)
        container, shape = description["container"], tuple(description["shape"])
        if "key" in description:
            value = jax.random.wrap_key_data(
                jnp.asarray(array), impl=description["key"]
            )
            if value.shape != shape or str(value.dtype) != description["dtype"]:
                raise ValueError("a random key is not as described")
            return value
        dtype = jnp.dtype(description["dtype"])
        if dtype.isbuiltin != 1 and array.dtype == np.dtype(f"u{dtype.itemsize}"):
            array = array.view(dtype)
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"expected {dtype} of shape {shape}, got {array.dtype} of shape "
                f"{array.shape}"
            )
        if dtype.kind in "OSUMm" or dtype.names is not None:
            raise ValueError(f"expected numbers, got {dtype}")
        if container == "jax":
            value = jnp.asarray(self._converted(array))
            return as_weak(value) if description["weak_type"] is True else value
        if container not in ("array", "scalar"):
            raise ValueError(f"expected an array, got {container!r}")
        return array if container == "array" else array[()]

    def check_all_taken(self) -> None:
        """Check that no array is left.

        Raises
        ------
        ValueError
            If one is.
        """
        if self._left:
            raise ValueError(f"{sorted(self._left)} are not used")

    def _converted(self, array: np.ndarray) -> np.ndarray:
        """Array in a format that is enabled, rounded to nearest.

        Raises
        ------
        ValueError
            If a number is too large for it.
        """
        is_real = jnp.issubdtype(array.dtype, jnp.floating)
        wanted = array.dtype
        if is_real and self._dtype is not None:
            wanted = self._dtype
        wanted = jax.dtypes.canonicalize_dtype(wanted)
        if wanted == array.dtype:
            return array
        with np.errstate(over="ignore"):
            converted = array.astype(wanted)
        if is_real or array.dtype.kind == "c":
            lost = np.isfinite(array) & ~np.isfinite(converted)
        else:
            lost = converted != array
        if np.any(lost):
            raise ValueError(
                f"holds numbers that are too large for {wanted}; call "
                "numpyro.enable_x64() first"
            )
        back = converted.astype(array.dtype)
        if self._dtype is None and not np.array_equal(back, array, equal_nan=True):
            self.num_rounded += 1
        return converted
