"""f-divergences: the function f of a log-ratio that a loss takes in place of the log-ratio itself.

DPO keeps the policy near the reference by the reverse Kullback-Leibler divergence. With another divergence, generated
by a convex F, the reward of an answer is beta F'(pi / pi_ref) (Wang et al., arXiv 2309.16240, section 3.2). Below, x is
the log-ratio log pi(y|x) - log pi_ref(y|x), and f(x) is F'(e^x) up to a constant, chosen so that f(0) = 0. The
functions take and return any shape, float32.
"""

from __future__ import annotations

import math
from typing import Callable

from mindspore import Tensor

from mindrlhf.losses.maths import exp, log_sigmoid

Divergence = Callable[[Tensor], Tensor]

# Name -> (formula, source); the names are TRL's.
DIVERGENCES = {
    "reverse_kl": ("x", "arXiv 2305.18290"),
    "forward_kl": ("1 - exp(-x)", "arXiv 2309.16240, table 1"),
    "js_divergence": ("log 2 + log sigma(x)", "arXiv 2309.16240, table 1"),
    "alpha_divergence": ("(exp((coef - 1) x) - 1) / (coef - 1)", "arXiv 2309.16240, table 1"),
}


def reverse_kl(x: Tensor) -> Tensor:
    """x: the log-ratio itself, as in DPO, Rafailov et al., arXiv 2305.18290."""
    return x


def forward_kl(x: Tensor) -> Tensor:
    """1 - exp(-x); -x counts as 80 at most.

    Wang et al., arXiv 2309.16240, table 1: F'(u) = -1/u.
    """
    return 1 - exp(-x)


def js_divergence(x: Tensor) -> Tensor:
    """log 2 + log sigma(x), the Jensen-Shannon divergence; at most log 2.

    Wang et al., arXiv 2309.16240, table 1: F'(u) = log(2u / (1 + u)).
    """
    return math.log(2) + log_sigmoid(x)


def alpha_divergence(coef: float) -> Divergence:
    """(exp((coef - 1) x) - 1) / (coef - 1); (coef - 1) x counts as 80 at most.

    coef 0 is the forward divergence, and towards 1 the reverse one is approached. Wang et al., arXiv 2309.16240,
    table 1, has F'(u) = (1 - u^-alpha) / alpha, where alpha is 1 - coef; coef is TRL's. Raises ValueError for coef 1.
    """
    if not math.isfinite(coef) or coef == 1:
        raise ValueError(f"f_alpha_divergence_coef must be a number other than 1, not {coef}; 1 is reverse_kl")

    def alpha(x: Tensor) -> Tensor:
        return (exp((coef - 1) * x) - 1) / (coef - 1)

    return alpha


def divergence(name: str, coef: float = 0.5) -> Divergence:
    """The function called `name`, `coef` being that of alpha_divergence. Raises ValueError that lists the names."""
    if name == "alpha_divergence":
        return alpha_divergence(coef)
    plain = {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "js_divergence": js_divergence}
    if name not in plain:
        raise ValueError(f"f_divergence_type is {name!r}; give one of {', '.join(DIVERGENCES)}")
    return plain[name]
