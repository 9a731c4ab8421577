"""The dashboard: what it shows against brute force, its size and safety; the page itself is tested in a browser."""

import json
import re
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from llm_bridge.dashboard import LogitEffects, NeuronPage, TopContext, collect_neurons, logit_effects, write_dashboard
from simulator.errors import RequestError

HOSTILE = {
    0: "</script><script>window.ran = 1</script>",
    1: "<!-- <script>",
    2: "<img src=x onerror='window.ran = 2'>",
    3: "&lt;b&gt; \"quoted\" 'single' \\u0041 \\",
    4: "\n",
    5: "\t",
    6: "   ",
    7: "",
    8: "\ufffd",
    9: "日本語 😀",
    10: "\u2028\u202e\x00\u200b",
    11: "\ud800",
}


# Histograms and contexts


def rows_of(lengths, *, first=1):
    """Contexts, positions and tokens of contexts whose positions below `first` have no row."""
    contexts = np.concatenate([np.full(n - first, c) for c, n in enumerate(lengths)])
    positions = np.concatenate([np.arange(first, n) for n in lengths])
    return contexts, positions, [np.arange(n) + 100 * c for c, n in enumerate(lengths)]


def by_force(dense, contexts, positions, tokens, neuron, top, before, after):
    """The definition, entry by entry: (context, start, tokens, activations, peak), largest activation first."""
    best = {}
    for row, value in enumerate(dense[:, neuron]):
        if value > 0 and value > best.get(contexts[row], (0, 0))[0]:
            best[contexts[row]] = (value, row)
    found = []
    for context, (_, row) in sorted(best.items(), key=lambda item: (-item[1][0], item[1][1]))[:top]:
        at = positions[row]
        shown = [p for p in range(len(tokens[context])) if at - before <= p <= at + after]
        value = {positions[i]: dense[i, neuron] for i in range(len(dense)) if contexts[i] == context}
        activations = [value.get(p, 0.0) for p in shown]
        found.append((context, shown[0], [tokens[context][p] for p in shown], activations, shown.index(at)))
    return found


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize(("top", "before", "after"), [(3, 2, 1), (8, 14, 6), (1, 0, 0)])
def test_contexts_and_histogram_by_force(generator, levels, top, before, after):
    """Few levels: most activations tie. Lengths: windows that are longer than a context, and contexts with one row."""
    contexts, positions, tokens = rows_of([12, 2, 5, 30, 2, 7, 2])
    dense = generator.integers(1, levels + 1, (len(contexts), 9)).astype(np.float32)
    dense *= generator.random(dense.shape) < 0.3
    dense[:, 4] = 0  # never active
    dense[:, 5] = 0
    dense[positions == 1, 5] = 2.5  # active on every context's first row only, all equal
    neurons = np.array([7, 0, 4, 5, 2])
    pages = collect_neurons(
        sparse.csr_array(dense), contexts, positions, tokens, neurons, top=top, before=before, after=after, bins=5
    )
    assert [page.neuron for page in pages] == neurons.tolist()
    for page in pages:
        values = dense[:, page.neuron]
        expected = by_force(dense, contexts, positions, tokens, page.neuron, top, before, after)
        found = [(c.context, c.start, c.tokens.tolist(), c.activations.tolist(), c.peak) for c in page.contexts]
        assert found == expected
        assert all(c.length == len(tokens[c.context]) for c in page.contexts)
        assert page.max_activation == values.max()
        np.testing.assert_allclose(page.edges, np.linspace(0, values.max(), 6))
        active = values[values > 0]
        inner = [int(((active >= a) & (active < b)).sum()) for a, b in zip(page.edges, page.edges[1:], strict=False)]
        inner[-1] += int((active == values.max()).sum()) if len(active) else 0
        assert page.counts.tolist() == inner
    assert pages[2].contexts == ()


def test_largest_activation_at_the_ends_of_a_context():
    contexts, positions, tokens = rows_of([6, 6], first=0)
    dense = np.zeros((12, 1))
    dense[0], dense[11] = 2, 1
    first, last = collect_neurons(sparse.csr_array(dense), contexts, positions, tokens, [0], before=2, after=2)[
        0
    ].contexts
    assert (first.start, first.peak, first.tokens.tolist()) == (0, 0, [0, 1, 2])
    assert (last.start, last.peak, last.tokens.tolist()) == (3, 2, [103, 104, 105])


