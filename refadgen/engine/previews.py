"""Which steps of an order have a picture."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Previews:
    """The defaults: none."""

    every: int = 0
    """Steps between two of them; 0: as `number` says."""
    number: int = 0
    """So many, spread evenly over the steps that the order has."""

    def due(self, step: int, num_steps: int) -> bool:
        """Whether step `step` of `num_steps`, from 1, has one."""
        every = self.every or max(1, num_steps // (self.number + 1))
        return step % every == 0 and (self.every > 0 or step // every <= self.number)
