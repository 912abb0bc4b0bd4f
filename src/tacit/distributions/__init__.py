"""Distributions of single entries, whose parameters a network computes: the heads that models share.

Every head follows `Head`: its parameters lie along axis 1, (batch, parameters, *positions). Reductions over components
or levels then run over an outer axis, whole rows of positions at a time, which is many times faster than over a short
last axis.
"""

from tacit.distributions.coupled import CoupledLogisticMixture
from tacit.distributions.discrete import Bernoulli, Categorical
from tacit.distributions.gaussian import GaussianMixture
from tacit.distributions.head import Head
from tacit.distributions.logistic import DiscretisedLogisticMixture

__all__ = [
    "Bernoulli",
    "Categorical",
    "CoupledLogisticMixture",
    "DiscretisedLogisticMixture",
    "GaussianMixture",
    "Head",
]
