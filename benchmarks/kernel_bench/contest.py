"""The kernels and their peers on the same inputs, taking turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from kernel_bench.contenders import (
    LONGEST,
    STEPS,
    dense_contenders,
    flash_contenders,
    flash_steps,
    keops_contender,
    our_contenders,
    plain_iterations,
)
from kernel_bench.measuring import PRODUCTS, Contender, Cost, best, cost, matrix_peak, ours_products, rate, ratio
from kernel_bench.problems import DEFAULT_SHAPE, TOLERANCE, column_error
from torch import Tensor
from torch.nn.functional import normalize

from cae.kernels import SinkhornResult, cosine_sinkhorn, counterparts
from cae.kernels.tiles import kept_rows, panel_rows


@dataclass
class Contest:
    """Who takes part, and what is known of them so far."""

    x: Tensor
    u: Tensor
    epsilon: float
    ours: SinkhornResult
    """The solution to the tolerance."""
    peak: float
    """GFLOP/s of a matrix product."""
    contenders: dict[str, Contender] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    iterations: dict[str, int] = field(default_factory=dict)
    """To the tolerance: ours, and once it is known the plain iteration's."""
    errors: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Peers that could not be had, and why."""

    @property
    def size(self) -> tuple[int, int, int]:
        """N, M and D."""
        return len(self.x), len(self.u), self.x.shape[1]

    def take_turn(self, name: str) -> tuple[dict[str, Any], list[str]]:
        """Time one call; returns all figures so far and what is missing."""
        took, answer = cost(*self.contenders[name], self.x.device)
        self.costs[name] = best(self.costs.get(name), took)
        if name.endswith("to 1e-3") and name not in self.errors:
            self.errors[name] = column_error(self.x, self.u, answer, self.epsilon)
        print(name, self.costs[name], flush=True)
        return self.figures(), self.missing

    def figures(self) -> dict[str, Any]:
        """Costs with speeds, iterations, errors and ratios."""
        device, plain = self.x.device, self.iterations.get("plain")
        products = PRODUCTS | {
            "ours, iteration": ours_products(STEPS, self.size, device) / STEPS,
            "ours, to 1e-3": ours_products(self.iterations["ours"], self.size, device),
        }
        if plain:
            products[LONGEST] = 2 * flash_steps(plain)
        costs = {
            name: asdict(took) | rate(took, products.get(name), self.size, self.peak)
            for name, took in self.costs.items()
        }
        return {
            "costs": costs,
            "iterations": self.iterations,
            "errors": self.errors,
            "peak_gflop_per_s": self.peak,
            "ratios": ratios(self.costs, plain, self.size, device),
        }

    def invite_peers(self) -> None:
        """Add the peers that can be had here."""
        x, u, epsilon, missing = self.x, self.u, self.epsilon, self.missing
        if x.is_cuda:
            # A dense loop may not fit, so the plain iteration's number is that of ours.
            self.iterations["plain"] = plain_iterations(x, u, epsilon, missing)
            self.contenders |= flash_contenders(x, u, self.ours, epsilon, self.iterations["plain"], missing)
            self.compare_counterparts()
        else:
            missing.append("flash-sinkhorn: CUDA only")
        self.contenders |= dense_contenders(x, u, epsilon, self.iterations, missing)
        self.contenders |= keops_contender(x, u, epsilon, missing)

    def compare_counterparts(self) -> None:
        """How far flash-sinkhorn's counterparts are from ours, if it has any."""
        name = "flash-sinkhorn, counterparts"
        if name in self.contenders:
            theirs = normalize(self.contenders[name][0](), dim=1)
            ours = counterparts(self.x, self.u, self.ours.g, epsilon=self.epsilon)
            self.errors[f"{name}: farthest row from ours"] = float((theirs - ours).norm(dim=1).max())


def measure(x: Tensor, u: Tensor, epsilon: float, rounds: int) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """After each call that was timed all figures so far, and the peers that could not be had."""
    peak = matrix_peak(x.device, x.dtype)
    ours = cosine_sinkhorn(x, u, epsilon=epsilon, tol=TOLERANCE)
    contest = Contest(x, u, epsilon, ours, peak, our_contenders(x, u, ours.g, epsilon))
    contest.iterations["ours"] = ours.n_iter
    # Ours first and alone: some peers compile or tune for minutes before their first figure.
    for name in contest.contenders:
        yield contest.take_turn(name)
    contest.invite_peers()
    for i in range(rounds):
        for name in contest.contenders:
            if name != LONGEST and (i > 0 or name not in contest.costs):
                yield contest.take_turn(name)
    if LONGEST in contest.contenders:
        yield contest.take_turn(LONGEST)


def ratios(
    costs: dict[str, Cost], plain: int | None, size: tuple[int, int, int], device: torch.device
) -> dict[str, dict[str, float]]:
    """Ours over each peer that ran so far, and on CUDA over the goals for an H200."""
    iteration, end, texts = (f"ours, {what}" for what in ("iteration", "to 1e-3", "counterparts"))
    pairs = {
        "ours / matrix product, one iteration": (iteration, "matrix product", 1),
        "ours / flash-sinkhorn, one iteration": (iteration, "flash-sinkhorn, iteration", 1),
        "ours / flash-sinkhorn, to 1e-3": (end, LONGEST, 1),
        "ours / flash-sinkhorn, counterparts": (texts, "flash-sinkhorn, counterparts", 1),
        "ours / TAC softmax counterpart": (texts, "TAC softmax counterpart", 1),
        "ours / dense loop, to 1e-3": (end, "dense loop, to 1e-3", 1),
    }
    if plain:
        for peer in ("POT log", "POT lazy", "KeOps (GeomLoss)"):
            pairs[f"ours / {peer}, to 1e-3"] = (end, f"{peer}, iteration", plain)
    found = {
        name: ratio(costs[ours], costs[peer], n)
        for name, (ours, peer, n) in pairs.items()
        if ours in costs and peer in costs
    }
    if not {iteration, end, texts} <= costs.keys():
        return found
    dense, end_mb = costs.get("dense loop, iteration"), costs[end].peak_mb
    if end_mb is not None and dense and dense.peak_mb:
        # What fits into memory freed before does not show in the process: take at least what it is known to be.
        rows = min(size[0], panel_rows(size[1], device)) + min(size[0], kept_rows(size[1], device))
        scratch_mb = max(end_mb, 4 * rows * size[1] / 2**20)
        found["ours / dense loop, memory"] = {"memory": scratch_mb / dense.peak_mb}
    if size == DEFAULT_SHAPE["cuda"] and device.type == "cuda":
        found["ours, one iteration / 80 ms"] = ratio(costs[iteration], Cost(0.08, 0.08, None), 1)
        result_mb = 2 * size[0] * size[2] / 2**20  # counterparts in float16 are an output, not scratch
        most_mb = max(end_mb or 0, (costs[texts].peak_mb or 0) - result_mb)
        found["ours, most memory beyond inputs / 2 GB"] = {"memory": most_mb / 2**11}
    return found
