"""Sources: every training row once per epoch, held-out rows never, any batch in any order, bounded memory."""

import itertools

import numpy as np
import pytest
import torch
from tiny_language import tiny_model, tiny_text

from llm_bridge import sources
from llm_bridge.capture import capture
from llm_bridge.models import load_model
from llm_bridge.sources import LiveActivations, LiveSource, StoredActivations, StoredSource, open_rows
from llm_bridge.store import Store
from llm_bridge.texts import Text
from simulator import BA, GBA, RequestError, Training, fit

LAYER = "model.layers.1"


class Numbered:
    """Row i is (i, i/2, ...): every row tells its number; counts what is read."""

    name = "numbered"

    def __init__(self, N, d=3):
        self.N, self.d, self.calls = N, d, []

    def read(self, start, stop):
        assert 0 <= start < stop <= self.N
        self.calls.append((start, stop))
        return np.outer(np.arange(start, stop), 1 / np.arange(1, self.d + 1)).astype(np.float32)

    @property
    def mean(self):
        return np.full(self.d, (self.N - 1) / 2, np.float32) / np.arange(1, self.d + 1, dtype=np.float32)

    def identity(self):
        return {"rows": self.N}


def numbers(source, batches) -> np.ndarray:
    """The numbers of the rows in batches."""
    return np.concatenate([np.round(batch.numpy()[:, 0] + source.offset[0]).astype(int) for batch in batches])


def held_out(source) -> np.ndarray:
    return source.evaluation_rows(10**9, 0)


@pytest.fixture
def small_groups(monkeypatch):
    """Groups of 4 pages at d = 3 and pages of 256 rows."""
    monkeypatch.setattr(sources, "GROUP_BYTES", 4 * 256 * 3 * 4)


