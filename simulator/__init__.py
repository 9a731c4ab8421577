"""The world and the learner: sample X = HV with planted features, train sparse autoencoders on it.

from simulator import BA, Exactly, Training, World, fit

world = World(n=128, d=42, support=Exactly(3))
outcome = fit(world.stream(seed=0), Training(BA(p=0.03), neurons=512, steps=6000), seed=0)
"""

from simulator.activations import ActivationMatrix
from simulator.adaptation import OneSided, TwoSided
from simulator.coefficients import ConstantCoefficients, Exponential, HalfNormal, Uniform
from simulator.cooccurrence import Hub, OnePair
from simulator.dictionaries import (
    Coherent,
    Gaussian,
    GivenDictionary,
    HeavyTailed,
    Orthonormal,
    Rademacher,
    SparseGaussian,
    UnitSphere,
)
from simulator.errors import RequestError
from simulator.frequencies import Constant, Given, Zipf
from simulator.methods import BA, GBA, L1, TopK
from simulator.modified import ModifiedBA, fit_modified, population_fit
from simulator.rng import stream
from simulator.supports import Bernoulli, Exactly, Mixture, Paired
from simulator.train import Fit, fit
from simulator.training import Training
from simulator.world import Sample, World, WorldStream

__all__ = [
    "BA",
    "GBA",
    "L1",
    "ActivationMatrix",
    "Bernoulli",
    "Coherent",
    "Constant",
    "ConstantCoefficients",
    "Exactly",
    "Exponential",
    "Fit",
    "Gaussian",
    "Given",
    "GivenDictionary",
    "HalfNormal",
    "HeavyTailed",
    "Hub",
    "Mixture",
    "ModifiedBA",
    "OnePair",
    "OneSided",
    "Orthonormal",
    "Paired",
    "Rademacher",
    "RequestError",
    "Sample",
    "SparseGaussian",
    "TopK",
    "Training",
    "TwoSided",
    "Uniform",
    "UnitSphere",
    "World",
    "WorldStream",
    "Zipf",
    "fit",
    "fit_modified",
    "population_fit",
    "stream",
]