def test_rows_in_any_order_and_entries_stored_twice(generator):
    contexts, positions, tokens = rows_of([9, 9, 9])
    dense = generator.random((24, 4)) * (generator.random((24, 4)) < 0.5)
    order = generator.permutation(24)
    halves = sparse.coo_array(dense)
    twice = sparse.coo_array((np.tile(halves.data / 2, 2), (np.tile(halves.row, 2), np.tile(halves.col, 2))), (24, 4))
    straight = collect_neurons(sparse.csr_array(dense), contexts, positions, tokens, range(4))
    other = collect_neurons(sparse.csr_array(twice)[order], contexts[order], positions[order], tokens, range(4))
    for page, same in zip(straight, other, strict=True):
        np.testing.assert_array_equal(page.counts, same.counts)
        for context, again in zip(page.contexts, same.contexts, strict=True):
            assert context.context == again.context
            np.testing.assert_array_equal(context.activations, again.activations)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neurons": []}, "a row of numbers"),
        ({"neurons": [4]}, "neuron 4 is asked for; there are the neurons 0 to 3"),
        ({"neurons": [-1]}, "neuron -1"),
        ({"neurons": [1, 1]}, "twice"),
        ({"neurons": [0.5]}, "a row of numbers"),
        ({"contexts": np.zeros(3, int)}, "contexts has shape"),
        ({"contexts": np.full(10, 2)}, "tokens has 2 contexts"),
        ({"positions": np.full(10, 6)}, "position 6 of context 0, which has 6 tokens"),
        ({"positions": np.full(10, 1)}, "the same context and position"),
        ({"codes": sparse.csr_array(np.full((10, 4), -1.0))}, "negative"),
        ({"codes": sparse.csr_array(np.full((10, 4), np.nan))}, "not finite"),
        ({"codes": sparse.csr_array((0, 4)), "contexts": [], "positions": []}, "no row"),
        ({"top": 0}, "top"),
    ],
)
def test_impossible_requests(change, message):
    contexts, positions, tokens = rows_of([6, 6])
    request = {"codes": sparse.csr_array(np.eye(10, 4)), "contexts": contexts, "positions": positions, "tokens": tokens}
    with pytest.raises(RequestError, match=message) as error:
        collect_neurons(**(request | {"neurons": [0]} | change))
    assert "\n" not in str(error.value)


# Effects on the logits


@pytest.mark.parametrize("block", [1, 1 << 23])
def test_logit_effects_against_the_dense_formula(generator, monkeypatch, block):
    monkeypatch.setattr("llm_bridge.dashboard._BLOCK", block)
    decoder, unembedding, weight = (generator.standard_normal(s) for s in ((7, 5), (40, 5), (5,)))
    for g in (None, weight):
        dense = (decoder * (1 if g is None else g)) @ unembedding.T
        dense -= dense.mean(axis=1, keepdims=True)
        order = np.argsort(-dense, axis=1)
        effects = logit_effects(decoder, unembedding, g, 6)
        np.testing.assert_array_equal(effects.promoted, order[:, :6])
        np.testing.assert_array_equal(effects.suppressed, order[:, ::-1][:, :6])
        for ids, values in (effects[:2], effects[2:]):
            np.testing.assert_allclose(values, np.take_along_axis(dense, ids, axis=1), atol=1e-5)
    with pytest.raises(RequestError, match="unembedding"):
        logit_effects(decoder, unembedding[:, :4])
    with pytest.raises(RequestError, match="norm_weight"):
        logit_effects(decoder, unembedding, weight[:4])
    with pytest.raises(RequestError, match="41 tokens of a vocabulary of 40"):
        logit_effects(decoder, unembedding, count=41)


# The file


def table_of(pages, generator):
    M = len(pages)
    return pd.DataFrame({
        "neuron": [page.neuron for page in pages],
        "frequency": [page.counts.sum() / 10_000 for page in pages],
        "max_activation": [page.max_activation for page in pages],
        "z_score": generator.permutation(M) / 7,
        "target": np.where(np.arange(M) % 2, 0.01, np.nan),
        "mcs": generator.permutation(M) / M,
    })  # fmt: skip


