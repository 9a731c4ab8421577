"""The other side of test_benchmark_peer.py, run by a Python that has sae-lens: `python benchmark_peer.py FOLDER`.

Reads   FOLDER/given/CASE.npz: V, H, bias and a network (W_enc, W_dec, b_enc, b_dec, threshold; or codes, W_dec, b_dec).
Writes  FOLDER/found/CASE.npz (V, H, X, codes, W_dec, b_dec) and FOLDER/found/CASE.json, the scores of
        eval_sae_on_synthetic_data; also for cases of its own, sampled from its SyntheticModel.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig
from sae_lens.synthetic import (
    FeatureDictionary,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    eval_sae_on_synthetic_data,
)

BATCH = 300


class Recorded:
    """A generator that hands out given coefficients in order."""

    def __init__(self, H):
        self.H, self.place = H, 0

    def sample(self, count):
        self.place += count
        return self.H[self.place - count : self.place]


class GivenCodes:
    """An autoencoder that answers with given codes, in order; these may be negative."""

    def __init__(self, codes, W_dec, b_dec):
        self.codes, self.W_dec, self.b_dec, self.place = codes, W_dec, b_dec, 0

    def eval(self):
        return self

    def encode(self, X):
        self.place += len(X)
        return self.codes[self.place - len(X) : self.place]

    def decode(self, codes):
        return codes @ self.W_dec + self.b_dec


def network(case):
    if "codes" in case:
        return GivenCodes(case["codes"], case["W_dec"], case["b_dec"])
    M, d = case["W_dec"].shape
    kinds = (JumpReLUSAE, JumpReLUSAEConfig) if "threshold" in case else (StandardSAE, StandardSAEConfig)
    dtype = str(case["W_dec"].dtype).removeprefix("torch.")
    sae = kinds[0](kinds[1](d_in=d, d_sae=M, dtype=dtype, device="cpu"))
    sae.load_state_dict({name: case[name] for name in sae.state_dict()})
    return sae


def score(folder, name, case):
    """Evaluate a case and write down what was measured and what came out."""
    n, d = case["V"].shape
    features = FeatureDictionary(n, d, bias=True, initializer=None)
    with torch.no_grad():
        features.feature_vectors = torch.nn.Parameter(case["V"])
        features.bias = torch.nn.Parameter(case["bias"])
        X = features(case["H"])
        codes = case["codes"] if "codes" in case else network(case).encode(X)
    found = eval_sae_on_synthetic_data(network(case), features, Recorded(case["H"]), len(X), BATCH)
    measured = {"X": X, "codes": codes, **{key: case[key] for key in ("V", "H", "W_dec", "b_dec")}}
    np.savez(folder / f"{name}.npz", **{key: value.detach().numpy() for key, value in measured.items()})
    (folder / f"{name}.json").write_text(json.dumps(found.to_dict()))


def sampled(M):
    """Coefficients and features of their generator, and an untrained autoencoder; all float32."""
    torch.manual_seed(M)
    config = SyntheticModelConfig(
        num_features=256, hidden_dim=32, bias=0.5, seed=5,
        orthogonalization=OrthogonalizationConfig(num_steps=5),
        correlation=LowRankCorrelationConfig(rank=5, correlation_scale=0.1),
    )  # fmt: skip
    model = SyntheticModel(config, device="cpu")
    V, bias = model.feature_dict.feature_vectors.detach(), model.feature_dict.bias.detach()
    W = torch.randn(M, 32)
    W[: M // 2] += 4 * V[: M // 2]
    W /= W.norm(dim=1, keepdim=True)
    return {
        "V": V, "bias": bias, "H": model.activation_generator.sample(1000), "W_dec": W, "W_enc": W.T.contiguous(),
        "b_enc": torch.full((M,), 0.1), "b_dec": torch.zeros(32), "threshold": torch.rand(M),
    }  # fmt: skip


def main(folder):
    torch.set_num_threads(1)
    (folder / "found").mkdir()
    for file in sorted((folder / "given").iterdir()):
        with np.load(file) as arrays:
            case = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        score(folder / "found", file.stem, case)
    for M in (48, 300):
        score(folder / "found", f"sampled-{M}", sampled(M))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
