"""Links: the loss of a pair from its log-ratios, `link(chosen, rejected, beta, e)`.

    w = log p(y_w|x) - log p_ref(y_w|x),   v = the same of y_l,   h = w - v

e is the assumed share of flipped labels. Where a paper says nothing of noise, the flipped
pair is mixed in as cDPO does: (1-e) link(w, v) + e link(v, w). s is the sigmoid.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

log_sigmoid, logistic = jax.nn.log_sigmoid, jax.nn.sigmoid


def noisy(loss):
    """A link from a loss(w, v, beta), with cDPO's mixture of the flipped pair."""

    def link(chosen, rejected, beta, label_smoothing):
        clean, e = loss(chosen, rejected, beta), label_smoothing
        return (1 - e) * clean + e * loss(rejected, chosen, beta) if e else clean

    functools.update_wrapper(link, loss)
    del link.__wrapped__  # its signature is its own
    return link


@noisy
def sigmoid(w, v, beta):
    """DPO's own (arXiv:2305.18290, eq. 7), `-log s(beta h)`; with noise cDPO."""
    return -log_sigmoid(beta * (w - v))


def robust(chosen, rejected, beta, label_smoothing):
    """rDPO (Chowdhury et al. 2024, arXiv:2403.00409): DPO's loss L, unbiased under noise.

    `((1-e) L(h) - e L(-h)) / (1 - 2e)`.
    """
    h, e = beta * (chosen - rejected), label_smoothing
    return (e * log_sigmoid(-h) - (1 - e) * log_sigmoid(h)) / (1 - 2 * e)


@noisy
def hinge(w, v, beta):
    """SLiC-HF's margin (Zhao et al. 2023, arXiv:2305.10425), `max(0, 1 - beta h)`."""
    return jax.nn.relu(1.0 - beta * (w - v))


@noisy
def ipo(w, v, beta):
    """IPO (Azar et al. 2023, arXiv:2310.12036, eq. 17), `(h - 1/(2 beta))^2`.

    h is of summed log-probabilities as in the paper; TRL averages over tokens, as
    `DPO(length_normalised=True)` does.
    """
    return jnp.square(w - v - 1.0 / (2.0 * beta))


def exo(chosen, rejected, beta, label_smoothing):
    """EXO-pref (Ji et al. 2024, arXiv:2402.00856, eq. 16): KL(s(beta h) || 1-e).

    Both of two outcomes. It is infinite at e = 0, which stands for 1e-3, as in TRL.
    """
    h, e = beta * (chosen - rejected), label_smoothing or 1e-3
    won = logistic(h) * (log_sigmoid(h) - jnp.log1p(-e))
    return won + logistic(-h) * (log_sigmoid(-h) - jnp.log(e))


@noisy
def nca(w, v, beta):
    """NCA of pairs (Chen et al. 2024, arXiv:2402.05369).

    `-log s(beta w) - 1/2 log s(-beta w) - 1/2 log s(-beta v)`.
    """
    low = log_sigmoid(-beta * w) + log_sigmoid(-beta * v)
    return -log_sigmoid(beta * w) - 0.5 * low


@noisy
def bco_pair(w, v, beta):
    """BCO of pairs, `-log s(beta w) - log s(-beta v)`, as TRL has it.

    The paper's shift (arXiv:2404.04656) is a statistic of the step: see `bco.py`.
    """
    return -log_sigmoid(beta * w) - log_sigmoid(-beta * v)


@noisy
def sppo(w, v, beta):
    """SPPO with hard wins (Wu et al. 2024, arXiv:2405.00675, eq. 4.7), beta = 1/eta.

    `(w - 1/(2 beta))^2 + (v + 1/(2 beta))^2`.
    """
    return jnp.square(w - 0.5 / beta) + jnp.square(v + 0.5 / beta)


@noisy
def apo_zero(w, v, beta):
    """APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266): answers beat the model's.

    `s(beta v) - s(beta w)`, and 1, so that it is never negative (as in TRL).
    """
    return 1.0 - logistic(beta * w) + logistic(beta * v)


@noisy
def apo_down(w, v, beta):
    """APO-down (same paper): both answers are worse than the model's.

    `s(beta w) - s(beta h)`, and 1, so that it is never negative (as in TRL).
    """
    return 1.0 + logistic(beta * w) - logistic(beta * (w - v))


@noisy
def discopop(w, v, beta):
    """DiscoPOP (Lu et al. 2024, arXiv:2406.08414, eq. 5), with its tau = 0.05.

    `-(1-m) log s(x) + m exp(-x)`, x = beta h, m = s(x / tau).
    """
    x = beta * (w - v)
    m = logistic(x / 0.05)
    return -(1.0 - m) * log_sigmoid(x) + m * jnp.exp(-x)
