"""At which steps of training something is done."""

from dataclasses import dataclass

from numpyro_kaem.bases._checks import as_count

__all__ = ["Occasions"]


@dataclass(frozen=True)
class Occasions:
    """Steps of training at equal distances.

    Parameters
    ----------
    start
        First step.
    every
        Number of steps from one to the next.
    stop
        Step after which there is none; None goes on to the end.

    Raises
    ------
    TypeError, ValueError
        If a number is not a positive integer.
    """

    start: int
    """First step."""
    every: int
    """Number of steps from one to the next."""
    stop: int | None = None
    """Step after which there is none."""

    def __post_init__(self) -> None:
        as_count("start", self.start)
        as_count("every", self.every)
        if self.stop is not None:
            as_count("stop", self.stop)

    def is_due(self, step: int) -> bool:
        """Whether it is done before this step."""
        after = step - self.start
        ended = self.stop is not None and step > self.stop
        return after >= 0 and after % self.every == 0 and not ended
