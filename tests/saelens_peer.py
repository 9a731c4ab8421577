"""The other side of test_saelens_peer.py, run by a Python that has sae-lens: `python saelens_peer.py FOLDER`.

Reads   FOLDER/X.npy, and FOLDER/ours/CASE/ (SAELens folders, each with X.npy where it expects other activations).
Writes  FOLDER/theirs/CASE/ (autoencoders that sae-lens made), FOLDER/resaved/CASE/ (ours, saved again by sae-lens),
        FOLDER/answers/{ours,theirs}/CASE.safetensors (codes, reconstruction), FOLDER/metadata.json, FOLDER/data/TYPE/.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Array2D, Dataset, Features, Sequence, Value
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    CacheActivationsRunner,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from safetensors.torch import save_file

K, M = 5, 40


def scatter(sae, generator):
    """Random weights with decoder rows of different lengths; thresholds in the middle of what occurs."""
    with torch.no_grad():
        for name, value in sae.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.4)
            if name == "W_dec":
                value.mul_(torch.rand(value.shape[0], 1, generator=generator) + 0.3)
            if name == "threshold":
                value.abs_()
    return sae


def answer(folder, X, file):
    """Codes and reconstruction of the folder as sae-lens loads it, computed in float32."""
    sae = SAE.load_from_disk(folder).to(dtype=torch.float32)
    with torch.no_grad():
        codes = sae.encode(X)
        found = {"codes": codes.contiguous(), "reconstruction": sae(X).contiguous()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, file)
    return sae


def train(sae, X, steps=5):
    """A few steps, so that the running threshold of batch top-k is a real one."""
    optimiser = torch.optim.SGD(sae.parameters(), lr=1e-3)
    for step in range(steps):
        optimiser.zero_grad()
        sae.training_forward_pass(TrainStepInput(X, {}, None, step, False)).loss.backward()
        optimiser.step()


def make(folder, X):
    """SAELens' own autoencoders; the name of the case says what it is."""
    d = X.shape[1]
    generator = torch.Generator().manual_seed(7)
    for apply in (True, False):
        for norm in ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in"):
            shape = {"d_in": d, "d_sae": M, "apply_b_dec_to_input": apply, "normalize_activations": norm}
            end = f"{'apply' if apply else 'raw'}-{norm}"
            scatter(StandardSAE(StandardSAEConfig(**shape)), generator).save_model(folder / f"standard-{end}")
            for rescale in (True, False):
                config = TopKSAEConfig(**shape, k=K, rescale_acts_by_decoder_norm=rescale)
                name = f"topk-{'rescaled' if rescale else 'plain'}-{end}"
                scatter(TopKSAE(config), generator).save_model(folder / name)
            jump = scatter(JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**shape)), generator)
            jump.save_inference_model(folder / f"jumprelu-{end}")
    for rescale in (True, False):
        config = TopKTrainingSAEConfig(d_in=d, d_sae=M, k=K, rescale_acts_by_decoder_norm=rescale)
        scatter(TopKTrainingSAE(config), generator).save_inference_model(folder / f"topk-trained-{rescale}")
    batch = scatter(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d, d_sae=M, k=K)), generator)
    train(batch, X)
    batch.save_inference_model(folder / "batchtopk")
    config = MatryoshkaBatchTopKTrainingSAEConfig(d_in=d, d_sae=M, k=K, matryoshka_widths=[10, M])
    nested = scatter(MatryoshkaBatchTopKTrainingSAE(config), generator)
    nested.topk_threshold.fill_(0.5)
    nested.save_inference_model(folder / "matryoshka")
    for dtype in ("bfloat16", "float16"):
        config = JumpReLUTrainingSAEConfig(d_in=d, d_sae=M, dtype=dtype)
        scatter(JumpReLUTrainingSAE(config), generator).save_inference_model(folder / dtype)
    # float32 weights under a narrower dtype, and files as they were before 6.0.
    edit(folder, "standard-apply-none", "narrowed", dtype="bfloat16")
    edit(folder, "standard-raw-none", "no-metadata", metadata=None, architecture=None, apply_b_dec_to_input=None)
    edit(
        folder, "topk-plain-apply-none", "before-6",
        metadata=None, architecture=None, k=None, activation_fn_str="topk", activation_fn_kwargs={"k": K},
        normalize_activations=False, hook_point="blocks.3.hook_resid_pre",
    )  # fmt: skip


def edit(folder, source, name, **changes):
    """A copy of a case with cfg.json changed; None takes an entry out."""
    (folder / name).mkdir()
    weights = "sae_weights.safetensors"
    (folder / name / weights).write_bytes((folder / source / weights).read_bytes())
    config = json.loads((folder / source / "cfg.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / name / "cfg.json").write_text(json.dumps(config))


def cache(folder, dtype):
    """Activations cached as the runner does: shards of `datasets`, put together by the runner's own function."""
    context, d = 6, 4
    columns = {"blocks.1.hook_resid": Array2D(shape=(context, d), dtype=dtype)}
    features = Features({**columns, "token_ids": Sequence(Value("int32"), length=context)})
    values = np.random.default_rng(3).normal(size=(11, context, d)).astype(dtype)
    tokens = np.arange(11 * context, dtype=np.int32).reshape(11, context)
    shards = folder / ".tmp_shards"
    shards.mkdir(parents=True)
    for number, (first, past) in enumerate(((0, 4), (4, 11))):
        content = {
            "blocks.1.hook_resid": torch.tensor(values[first:past]),
            "token_ids": torch.tensor(tokens[first:past]),
        }
        Dataset.from_dict(content, features=features).save_to_disk(shards / f"shard_{number:05d}", num_shards=1)
    CacheActivationsRunner._consolidate_shards(shards, folder, copy_files=False)
    np.save(folder.parent / f"{dtype}.npy", values)


def main(folder):
    torch.set_num_threads(1)
    X = torch.from_numpy(np.load(folder / "X.npy"))
    metadata = {}
    for case in sorted((folder / "ours").iterdir()):
        own = case / "X.npy"
        wanted = torch.from_numpy(np.load(own)) if own.exists() else X
        sae = answer(case, wanted, folder / "answers" / "ours" / f"{case.name}.safetensors")
        metadata[case.name] = sae.cfg.metadata.to_dict()
        sae.save_model(folder / "resaved" / case.name)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    make(folder / "theirs", X)
    for case in sorted((folder / "theirs").iterdir()):
        answer(case, X, folder / "answers" / "theirs" / f"{case.name}.safetensors")
    for dtype in ("float32", "float16"):
        cache(folder / "data" / dtype, dtype)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