def content(page):
    """The data in a page, as JSON reads it."""
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_size_of_2000_neurons(generator, tmp_path):
    """30,000 different tokens of one to fourteen letters, 24 bins, contexts of 21 tokens, effects of 8 and 8."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz éß語😀<"))
    lengths = generator.integers(1, 15, 30_000)
    strings = {token: "".join(letters[generator.integers(0, len(letters), n)]) for token, n in enumerate(lengths)}
    edges = np.linspace(0, 3, 25)
    pages = []
    for neuron in range(2_000):
        shown = []
        for number in generator.integers(0, 100_000, 10):
            values = (generator.random(21) * (generator.random(21) < 0.2)).astype(np.float32)
            values[14] = 1
            shown.append(TopContext(int(number), 128, 60, generator.integers(0, 30_000, 21), values, 14))
        pages.append(NeuronPage(neuron * 4, 1.0, generator.integers(0, 5_000, 24), edges, tuple(shown)))
    sides = [generator.integers(0, 30_000, (2_000, 8)), generator.random((2_000, 8)).astype(np.float32)] * 2
    file = tmp_path / "page.html"
    write_dashboard(file, "Neurons", [("model", "m")], table_of(pages, generator), pages, strings, LogitEffects(*sides))
    assert file.stat().st_size < 5e6


def test_page_holds_the_data_and_nothing_else_can_enter(generator, tmp_path):
    contexts, positions, _ = rows_of([14, 14])
    tokens = [np.concatenate([np.arange(12), [0, 1]])] * 2
    dense = generator.random((26, 3)) * (generator.random((26, 3)) < 0.4)
    dense[3, 1] = 1e-9  # far below one step of 255, and yet active
    pages = collect_neurons(sparse.csr_array(dense), contexts, positions, tokens, [0, 1, 2])
    effects = LogitEffects(np.array([[0], [1], [2]]), np.ones((3, 1)), np.array([[3], [11], [4]]), -np.ones((3, 1)))
    hostile = HOSTILE[0]
    table = table_of(pages, generator).assign(**{hostile: [1.5, np.inf, np.nan]})
    write_dashboard(tmp_path / "page.html", hostile, [(hostile, HOSTILE[2])], table, pages, HOSTILE, effects)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    template = files("llm_bridge").joinpath("dashboard.html").read_text(encoding="utf-8")
    assert page.count("<script") == template.count("<script")
    assert page.count("</script") == template.count("</script")
    assert "<!--" not in page and "window.ran" in page
    assert re.search("https?:|//[a-z]|url\\(|@import|innerHTML|insertAdjacent|document.write|eval\\(", template) is None
    assert "default-src 'none'" in template
    data = content(page)
    assert set(data["strings"]) == set(HOSTILE.values())
    assert data["title"] == hostile
    column = data["columns"][-1]
    assert (column["label"], column["values"]) == (hostile, [1.5, None, None])
    assert [neuron["max"] for neuron in data["neurons"]] == [page.max_activation for page in pages]
    assert [neuron["counts"] for neuron in data["neurons"]] == [page.counts.tolist() for page in pages]


def test_data_that_does_not_fit(generator, tmp_path):
    contexts, positions, tokens = rows_of([6, 6])
    pages = collect_neurons(sparse.csr_array(np.ones((10, 2))), contexts, positions, tokens, [0, 1])
    strings = {int(token): "x" for part in tokens for token in part}
    table = table_of(pages, generator)

    def refuse(message, **change):
        given = {"table": table, "neurons": pages, "token_strings": strings} | change
        with pytest.raises(RequestError, match=message) as error:
            write_dashboard(tmp_path / "page.html", "t", [], **given)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "page.html").exists()

    refuse("no neuron", neurons=[])
    refuse("1 rows for 2 neurons", table=table[:1])
    refuse("no column z_score", table=table.drop(columns="z_score"))
    refuse("is neuron 1, of the data neuron 0", table=table[::-1])
    refuse("column name of the table", table=table.assign(name=["a", "b"]))
    refuse("no string for token 0", token_strings={})
    refuse("effects have 1 rows", effects=LogitEffects(*[np.zeros((1, 3), int)] * 4))