@pytest.mark.parametrize("N", [40, 41, 79, 80, 81, 1_000, 10_240, 10_241, 20_000])
@pytest.mark.parametrize("size", [1, 7, 64, 1_000])
def test_every_row_once_per_epoch(N, size, small_groups):
    """Batches go across the ends of groups and epochs, also several in one batch."""
    source = StoredSource(Numbered(N), 0)
    held = held_out(source)
    assert len(held) + source.N == N and len(set(held)) == len(held)
    assert 0.02 <= len(held) / N <= 0.06
    epochs = 3 if N < 2_000 and size > 1 else 1
    seen = numbers(source, [source.batch(t, size) for t in range(-(-epochs * source.N // size))])
    orders = [seen[e * source.N : (e + 1) * source.N] for e in range(epochs)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.setdiff1d(np.arange(N), held))
    assert all((one != other).any() for one, other in itertools.pairwise(orders))
    if N == 20_000 and size == 64:  # other pages come together in the next epoch
        later = numbers(source, [source.batch(t, 64) for t in range(-(-source.N // 64), 2 * source.N // 64)])
        groups = [set(order[: 3 * 256] // 256) for order in (orders[0], later)]
        assert groups[0] != groups[1] and len(groups[0]) == 4


def test_a_batch_depends_on_its_number_only(small_groups):
    N = 11_000
    forwards, fresh = StoredSource(Numbered(N), 5), StoredSource(Numbered(N), 5)
    expected = [forwards.batch(t, 300) for t in range(90)]  # two epochs and more
    for t in np.random.default_rng(0).permutation(90)[:40]:
        assert torch.equal(fresh.batch(int(t), 300), expected[t])
        assert torch.equal(StoredSource(Numbered(N), 5).batch(int(t), 300), expected[t])
    expected[0].zero_()  # what is given away is not what is kept
    assert forwards.batch(0, 300).any()
    assert fresh.batch(0, 300).shape == (300, 3) and fresh.batch(0, 300).dtype == torch.float32


def test_other_seeds_other_orders_the_same_held_out_rows(small_groups):
    source = StoredSource(Numbered(11_000), 5)
    first = source.batch(0, 300)
    other = source.with_seed(6)
    assert not torch.equal(other.batch(0, 300), first)
    assert torch.equal(other.batch(0, 300), StoredSource(Numbered(11_000), 6).batch(0, 300))
    assert torch.equal(source.batch(0, 300), first)
    np.testing.assert_array_equal(np.sort(held_out(source)), np.sort(held_out(other)))
    assert (source.config()["seed"], other.config()["seed"]) == (5, 6)


def test_memory_is_bounded_by_one_group(small_groups):
    """Only rows of one group are read and kept; an epoch reads every page once."""
    rows = Numbered(20_000)
    source = StoredSource(rows, 0)
    assert rows.calls == []
    source.batch(0, 10)
    assert len(rows.calls) == source.group_pages == 4
    assert rows.calls == sorted(rows.calls)  # in the order of the file
    for t in range(1, 102):
        source.batch(t, 10)
    assert len(rows.calls) == 4
    for t in range(102, source.N // 10):
        source.batch(t, 10)
        assert len(source._rows) <= 4 * 256
    read = np.concatenate([np.arange(*call) for call in rows.calls])
    np.testing.assert_array_equal(np.sort(read), np.setdiff1d(np.arange(20_000), held_out(source)))


def test_group_of_the_size_that_is_promised():
    source = StoredSource(Numbered(10**6, 576), 0)
    assert 0.99 * 2**27 < source.group_pages * source.page * source.d * 4 <= 2**27


def test_batches_mix_rows_of_many_pages(monkeypatch):
    """512 of the 18,688 rows of 73 pages drawn at random miss a page with probability < (1 - 1/74)^512 = 0.0009:
    at most 3 are missed but with probability 73^4 / 24 * 0.0009^4 < 1e-6; the seed is fixed."""
    monkeypatch.setattr(sources, "GROUP_BYTES", 1 << 20)
    source = StoredSource(Numbered(100_000), 0)
    assert source.group_pages >= 73
    for t in range(0, 100, 9):
        pages = np.unique(numbers(source, [source.batch(t, 512)]) // 256)
        assert len(pages) >= 70
        assert np.ptp(pages) > 250  # from all over the 391 pages of the file


def test_centring():
    rows = Numbered(1_000)
    assert abs(StoredSource(rows, 0).batch(0, 950).numpy()[:, 0].mean()) < 20
    plain = StoredSource(rows, 0, centre=False)
    np.testing.assert_array_equal(plain.batch(0, 7).numpy() - rows.mean, StoredSource(rows, 0).batch(0, 7).numpy())
    np.testing.assert_array_equal(plain.evaluation(9, 0) - rows.mean, StoredSource(rows, 0).evaluation(9, 0))
    assert plain.config()["centred"] is False


@pytest.mark.parametrize("N", [40, 500, 10_300, 30_000])
def test_evaluation_rows(N):
    source = StoredSource(Numbered(N), 0)
    everything = source.evaluation(10**6, 3)
    assert everything.dtype == np.float32
    np.testing.assert_array_equal(
        np.round(everything[:, 0] + source.offset[0]).astype(int), source.evaluation_rows(10**6, 3)
    )
    for samples in {1, 2, len(everything) // 2 + 1, len(everything), len(everything) + 1}:
        some = source.evaluation(samples, 3)
        np.testing.assert_array_equal(some, everything[:samples])
    if N == 30_000:
        assert (source.evaluation_rows(300, 3) != source.evaluation_rows(300, 4)).any()
    for samples in (0, -1, 1.5):
        with pytest.raises(RequestError, match=f"samples = {samples}"):
            source.evaluation(samples, 0)


def test_rows_that_are_too_few_or_not_finite():
    with pytest.raises(RequestError, match="numbered has 39 rows; at least 40 are needed"):
        StoredSource(Numbered(39), 0)

    class Broken(Numbered):
        mean = np.array([0, np.nan, 0], np.float32)

    with pytest.raises(RequestError, match="holds NaN or infinity; capture it again with --dtype fp32"):
        StoredSource(Broken(100), 0)
    with pytest.raises(RequestError, match="numbered has no contexts; a store"):
        StoredSource(Numbered(100), 0).held_out_contexts()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(str(tiny_model(tmp_path_factory.mktemp("model"))), device="cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return Text((str(tiny_text(tmp_path_factory.mktemp("text"), 4)),), 16)


@pytest.fixture(scope="module")
def stored(tmp_path_factory, model, text):
    """About 12,500 rows in several shards."""
    folder = tmp_path_factory.mktemp("store")
    capture(model, [LAYER], text, 10**6, folder, shard_rows=2_000)
    return folder


def test_a_store_as_a_source(stored, monkeypatch):
    """Pages across the ends of shards; the rows are those of the store."""
    store = Store(stored)
    monkeypatch.setattr(sources, "GROUP_BYTES", 4 * 256 * store.d * 4)
    source = StoredActivations(stored).source(0)
    assert stored.is_dir() and len(store.index["shards"]) > 5
    seen = np.concatenate([source.batch(t, 1).numpy() for t in range(source.N)]) + source.offset
    held = held_out(source)
    everything = store.read(0, store.N)
    expected = np.delete(everything, held, axis=0)
    order, wanted = (np.lexsort(rows.round(3).T) for rows in (seen, expected))
    np.testing.assert_allclose(seen[order], expected[wanted], atol=2e-3)
    np.testing.assert_allclose(source.evaluation(10**6, 0) + source.offset, everything[held], atol=1e-5)


def test_held_out_contexts_are_wholly_held_out(stored):
    source = StoredActivations(stored).source(0)
    store, held = Store(stored), set(held_out(source).tolist())
    contexts = store.marks("contexts")
    expected = [c for c in np.unique(contexts) if held.issuperset(np.flatnonzero(contexts == c).tolist())]
    assert source.held_out_contexts().tolist() == expected
    assert len(expected) > 20


TRAINING = Training(GBA(0.2, 0.05, 2, buffer=256), 24, 60, 128, learning_rate=3e-3)


def resumes(make, tmp_path):
    """A run that is stopped after some steps and continued with a new source, against one that is not."""
    whole = fit(make(), TRAINING, 0, device="cpu", threads=1)

    class Stop(Exception):
        pass

    def stop(t, loss):
        if t == 23:
            raise Stop

    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stop):
        fit(make(), TRAINING, 0, device="cpu", threads=1, checkpoint=checkpoint, checkpoint_seconds=0.0, progress=stop)
    steps = []
    again = fit(
        make(), TRAINING, 0, device="cpu", threads=1, checkpoint=checkpoint, progress=lambda t, _: steps.append(t)
    )
    assert steps[0] in (23, 24)
    for name in ("W", "a", "b", "b_pre"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))
    assert whole.history["loss"][-1] < 0.9 * whole.history["loss"][1]
    return checkpoint


def test_training_on_a_store_resumes_bit_equal(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "GROUP_BYTES", 4 * 256 * 16 * 4)  # 7,680 samples: over several groups
    checkpoint = resumes(lambda: StoredActivations(stored).source(0), tmp_path)
    for other in (StoredActivations(stored).source(1), StoredActivations(stored, centre=False).source(0)):
        with pytest.raises(RequestError, match="belongs to another configuration"):
            fit(other, TRAINING, 0, device="cpu", threads=1, checkpoint=checkpoint)


def test_training_on_a_model_resumes_bit_equal(model, text, tmp_path):
    live = LiveActivations("m", LAYER, text, 6_000, loaded=lambda: model)
    checkpoint = resumes(lambda: live.source(0), tmp_path)
    other = LiveActivations("m", LAYER, text, 5_000, loaded=lambda: model)
    with pytest.raises(RequestError, match="belongs to another configuration"):
        fit(other.source(0), TRAINING, 0, device="cpu", threads=1, checkpoint=checkpoint)


def sorted_rows(X) -> np.ndarray:
    X = np.ascontiguousarray(X)
    return X[np.lexsort(X.T)]


def test_live_rows_are_those_of_a_capture(model, text, stored):
    """An epoch and the held-out rows together are bit by bit what a capture of the same text keeps: none is both.

    Compared as multisets, since contexts that begin alike have equal rows."""
    live = LiveSource(model, LAYER, text, 10**6, 0, "fp32", centre=False)
    assert len(live.groups) > 2 and live.d == 16
    epoch = [live.batch(t, 97).numpy() for t in range(-(-live.N // 97))]
    trained, held = np.concatenate(epoch)[: live.N], live.evaluation(10**6, 0)
    store = Store(stored)
    assert len(held) + live.N == store.N
    np.testing.assert_array_equal(sorted_rows(np.concatenate([trained, held])), sorted_rows(store.read(0, store.N)))
    assert len(held) > 0.02 * store.N
    second = np.concatenate([live.batch(t, 97).numpy() for t in range(live.N // 97 + 1, 2 * live.N // 97)])
    assert not np.array_equal(second[:97], trained[:97])
    assert {row.tobytes() for row in second} <= {row.tobytes() for row in trained}


def test_a_live_batch_depends_on_its_number_only(model, text):
    def make(seed=0):
        return LiveSource(model, LAYER, text, 9_000, seed, "fp32")

    one = make()
    assert 9_000 <= one.N + len(one.evaluation(10**6, 0)) < 9_000 + 16 * 15 + 1
    expected = [one.batch(t, 500) for t in range(40)]  # two epochs
    for t in (39, 3, 20, 0):
        assert torch.equal(make().batch(t, 500), expected[t])
        assert torch.equal(one.batch(t, 500), expected[t])
    other = one.with_seed(1)
    assert not torch.equal(other.batch(0, 500), expected[0])
    assert torch.equal(other.batch(7, 500), make(1).batch(7, 500))
    assert torch.equal(one.batch(0, 500), expected[0])
    assert abs(one.evaluation(10**6, 0).mean(axis=0)).max() < 1e-5
    np.testing.assert_array_equal(one.evaluation(50, 2), make(3).evaluation(50, 2))
    np.testing.assert_array_equal(one.evaluation(50, 2), one.evaluation(100, 2)[:50])


def test_live_groups_are_run_when_they_are_needed(model, text, monkeypatch):
    live = LiveSource(model, LAYER, text, 10**6, 0, "fp32")
    forwards, plain = [], live._forward
    monkeypatch.setattr(live, "_forward", lambda contexts: forwards.append(len(contexts)) or plain(contexts))
    live.batch(0, 100)
    assert len(forwards) == 16 and sum(forwards) <= 256
    live.batch(1, 100)
    assert len(forwards) == 16


def test_live_requests_that_cannot_be_met(model, text, tmp_path):
    (tmp_path / "words.txt").write_text("the river and the stone")
    few = Text((str(tmp_path / "words.txt"),), 16)
    with pytest.raises(RequestError, match="gives too few contexts; more text is needed"):
        LiveSource(model, LAYER, few, 100, 0, "fp32")
    for layer, words in (("model.layers.7", "near names"), ("lm_headd", "near names: lm_head")):
        with pytest.raises(RequestError, match=words):
            LiveSource(model, layer, text, 100, 0, "fp32")
    with pytest.raises(RequestError, match=r"reads at most 512 tokens"):
        LiveSource(model, LAYER, Text(text.files, 600), 10**6, 0, "fp32")
    with pytest.raises(RequestError, match="tokens = 0"):
        LiveActivations("m", LAYER, text, 0, loaded=lambda: model).source(0)
    with pytest.raises(RequestError, match="samples = 0"):
        LiveSource(model, LAYER, text, 100, 0, "fp32").evaluation(0, 0)


def test_descriptions(model, text, stored, tmp_path):
    live = LiveActivations(str(tmp_path / "folder" / "name"), LAYER, text, 500, dtype="auto", loaded=lambda: model)
    assert live.label == f"name-{LAYER}"
    assert live.source(0).config()["dtype"] == "fp32"  # as the model is, not as this processor would have it
    assert StoredActivations(stored).label == stored.name
    assert StoredActivations(stored, LAYER).label == f"{stored.name}-{LAYER}"
    assert open_rows(stored, LAYER).identity() == open_rows(stored).identity()


def test_a_live_run_from_a_folder(tmp_path, text):
    folder = tiny_model(tmp_path / "model")
    live = LiveActivations(str(folder), LAYER, text, 2_000, dtype="bf16")
    found = fit(live.source(0), Training(BA(0.1, buffer=128), 8, 5, 64), 0, device="cpu", threads=1)
    assert found.status == "finished" and found.W.shape == (8, 16)
