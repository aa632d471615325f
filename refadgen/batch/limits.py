"""When a run stops starting new work: a budget of time or money, or a point in time. What has begun is finished."""

import math
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.base_physical_operator import InternalQueueOperatorMixin

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Limits:
    """What a user allows a run. None: no such limit.

    seconds, cost: from the start of the run; cost in the currency of `cost.per_gpu_hour`. deadline: UNIX time. texts:
    of seconds or cost, and of the deadline, as given.
    """

    seconds: float | None = None
    cost: float | None = None
    deadline: float | None = None
    texts: tuple[str, str] = ("", "")

    @classmethod
    def parse(cls, budget: str | None = None, deadline: str | None = None) -> "Limits":
        """budget: `90m`, `2h`, `1.5d`, or a number: a cost. deadline: a date and time in ISO 8601, UTC without a zone.

        Raises: ValueError naming what is wrong; nothing is a budget of nothing.
        """
        seconds, cost, until = None, None, None
        if budget is not None:
            found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", budget.strip().lower())
            if not found:
                raise ValueError(f"--budget {budget}: must be a time such as 90m, 8h or 2d, or a cost such as 25.50")
            number = float(found[1])
            if not number:
                raise ValueError(f"--budget {budget}: is a budget of nothing; leave it out for a run without one")
            if found[2]:
                seconds = number * _UNITS[found[2]]
            else:
                cost = number
        if deadline is not None:
            try:
                at = datetime.fromisoformat(deadline)
            except ValueError as error:
                raise ValueError(f"--deadline {deadline}: must be a date and time such as 2027-01-31T18:00") from error
            until = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
            if until <= time.time():
                raise ValueError(f"--deadline {deadline}: is over; give one that is to come (UTC, or with its zone)")
        return cls(seconds, cost, until, (f"--budget {budget}", f"--deadline {deadline}"))

    def end(self, cost_per_hour: float) -> "EndOfRun":
        """When a run that starts now stops. cost_per_hour: of all that the run holds.

        Raises: ValueError for a budget in money where nothing has a price.
        """
        if self.cost is not None and not cost_per_hour:
            raise ValueError(
                f"{self.texts[0]}: is a cost, and nothing of this run has a price: set cost.per_gpu_hour, and num_gpus "
                "of a stage; or give a time such as 8h"
            )
        now, ends = time.time(), [EndOfRun()]
        if self.seconds is not None or self.cost is not None:
            seconds = self.seconds if self.seconds is not None else 3600 * (self.cost or 0) / cost_per_hour
            ends.append(EndOfRun(now + seconds, self.texts[0]))
        if self.deadline is not None:
            ends.append(EndOfRun(self.deadline, self.texts[1]))
        return min(ends, key=lambda end: end.at)


@dataclass(frozen=True)
class EndOfRun:
    """at: UNIX time from which a run starts nothing new. why: the user's own words for it."""

    at: float = math.inf
    why: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing new is to be started."""
        return time.time() >= self.at


def stops_in_time(end: EndOfRun, stage: str) -> type[ExecutionCallback]:
    """A callback for Ray Data that takes the blocks out of a run which wait for `stage` or one before it, at its end.

    stage: the name of the class that is last to start new work. Blocks that an actor has in hand are finished, and
    the stages behind it finish them; the run then ends as if there had been no more.
    """

    class StopsInTime(ExecutionCallback):  # type: ignore[misc] # Ray is Any to mypy
        def on_execution_step(self, executor: Any) -> None:
            if not end.is_over:
                return
            for operator, state in executor._topology.items():
                for queue in state.input_queues:
                    queue.clear()
                if isinstance(operator, InternalQueueOperatorMixin):
                    operator.clear_internal_input_queue()
                if f"({stage})" in operator.name:
                    return

    return StopsInTime
