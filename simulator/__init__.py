"""The world and the learner: sample X = HV with planted features, train sparse autoencoders on it.

from simulator import BA, Exactly, Training, World, fit

world = World(n=128, d=42, support=Exactly(3))
outcome = fit(world.stream(seed=0), Training(BA(p=0.03), neurons=512, steps=6000), seed=0)
"""

from simulator.activations import ActivationMatrix
from simulator.adaptation import OneSided, TwoSided
from simulator.coefficients import (
    ClippedNormal,
    ConstantCoefficients,
    Exponential,
    FoldedNormal,
    HalfNormal,
    Uniform,
)
from simulator.cooccurrence import Hub, OnePair
from simulator.copula import Copula, GivenFactors, RandomFactors
from simulator.dictionaries import (
    Coherent,
    Gaussian,
    GivenDictionary,
    HeavyTailed,
    Orthogonalised,
    Orthonormal,
    Rademacher,
    SparseGaussian,
    UnitSphere,
)
from simulator.errors import RequestError
from simulator.frequencies import Constant, Given, Zipf
from simulator.hierarchy import Hierarchy, trees
from simulator.methods import BA, GBA, L1, BatchTopK, Gated, JumpReLU, Matryoshka, TopK
from simulator.modified import ModifiedBA, fit_modified, population_fit
from simulator.rng import stream
from simulator.supports import Bernoulli, Exactly, Mixture, Paired
from simulator.synthbench import synth_sae_bench
from simulator.synthetic_model import read_synthetic_model
from simulator.train import Fit, fit
from simulator.training import Training
from simulator.world import Sample, World, WorldStream

__all__ = [
    "BA",
    "GBA",
    "L1",
    "ActivationMatrix",
    "BatchTopK",
    "Bernoulli",
    "ClippedNormal",
    "Coherent",
    "Constant",
    "ConstantCoefficients",
    "Copula",
    "Exactly",
    "Exponential",
    "Fit",
    "FoldedNormal",
    "Gated",
    "Gaussian",
    "Given",
    "GivenDictionary",
    "GivenFactors",
    "HalfNormal",
    "HeavyTailed",
    "Hierarchy",
    "Hub",
    "JumpReLU",
    "Matryoshka",
    "Mixture",
    "ModifiedBA",
    "OnePair",
    "OneSided",
    "Orthogonalised",
    "Orthonormal",
    "Paired",
    "Rademacher",
    "RandomFactors",
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
    "read_synthetic_model",
    "stream",
    "synth_sae_bench",
    "trees",
]
