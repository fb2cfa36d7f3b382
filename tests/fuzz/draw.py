"""Ordinary calls, drawn at random: every function, op, shape, layout, type and option that has an answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.fuzz.call import Call
from tests.fuzz.layout import laid_out
from tests.fuzz.truth import KL_PER_DIM, KL_PER_ROW, NO_KL, Problem, arithmetic

Generator = np.random.Generator
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FORMS = ("number", "zero_dim", "row", "kept", "step", "step")


class Draw:
    """One call, from a generator of its own: nothing depends on the calls before it."""

    def __init__(self, seed: int, number: int) -> None:
        self.rng = np.random.default_rng([seed, number])

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def happens(self, chance: float) -> bool:
        return bool(self.rng.random() < chance)

    def word(self) -> int:
        """64 bits, often near an end of their range."""
        return int(self.one_of(0, 1, 2**32 - 1, 2**63, 2**64 - 2, *self.rng.integers(0, 2**64, 3, np.uint64)))

    # Shapes

    def shape(self) -> tuple[tuple[int, ...], int]:
        """The leading axes and the steps of a problem."""
        rng = self.rng
        if self.happens(0.01):
            rows = () if self.happens(0.5) else (int(rng.integers(1, 4)),)
            return rows, int(math.exp(rng.uniform(math.log(300), math.log(70_000))))
        if self.happens(0.01):
            return (int(math.exp(rng.uniform(math.log(300), math.log(70_000)))),), int(rng.integers(1, 3))
        steps = int(rng.integers(1, 41)) if self.happens(0.9) else int(rng.integers(1, 400))
        room = max(1, 1200 // steps)
        lead: list[int] = []
        for _ in range(int(rng.integers(0, 6)) if self.happens(0.97) else int(rng.integers(6, 9))):
            size = int(rng.integers(1, min(room, 40) + 1))
            size = size if self.happens(0.4) else min(size, 3)
            lead.append(0 if self.happens(0.008) else size)
            room //= size
        rng.shuffle(lead)
        return tuple(lead), steps

    def _shared(self, lead: tuple[int, ...]) -> tuple[int, ...]:
        """Some axes left to broadcasting, in one operand of three."""
        if self.happens(0.67):
            return lead
        return tuple(1 if self.happens(0.4) else size for size in lead)

    # Values

    def tensor(self, values: Any, dtype: torch.dtype) -> Tensor:
        return laid_out(self.rng, torch.from_numpy(np.array(values, np.float64)).to(dtype))

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, size: float = 1.0) -> Tensor:
        return self.tensor(size * self.rng.standard_normal(shape), dtype)

    def _parameter(
        self, mu: Tensor, lead: tuple[int, ...], per_step: int, dtype: torch.dtype, values: Any
    ) -> Tensor | float:
        form = self.one_of(*FORMS)
        if form == "number":
            return float(np.clip(float(torch.tensor(values(()), dtype=torch.float32)), -1e30, 1e30))
        own = self._shared(lead)
        rank = mu.dim() - 1
        shape = {"zero_dim": (), "row": own[len(own) - rank :], "kept": (*own, 1), "step": (*own, per_step)}
        return self.tensor(values(shape[form]), dtype)

    def problem(self) -> Problem:
        """mu, scale and rho, with everything that is asked of them left open."""
        lead, steps = self.shape()
        dtype = self.one_of(*DTYPES, torch.float32)
        own = self._shared(lead)
        if own and self.happens(0.1):
            own = own[1:]
        mu = self.normal((*own, steps), dtype, self.one_of(0, 1e-4, 1, 1, 1, 30))
        logits = self.happens(0.6)
        parameter_dtype = dtype if self.happens(0.6) else torch.float32
        # A half type's gradient, s^2 times its number, has to stay within its range.
        widest = 2.0 if torch.float16 in (dtype, parameter_dtype) else 5.0
        log_s_size = self.one_of(0, 1e-4, 0.5, 1, widest)
        logit_size = self.one_of(0, 1e-4, 0.5, 1, 3, 12)

        def draw(size: float, shape: tuple[int, ...]) -> Any:
            return self.rng.uniform(-size, size, shape)

        largest = 1 - float(torch.finfo(parameter_dtype).eps) / 2

        def scales(shape: tuple[int, ...]) -> Any:
            return draw(log_s_size, shape) if logits else np.exp(draw(log_s_size, shape))

        def rhos(shape: tuple[int, ...]) -> Any:
            values = draw(logit_size, shape)
            return values if logits else np.clip(np.tanh(values), -largest, largest)

        scale = self._parameter(mu, lead, steps, parameter_dtype, scales)
        rho = self._parameter(mu, lead, steps - 1, parameter_dtype, rhos)
        if isinstance(rho, float) and not logits:
            rho = max(-1 + 2.0**-24, min(1 - 2.0**-24, rho))
        return Problem(mu, scale, rho, logits)

    def extremes(self, problem: Problem) -> None:
        """Parameters past all that is sensible: to be answered with anything but NaN."""
        for name, values in (("scale", (60, 100, -60, -100)), ("rho", (50, 1000, -50, -1000))):
            given = getattr(problem, name)
            if self.happens(0.3):
                continue
            if not isinstance(given, Tensor):
                setattr(problem, name, float(self.one_of(*values)))
            elif given.numel():
                chosen = self.rng.choice(np.array([*values, 0, 1.0]), tuple(given.shape))
                setattr(problem, name, self.tensor(chosen, given.dtype))

    def lead_of(self, problem: Problem) -> tuple[int, ...]:
        rank = problem.mu.dim()
        leads = [tuple(problem.mu.shape[:-1])]
        for value in (problem.scale, problem.rho):
            if isinstance(value, Tensor):
                leads.append(tuple(value.shape if value.dim() == rank - 1 else value.shape[:-1]))
        return np.broadcast_shapes(*leads)

    # What is asked

    def ask(self, problem: Problem) -> None:
        """A sample, a KL or both, and where the noise comes from."""
        lead, steps = self.lead_of(problem), problem.mu.shape[-1]
        wanted = self.one_of("z", "z", "kl", "both", "both")
        problem.sample = wanted != "kl"
        problem.kl = NO_KL if wanted == "z" else self.one_of(KL_PER_ROW, KL_PER_DIM)
        if not problem.sample:
            return
        size = math.prod(lead) * steps
        samples = self.one_of(
            None, None, None, 1, int(self.rng.integers(2, 5)), int(self.rng.integers(2, 41))
        )
        problem.num_samples = samples if samples is None or samples * size <= 4000 else min(samples, 2)
        if self.happens(0.4):
            shape = (*([] if problem.num_samples is None else [problem.num_samples]), *lead, steps)
            problem.eps = self.normal(shape, self.one_of(problem.mu.dtype, arithmetic(problem.mu)))
        else:
            problem.key = (self.word(), self.word())
            problem.row_offset = self.one_of(0, 0, self.word())
            if lead and self.happens(0.25):
                problem.own_keys = tuple(self.one_of(1, size) for size in lead)

    def cotangents(self, problem: Problem) -> None:
        lead, steps = self.lead_of(problem), problem.mu.shape[-1]
        samples = () if problem.num_samples is None else (problem.num_samples,)
        if problem.sample and (problem.kl == NO_KL or self.happens(0.8)):
            problem.dz = self.normal((*samples, *lead, steps), problem.mu.dtype)
        if problem.kl and (problem.dz is None or self.happens(0.8)):
            shape = (*lead, steps) if problem.kl == KL_PER_DIM else lead
            problem.dkl = self.normal(shape, arithmetic(problem.mu))

    def density(self, problem: Problem) -> None:
        lead = self.lead_of(problem)
        lead = (int(self.rng.integers(1, 4)), *lead) if self.happens(0.2) else lead
        own = self._shared(lead)
        problem.sample = False
        problem.z = self.normal((*own, problem.mu.shape[-1]), problem.mu.dtype, self.one_of(1, 1, 5))
        lead = np.broadcast_shapes(own, self.lead_of(problem))
        problem.dlog_prob = self.normal(lead, arithmetic(problem.mu))

    def entropy(self, problem: Problem) -> Problem:
        lead, mu = self.lead_of(problem), problem.mu
        s = self.tensor(np.exp(self.rng.uniform(-3, 3, (*lead, mu.shape[-1]))), mu.dtype)
        rho = problem.rho
        if problem.logits:
            rho = 0.5
        elif isinstance(rho, Tensor) and rho.dim() < s.dim() and rho.dim() > 0:
            rho = self.tensor(np.full(s.shape[:-1], -0.25), mu.dtype)
        problem = Problem(torch.zeros_like(s), s, rho, sample=False)
        problem.dlog_prob = self.normal(lead, arithmetic(mu))
        return problem

    def poison(self, problem: Problem) -> None:
        """NaN in one place: the rows around it have to be right."""
        name = self.one_of("mu", "scale", "rho", "eps", "dz", "dkl", "z", "dlog_prob")
        given = getattr(problem, name)
        if isinstance(given, Tensor) and given.numel() > 1:
            values = given.contiguous().clone()
            values.view(-1)[int(self.rng.integers(values.numel()))] = math.nan
            setattr(problem, name, values)


def ordinary(seed: int, number: int) -> Call:
    draw = Draw(seed, number)
    problem = draw.problem()
    if draw.happens(0.02):
        return Call.of_a_key(draw, problem.mu)
    kind = draw.one_of("sample", "sample", "sample", "density", "entropy" if draw.happens(0.3) else "sample")
    extreme = problem.logits and kind != "entropy" and draw.happens(0.1)
    if extreme:
        draw.extremes(problem)
    if kind == "sample":
        draw.ask(problem)
        draw.cotangents(problem)
    elif kind == "density":
        draw.density(problem)
    else:
        problem = draw.entropy(problem)
    if draw.happens(0.04):
        draw.poison(problem)
    return Call.of(draw, problem, kind, extreme)
