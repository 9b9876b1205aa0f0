"""Anderson acceleration of a fixed point, with a way back from steps that lead astray.

Figures: docs/kernels/cosine_sinkhorn.md.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import checks


@dataclass(frozen=True)
class AndersonAcceleration:
    """How far Anderson's steps reach, when they begin and when they are undone.

    Steps are a trial until one of them has a new lowest error. A trial that goes wrong is undone: plain steps lead on
    from the best potentials, `backoff` times as many at each such rejection.

    Raises:
        ValueError: a number below the least that is said.
    """

    memory: int = 5
    """Earlier steps that a step is combined from, at least 1."""
    start: float = 1.0
    """The marginal error, 2 at most, from which on steps are accelerated and above which a trial is undone. While most
    of the mass is in the wrong place the residual is nothing like linear."""
    slack: float = 2.0
    """How many times the lowest error so far a trial may come to, at least 1. A strict 1 rejects steps that pay off
    later; without a bound the iteration can diverge."""
    patience: int = 10
    """Steps that a trial may go on for without a new lowest error, at least 1."""
    backoff: int = 4
    """Factor by which the number of plain steps grows from one rejection to the next, at least 1."""

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> "AndersonAcceleration":
        """The options that have these `numbers`."""
        memory, start, slack, patience, backoff = numbers
        return cls(int(memory), start, slack, int(patience), int(backoff))

    @property
    def numbers(self) -> list[float]:
        """All fields, as an operator's schema takes them."""
        return [self.memory, self.start, self.slack, self.patience, self.backoff]

    def __post_init__(self) -> None:
        for name in ("memory", "patience", "backoff"):
            checks.count(name, getattr(self, name))
        checks.positive("start", self.start)
        if checks.positive("slack", self.slack) < 1:
            raise ValueError(f"slack: expected at least 1, the lowest error itself, got {self.slack!r}")


class FixedPoint:
    """Iterates h of h = h + r(h), accelerated and guarded.

    Attributes:
        h: (M,) the iterate to evaluate next.
        best: (M,) that with the lowest error so far; the last one in a plain iteration.
        lowest: its error.
    """

    def __init__(self, h: Tensor, weights: Tensor, acceleration: AndersonAcceleration | None) -> None:
        """Start at h.

        Args:
            h: (M,).
            weights: (M,) of the norm in which residuals are least.
            acceleration: its options; None is the plain iteration, h + r(h) at each step.
        """
        self.h = self.best = h
        self.lowest = math.inf
        self.options = acceleration
        self.anderson = Anderson(weights, acceleration.memory if acceleration else 0)
        self.trial = 0  # steps since Anderson's first from the best iterate; 0 while plain steps alone lead on from it
        self.plain, self.penalty = 0, 1  # plain steps to take now, and at the next rejection

    def evaluate(self, error: float, residual: Tensor) -> None:
        """Take note of the error and of r at h."""
        self.error, self.residual = error, residual
        # A plain step from the best iterate never raises the error, but may leave it where it was for long (a cluster's
        # mass cannot get out): it is progress all the same.
        if error < self.lowest or not self.trial:
            self.lowest, self.best, self.best_residual, self.trial = error, self.h, residual, 0

    def step(self, *, linear: bool) -> None:
        """Go to the next iterate.

        Args:
            linear: whether the residual at h is anything like linear; if not, the step is a plain one.
        """
        self.plain = max(self.plain - 1, 0)
        if self._is_astray():
            # Judged before anything else: no step, plain or not, goes on from an iterate that led astray.
            self._return_to_best()
        elif self.options is None or self.plain or not linear or self.lowest > self.options.start:
            self.h = self.h + self.residual
            self.trial += bool(self.trial)
        else:
            self.trial += bool(self.trial or self.anderson.history)  # its first step is a plain one
            self.h = self.anderson.step(self.h, self.residual)

    def _is_astray(self) -> bool:
        options = self.options
        return (
            options is not None
            and self.trial > 0
            and (self.error > min(options.slack * self.lowest, options.start) or self.trial > options.patience)
        )

    def _return_to_best(self) -> None:
        assert self.options is not None  # a plain iteration has no trials
        self.anderson.forget()
        self.h, self.trial = self.best + self.best_residual, 0
        self.plain, self.penalty = self.penalty, self.options.backoff * self.penalty


class Anderson:
    """Anderson acceleration (type II) of a fixed point h = h + r(h) in M numbers (Walker & Ni 2011).

    The next h is the plain step from that combination of the last few h whose residual, taken as linear, is least. For
    Sinkhorn r = log b - log(column sums), so the norm weighted by b is the one that the marginal error lives in.
    """

    def __init__(self, weights: Tensor, memory: int) -> None:
        self.scale = weights.sqrt()[:, None]
        self.memory = memory
        self.forget()

    def forget(self) -> None:
        """Start anew, with a plain step."""
        self.history: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.memory + 1)

    def step(self, h: Tensor, residual: Tensor) -> Tensor:
        """The next h, given the residual at this one."""
        self.history.append((h, residual))
        if len(self.history) == 1:
            return h + residual
        # (M, m) differences of consecutive iterates and of their residuals.
        dh, dr = (torch.stack(column, dim=1).diff(dim=1) for column in zip(*self.history, strict=True))
        # gelsd copes with differences that are linearly dependent, as they are once rounding is all that is left.
        gamma = torch.linalg.lstsq(self.scale * dr, self.scale * residual[:, None], driver="gelsd").solution
        return h + residual - ((dh + dr) @ gamma)[:, 0]
