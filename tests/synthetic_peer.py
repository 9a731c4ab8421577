"""The other side of test_synthetic_peer.py, run by a Python that has sae-lens: `python synthetic_peer.py FOLDER`.

Writes  FOLDER/CASE/ (models saved by sae-lens), FOLDER/CASE.npz (what samples of the saved and reloaded model count),
        FOLDER/apart.npz (a start and what `orthogonalize_embeddings` makes of it).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens.synthetic import (
    ConstantMagnitudeConfig,
    ExponentialMagnitudeConfig,
    FoldedNormalMagnitudeConfig,
    Hierarchy,
    HierarchyConfig,
    LinearFiringProbabilityConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    orthogonalize_embeddings,
)

PAIRS = 64
BLOCK = 1000


def recipe(n, d, scale, seed):
    """The published recipe with n / 128 trees; two steps of orthogonalisation, for time."""
    return SyntheticModelConfig(
        num_features=n,
        hidden_dim=d,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
        hierarchy=HierarchyConfig(
            total_root_nodes=n // 128,
            branching_factor=4,
            max_depth=3,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
            scale_children_by_parent=scale,
        ),
        orthogonalization=OrthogonalizationConfig(num_steps=2, lr=3e-4),
        correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
        bias=0.5,
        seed=seed,
    )


def node(feature, children=(), exclusive=False, scale=False):
    return {
        "feature_index": feature,
        "children": list(children),
        "mutually_exclusive_children": exclusive,
        "scale_children_by_parent": scale,
        "feature_id": None,
    }


def models():
    """The case's name, its model and how many samples are counted."""
    for name, scale in (("scaled", True), ("gated", False)):
        yield name, SyntheticModel(recipe(1024, 128, scale, 42)), 60_000
    plain = SyntheticModelConfig(
        num_features=50,
        hidden_dim=20,
        firing_probability=LinearFiringProbabilityConfig(max_prob=0.5, min_prob=0.01),
        std_firing_magnitudes=ExponentialMagnitudeConfig(start=2.0, end=0.1),
        mean_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=1.0, min_value=0.2, max_value=1.5),
        bias=False,
        seed=7,
    )
    yield "plain", SyntheticModel(plain), 100_000
    # Nodes without features, exclusive roots, a scaling node without a feature below one, mixed flags.
    inner = node(None, [node(6), node(7), node(8, [node(9), node(10)], exclusive=True)], exclusive=True, scale=True)
    forest = [
        node(None, [node(0, [node(3), node(4), inner], exclusive=True), node(1), node(2)], exclusive=True),
        node(15, [node(12, [node(11), node(13)], scale=True)], scale=True),
    ]
    mixed = SyntheticModelConfig(
        num_features=18,
        hidden_dim=20,
        firing_probability=LinearFiringProbabilityConfig(max_prob=0.6, min_prob=0.3),
        correlation=LowRankCorrelationConfig(rank=3, correlation_scale=0.5),
        std_firing_magnitudes=1.0,
        mean_firing_magnitudes=ConstantMagnitudeConfig(value=1.5),
        bias=2.0,
        seed=8,
    )
    yield "mixed", SyntheticModel(mixed, hierarchy=Hierarchy.from_dict({"roots": forest})), 100_000


def count(model, N):
    """Sums over N samples, pairs of the most frequent features, and numbers of each sample.

    The energy of a sample, the sum of F_i . F_j over its pairs of active features, tells how correlated they are.
    """
    n = model.cfg.num_features
    often = (model.activation_generator.sample(5 * BLOCK) > 0).float().mean(dim=0).numpy()
    chosen = np.sort(np.argsort(-often, kind="stable")[:PAIRS])
    correlation = model.correlation_matrix
    F = np.zeros((n, 1)) if correlation is None else correlation.correlation_factor.numpy().astype(np.float64)
    sums = {name: np.zeros(n) for name in ("active", "first", "second")}
    pairs = np.zeros((chosen.size, chosen.size))
    rows = {name: [] for name in ("sizes", "norms", "totals", "energies")}
    for _ in range(N // BLOCK):
        X, H = (part.numpy().astype(np.float64) for part in model.sample_with_features(BLOCK))
        active = (H > 0).astype(np.float64)
        sums["active"] += active.sum(axis=0)
        sums["first"] += H.sum(axis=0)
        sums["second"] += (H * H).sum(axis=0)
        pairs += active[:, chosen].T @ active[:, chosen]
        rows["sizes"].append(active.sum(axis=1))
        rows["norms"].append(np.linalg.norm(X, axis=1))
        rows["totals"].append(H.sum(axis=1))
        rows["energies"].append(((active @ F) ** 2).sum(axis=1) - active @ (F**2).sum(axis=1))
    X, H = (part.numpy() for part in model.sample_with_features(50))
    made = model.activation_generator
    exact = {"X": X, "H": H, "mean": made.mean_firing_magnitudes.numpy(), "std": made.std_firing_magnitudes.numpy()}
    each = {name: np.concatenate(parts) for name, parts in rows.items()}
    return sums | each | exact | {"chosen": chosen, "pairs": pairs, "N": N}


def main(folder):
    torch.set_num_threads(1)
    for name, model, N in models():
        model.save(folder / name)
        torch.manual_seed(1)
        np.savez(folder / f"{name}.npz", **count(SyntheticModel.load_from_disk(folder / name), N))
    start = torch.randn(60, 12, generator=torch.Generator().manual_seed(3))
    start /= start.norm(dim=1, keepdim=True)
    np.savez(folder / "apart.npz", start=start, end=orthogonalize_embeddings(start, 100, 3e-4, chunk_size=25))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
