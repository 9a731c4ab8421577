"""SAELens folders against the real sae-lens, both ways.

Needs a Python with sae-lens in an environment of its own, which does the other side (saelens_peer.py):
    SAE_LENS_PYTHON=/path/to/python pytest tests/test_saelens_peer.py
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_saelens import CASES, activations, assert_equal_networks, assert_same, refusal

from llm_bridge.saelens import INPUT, read_saelens, write_saelens

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peer(tmp_path_factory) -> Path:
    """The folder after tests/saelens_peer.py has been there; importing sae-lens takes ten seconds, so once."""
    python = os.environ.get("SAE_LENS_PYTHON")
    if not python:
        pytest.skip("SAE_LENS_PYTHON is not set: name a Python with sae-lens to compare with the real one")
    folder = tmp_path_factory.mktemp("peer")
    X = activations()
    np.save(folder / "X.npy", X)
    for name, autoencoder in CASES.items():
        case = folder / "ours" / name
        write_saelens(case, autoencoder, {"model_name": "tiny", "hook_name": "layers.3"})
        if (case / INPUT).exists():
            # What cfg.json's metadata ask for.
            before = load_file(case / INPUT)
            np.save(case / "X.npy", (X - before.get("offset", np.float32(0))) * before.get("scale", np.float32(1)))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    script = Path(__file__).with_name("saelens_peer.py")
    result = subprocess.run([python, script, folder], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


def test_saelens_loads_ours_and_agrees(peer):
    assert len(CASES) == 128
    for name, autoencoder in CASES.items():
        answer = load_file(peer / "answers" / "ours" / f"{name}.safetensors")
        X = activations()
        assert_same(answer["codes"], autoencoder.encode(X).toarray())
        reconstruction = answer["reconstruction"]
        if (peer / "ours" / name / INPUT).exists():
            before = load_file(peer / "ours" / name / INPUT)
            reconstruction = reconstruction / before.get("scale", np.float32(1))
            if autoencoder.offset is not None:
                reconstruction = reconstruction + autoencoder.offset
        assert_same(reconstruction, autoencoder.reconstruct(X))


def test_saelens_keeps_our_metadata(peer):
    for name, metadata in json.loads((peer / "metadata.json").read_text()).items():
        assert metadata["model_name"] == "tiny"
        assert metadata["sae_lens_training_version"] is None
        assert ("input_file" in metadata["sae_recovery"]) == (peer / "ours" / name / INPUT).exists()


def test_ours_saved_again_by_saelens(peer):
    for name, autoencoder in CASES.items():
        if (peer / "ours" / name / INPUT).exists():
            # SAELens keeps the metadata and not our file: reading on without it would be wrong silently.
            assert INPUT in refusal(read_saelens, peer / "resaved" / name)
        else:
            assert_equal_networks(read_saelens(peer / "resaved" / name)[0], autoencoder, activations())


def test_ours_reads_what_saelens_wrote(peer):
    names = sorted(path.name for path in (peer / "theirs").iterdir())
    assert len(names) == 41
    for name in names:
        answer = load_file(peer / "answers" / "theirs" / f"{name}.safetensors")
        found, _ = read_saelens(peer / "theirs" / name)
        codes = answer["codes"]
        assert 0 < (codes > 0).mean() < 0.9, name
        assert_same(found.encode(activations()).toarray(), codes)
        assert_same(found.reconstruct(activations()), answer["reconstruction"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_activations_that_saelens_cached(peer, dtype):
    pytest.importorskip("pyarrow")
    from llm_bridge.saelens_data import SAELensRows, open_saelens_dataset

    folder, values = peer / "data" / dtype, np.load(peer / "data" / f"{dtype}.npy").astype(np.float32)
    data = open_saelens_dataset(folder)
    hook = "blocks.1.hook_resid"
    assert (data.columns, data.d, data.context, data.contexts) == ([hook], {hook: 4}, 6, 11)
    assert data.dtypes == {hook: dtype}
    np.testing.assert_array_equal(data.read(hook, 0, 11), values)
    np.testing.assert_array_equal(data.read(hook, 3, 6), values[3:6])
    np.testing.assert_array_equal(data.tokens(2, 9), np.arange(66, dtype=np.int32).reshape(11, 6)[2:9])
    rows = SAELensRows(folder)
    np.testing.assert_array_equal(rows.read(5, 40), values.reshape(-1, 4)[5:40])
    np.testing.assert_allclose(rows.mean, values.reshape(-1, 4).mean(axis=0), atol=1e-6)
