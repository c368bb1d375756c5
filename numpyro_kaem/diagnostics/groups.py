"""Named arrays as the object of the installed ArviZ."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    import xarray

__all__ = ["SAMPLE_DIMS", "Groups"]

SAMPLE_DIMS = ("chain", "draw")


class Groups:
    """Groups of named arrays on their way to ArviZ.

    Parameters
    ----------
    dims
        Names of the dimensions of a variable after those of the sample, by its name.
    coords
        Values along a dimension, by its name; 0, 1, ... where not given.
    """

    def __init__(
        self,
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Any] | None = None,
    ) -> None:
        self.dims = {name: tuple(names) for name, names in (dims or {}).items()}
        self.coords = {
            name: np.asarray(values) for name, values in (coords or {}).items()
        }
        self._datasets: dict[str, xarray.Dataset] = {}

    def add(
        self,
        group: str,
        values: Mapping[str, Any],
        sample_dims: Sequence[str] = SAMPLE_DIMS,
        *,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a group, if it holds anything.

        Parameters
        ----------
        group
            Name of the group.
        values
            Arrays by name, each of shape ``(*sample_dims, ...)``.
        sample_dims
            Names of the leading dimensions.
        attrs
            Facts about the group.

        Raises
        ------
        ValueError
            If coordinates do not fit a dimension.
        """
        if not values:
            return
        import xarray

        variables, coords = {}, {}
        for name, value in values.items():
            value = np.asarray(jax.device_get(value))
            names = self._dims_of(name, value.shape[len(sample_dims) :])
            names = (*sample_dims, *names)
            for dim, size in zip(names, value.shape, strict=True):
                known = coords.get(dim, self.coords.get(dim, np.arange(size)))
                if len(known) != size:
                    raise ValueError(
                        f"dimension {dim!r} of {name!r} in the group {group!r} has "
                        f"size {size}, but {len(known)} coordinates."
                    )
                coords[dim] = known
            variables[name] = (names, value)
        self._datasets[group] = xarray.Dataset(variables, coords, dict(attrs or {}))

    def _dims_of(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Names of dimensions, those that nobody named as ArviZ names them."""
        named = self.dims.get(name, ())[: len(shape)]
        rest = range(len(named), len(shape))
        return (*named, *(f"{name}_dim_{axis}" for axis in rest))

    def build(self) -> Any:
        """Make an ``InferenceData`` of ArviZ 0.x, or a ``DataTree`` as of ArviZ 1.0."""
        import numpyro

        for dataset in self._datasets.values():
            dataset.attrs.setdefault("inference_library", "numpyro")
            dataset.attrs.setdefault("inference_library_version", numpyro.__version__)
        if int(version("arviz").split(".")[0]) < 1:
            import arviz

            return arviz.InferenceData(**self._datasets, warn_on_custom_groups=False)
        from xarray import DataTree

        return DataTree.from_dict(self._datasets)
