"""A sparse autoencoder as it is used after training, ours or another library's, on activations as a model makes them.

    u   = (x - offset) * scale, then scaled row by row as `rows` says       what the network sees
    y   = W_enc (u - b_dec) + b_enc        (without b_dec where `subtract_b_dec` is False)
    phi = y 1(y > max(threshold, 0))       JumpReLU; ReLU has threshold 0; TopK keeps the k largest first
    u^  = sum_m phi_m W_dec,m + b_dec,     x^ = u^ / (scale of the row) / scale + offset

Ours (Chen et al. 2025, arXiv:2506.14002; `simulator.sae`) is the case W_enc = W, W_dec,m = a_m w_m, b_dec = b_pre,
and for JumpReLU b_enc = 0, threshold_m = -b_m: there the bias only gates.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import sparse

from simulator.errors import RequestError

Rows = Literal["none", "unit", "rms", "layer_norm"]
_BLOCK = 1 << 24  # pre-activations held at once
_TINY = 1e-5  # added to a row's standard deviation (layer_norm), as SAELens does


@dataclass(frozen=True)
class Autoencoder:
    """The network and how its inputs are prepared; arrays are float32."""

    encoder: np.ndarray
    """W_enc, (M, d)."""
    decoder: np.ndarray
    """W_dec, (M, d); the direction that each neuron writes, with its length."""
    b_enc: np.ndarray
    """(M,), added to the pre-activation and, unlike the threshold, to the magnitude too."""
    b_dec: np.ndarray
    """(d,)."""
    threshold: np.ndarray | None = None
    """(M,), JumpReLU; None: ReLU or TopK."""
    k: int | None = None
    """Largest positive pre-activations kept per sample (TopK)."""
    offset: np.ndarray | None = None
    """(d,), taken off the activations first: the mean of the activations that it was trained on."""
    scale: float = 1.0
    """The same factor for every activation."""
    rows: Rows = "none"
    """Scaling of each row: to unit norm; to norm sqrt(d); to mean 0 and variance 1; or none."""
    subtract_b_dec: bool = True
    """Whether b_dec is taken off before encoding."""
    rank_by_decoder_norm: bool = False
    """TopK: codes are measured in units of the decoder's row norms (SAELens' rescale_acts_by_decoder_norm)."""

    def __post_init__(self) -> None:
        M, d = self.encoder.shape
        if self.decoder.shape != (M, d) or self.b_enc.shape != (M,) or self.b_dec.shape != (d,):
            raise RequestError(
                f"encoder {self.encoder.shape}, decoder {self.decoder.shape}, b_enc {self.b_enc.shape} and b_dec "
                f"{self.b_dec.shape} do not fit; (M, d), (M, d), (M,) and (d,) are needed"
            )
        if self.threshold is not None and self.threshold.shape != (M,):
            raise RequestError(f"threshold has shape {self.threshold.shape}; ({M},) is needed")
        if self.offset is not None and self.offset.shape != (d,):
            raise RequestError(f"offset has shape {self.offset.shape}; ({d},) is needed")
        if not 0 < self.scale < np.inf:
            raise RequestError(f"scale = {self.scale}; a number > 0 is needed")
        if self.k is not None and not 1 <= self.k <= M:
            raise RequestError(f"k = {self.k} active neurons of {M}; 1 <= k <= {M} is needed")

    @property
    def M(self) -> int:
        """Neurons."""
        return len(self.encoder)

    @property
    def d(self) -> int:
        """Dimension of the activations."""
        return self.encoder.shape[1]

    def inputs(self, X: np.ndarray) -> np.ndarray:
        """Activations (N, d) as the network sees them, (N, d) float32."""
        return self._prepared(X)[0]

    def _prepared(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | float]:
        """u, and the factor (N, 1) and shift (N, 1) that lead back: (x - offset) scale = u factor + shift."""
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[1] != self.d:
            raise RequestError(f"the activations have shape {X.shape}; this autoencoder needs (N, {self.d})")
        X = X.astype(np.float32)
        if self.offset is not None:
            X = X - self.offset
        X = X * np.float32(self.scale)
        ones = np.ones((len(X), 1), np.float32)
        if self.rows == "none":
            return X, ones, 0.0
        if self.rows == "layer_norm":
            shift = X.mean(axis=1, keepdims=True)
            # The n - 1 form, as torch's std.
            spread = (X - shift).std(axis=1, ddof=1, keepdims=True)
            return (X - shift) / (spread + _TINY), spread, shift
        length = np.linalg.norm(X, axis=1, keepdims=True)
        factor = length if self.rows == "unit" else length / np.float32(np.sqrt(self.d))
        return X / np.where(factor > 0, factor, 1), factor, 0.0

    def preactivations(self, U: np.ndarray) -> np.ndarray:
        """y of prepared inputs (N, d), dense (N, M): for few samples."""
        U = U - self.b_dec if self.subtract_b_dec else U
        y = torch.from_numpy(np.ascontiguousarray(U)) @ torch.from_numpy(self.encoder).T
        return y.numpy() + self.b_enc

    def encode(self, X: np.ndarray) -> sparse.csr_array:
        """Codes of activations (N, d); sparse, (N, M), blocks of samples at a time."""
        return self.encode_inputs(self.inputs(X))

    def encode_inputs(self, U: np.ndarray) -> sparse.csr_array:
        """Codes of prepared inputs (N, d)."""
        norms = np.linalg.norm(self.decoder, axis=1) if self.rank_by_decoder_norm else None
        floor = 0.0 if self.threshold is None else np.maximum(self.threshold, 0)
        rows, parts = max(1, _BLOCK // self.M), []
        for start in range(0, len(U), rows):
            y = self.preactivations(U[start : start + rows])
            if norms is not None:
                y *= norms
            mask = y > floor
            if self.k is not None and self.k < self.M:
                kept = np.zeros_like(mask)
                largest = torch.from_numpy(y).topk(self.k, dim=1).indices.numpy()
                np.put_along_axis(kept, largest, True, axis=1)
                mask &= kept
            sizes = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
            parts.append(sparse.csr_array((y[mask], mask.nonzero()[1], sizes), shape=mask.shape))
        if not parts:
            return sparse.csr_array((0, self.M), dtype=np.float32)
        return sparse.csr_array(sparse.vstack(parts, format="csr"))

    def decode_inputs(self, codes: sparse.csr_array) -> np.ndarray:
        """Reconstructions of prepared inputs from codes (N, M); (N, d)."""
        decoder = self.decoder
        if self.rank_by_decoder_norm:
            length = np.linalg.norm(decoder, axis=1, keepdims=True)
            decoder = decoder / np.where(length > 0, length, 1)
        return codes @ decoder + self.b_dec

    def reconstruct(self, X: np.ndarray, codes: sparse.csr_array | None = None) -> np.ndarray:
        """x^ of activations (N, d), on their own scale; (N, d) float32. `codes`: theirs, where they are at hand."""
        U, factor, shift = self._prepared(X)
        found = self.decode_inputs(self.encode_inputs(U) if codes is None else codes) * factor + shift
        found = found / np.float32(self.scale)
        return (found if self.offset is None else found + self.offset).astype(np.float32)
