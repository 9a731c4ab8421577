"""The dashboard's page in a real browser: list, search, order, one neuron, address, keys; nothing runs or is fetched.

Skipped where Chromium, its driver or selenium is missing; with SAE_RECOVERY_BROWSER=1 that is a failure.
"""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from test_dashboard import HOSTILE, rows_of, table_of

from llm_bridge.dashboard import LogitEffects, collect_neurons, logit_effects, write_dashboard


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """400 neurons with numbers 0, 3, 6, ...; words, and all hostile strings at the end of every context."""
    generator = np.random.default_rng(5)
    strings = HOSTILE | {token: f" w{token}" for token in range(12, 400)}
    contexts, positions, _ = rows_of([40] * 60)
    tokens = [np.concatenate([generator.integers(12, 400, 28), np.arange(12)]) for _ in range(60)]
    dense = generator.random((len(contexts), 400)) * (generator.random((len(contexts), 400)) < 0.02)
    dense[:, 7] = 0
    pages = collect_neurons(sparse.csr_array(dense), contexts, positions, tokens, range(400), before=30, after=30)
    pages = [dataclasses.replace(page, neuron=3 * page.neuron) for page in pages]
    effects = logit_effects(generator.standard_normal((400, 6)), generator.standard_normal((400, 6)))
    table = table_of(pages, generator)
    path = tmp_path_factory.mktemp("page") / "page.html"
    facts = [("model", "SmolLM2-135M-Instruct, 4-bit dequantised"), ("loss", "0.2"), (HOSTILE[2], HOSTILE[0])]
    write_dashboard(path, HOSTILE[0], facts, table, pages, strings, effects)
    return path, table, pages, strings, effects


def numbers_in_list(driver):
    return driver.execute_script(
        "return [...document.querySelectorAll('#list [role=option]')].map(row => Number(row.firstChild.textContent))"
    )


def type_into(driver, selector, text):
    field = driver.find_element("css selector", selector)
    field.clear()
    field.send_keys(text)


@pytest.fixture
def page(window, made):
    window.get(made[0].as_uri())
    yield window
    assert [entry for entry in window.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert window.execute_script("return window.ran") is None


def count(driver):
    return driver.find_element("css selector", "#count [role=status]").text


def test_layout_and_facts(page, made):
    wide = page.execute_script("return innerWidth") == 1280
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    browse, detail = (page.find_element("id", name).rect for name in ("browse", "detail"))
    if wide:
        assert browse["x"] + browse["width"] <= detail["x"]
    else:
        assert browse["y"] + browse["height"] <= detail["y"]
    assert page.find_element("id", "title").text == HOSTILE[0]
    assert "SmolLM2-135M-Instruct, 4-bit dequantised" in page.find_element("id", "facts").text
    assert count(page) == "400 of 400 neurons"
    rows = numbers_in_list(page)
    assert 8 < len(rows) < 80  # only those near the view are in the document
    expected = made[1].sort_values("z_score", ascending=False)["neuron"].tolist()
    assert rows == expected[: len(rows)]


def test_search_and_ranges(page, made):
    _, table, pages, strings, effects = made

    def expect(numbers):
        assert count(page) == f"{len(numbers)} of 400 neurons"
        assert set(numbers_in_list(page)) <= set(numbers)

    type_into(page, "#search", "112")
    expect([n for n in table["neuron"] if str(n).startswith("112")])
    texts = []
    for i, shown in enumerate(pages):
        parts = ["".join(strings[int(t)] for t in c.tokens) for c in shown.contexts]
        texts.append([*parts, *(strings[int(t)] for t in effects.promoted[i])])

    def holding(text):
        return [page.neuron for page, parts in zip(pages, texts, strict=True) if any(text in part for part in parts)]

    some = strings[int(pages[10].contexts[0].tokens[0])].strip() or " w50"
    type_into(page, "#search", some.upper())
    expect(holding(some))
    type_into(page, "#search", '" w1"')
    expect(holding(" w1"))
    assert page.find_elements("css selector", "#contexts .found")
    page.find_element("id", "search").clear()
    type_into(page, "#search", "no such text")
    expect([])
    page.find_element("id", "clear").click()
    assert count(page) == "400 of 400 neurons"
    type_into(page, "#frequency-most", "0.4")
    type_into(page, "#z-least", "20")
    expect(table["neuron"][(table["frequency"] <= 0.004) & (table["z_score"] >= 20)].tolist())


def test_sorting(page, made):
    table = made[1]
    for key in ("mcs", "frequency", "max_activation", "neuron", "z_score"):
        page.find_element("css selector", f"#sort option[value={key}]").click()
        up = key == "neuron"
        for ascending in (up, not up):
            rows = numbers_in_list(page)
            # pandas' stable sort leaves equals in the order of their numbers, as the page does.
            expected = table.sort_values(key, ascending=ascending, kind="stable")["neuron"].tolist()
            assert rows == expected[: len(rows)], (key, ascending)
            page.find_element("id", "direction").click()
    page.find_element("css selector", "#head [data-key=mcs]").click()
    assert numbers_in_list(page)[0] == table.sort_values("mcs")["neuron"].iloc[-1]


def test_a_click_shows_the_neuron(page, made):
    _, table, pages, strings, _ = made
    row = page.find_elements("css selector", "#list [role=option]")[4]
    number = int(row.find_element("css selector", "span").text)
    row.click()
    at = number // 3
    assert page.find_element("id", "name").text == f"Neuron {number}"
    assert page.execute_script("return location.hash") == f"#neuron={number}"
    assert f"{table['z_score'][at]:.3g}" in page.find_element("id", "numbers").text
    assert f"{pages[at].counts.sum()} rows" in page.find_element("id", "histogram-title").text
    bars = page.find_elements("css selector", "#histogram .bar")
    assert len(bars) == np.count_nonzero(pages[at].counts)
    promoted = page.find_elements("css selector", "#promoted .token")
    assert len(promoted) == 8
    shown = page.execute_script(
        "return [...document.querySelectorAll('#contexts p')].map(p => [...p.querySelectorAll('.token')].map(token =>"
        "[token.textContent, getComputedStyle(token).backgroundColor, token.classList.contains('peak'), token.title]))"
    )
    assert len(shown) == len(pages[at].contexts)
    for parts, context in zip(shown, pages[at].contexts, strict=True):
        assert len(parts) == len(context.tokens)
        for j, (text, colour, peak, title) in enumerate(parts):
            string, value = strings[int(context.tokens[j])], float(context.activations[j])
            signs = {4: "↵", 5: "⇥", 6: "␣␣␣", 7: "∅", 10: "‹2028›‹202E›‹0000›‹200B›", 11: "‹D800›"}  # noqa: RUF001
            assert text == signs.get(int(context.tokens[j]), string)
            assert (colour != "rgba(0, 0, 0, 0)") == (value > 0)
            assert peak == (j == context.peak)
            written = float(re.search(r"activation (\S+), position", title)[1])
            assert written == pytest.approx(value, abs=pages[at].max_activation / 255 + 0.005)


def test_address_and_keys(page, made):
    table = made[1].sort_values("z_score", ascending=False)["neuron"].tolist()
    page.get(made[0].as_uri() + "#neuron=21")  # the one that is never active
    assert page.find_element("id", "name").text == "Neuron 21"
    assert "active on none" in page.find_element("id", "note").text
    assert 21 in numbers_in_list(page)
    body = page.find_element("tag name", "body")
    place = table.index(21)
    for key, step in (("j", 1), ("j", 1), ("k", -1), ("\ue015", 1), ("\ue013", -1)):  # the last two: down, up
        body.send_keys(key)
        place = min(399, max(0, place + step))
        assert page.execute_script("return location.hash") == f"#neuron={table[place]}"
    selected = page.find_element("css selector", "#list [aria-selected=true]")
    assert selected.find_element("css selector", "span").text == str(table[place])
    body.send_keys("/")
    assert page.switch_to.active_element.get_attribute("id") == "search"
    page.switch_to.active_element.send_keys("jk")
    assert page.find_element("id", "search").get_attribute("value") == "jk"
    page.execute_script("location.hash = 'neuron=30'")
    page.execute_script("return new Promise(resolve => setTimeout(resolve, 50))")
    assert page.find_element("id", "name").text == "Neuron 30"
    page.execute_script("document.querySelector('#contexts .peak').focus({focusVisible: true})")
    tip = page.find_element("id", "tip")
    assert tip.is_displayed() and "activation" in tip.text


def test_nothing_can_be_fetched(driver, made):
    driver.get(made[0].as_uri())
    blocked = driver.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', event => done(event.effectiveDirective));"
        "new Image().src = 'http://127.0.0.1:9/x.png';"
    )
    assert blocked == "img-src"
    driver.get_log("browser")


def severe(driver):
    return [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_page_with_the_least_in_it(driver, tmp_path):
    """One neuron, never active; no MCS, no effects, no Z-score; a number that is not on the page is asked for."""
    pages = collect_neurons(sparse.csr_array((4, 2)), *rows_of([5]), [1])
    table = pd.DataFrame({"neuron": [1], "frequency": 0.0, "max_activation": 0.0, "z_score": np.nan, "target": np.nan})
    write_dashboard(tmp_path / "page.html", "least", [], table, pages, {})
    driver.get((tmp_path / "page.html").as_uri() + "#neuron=5")
    assert count(driver) == "Neuron 5 is not on this page"
    assert driver.find_element("id", "name").text == "Neuron 1"
    assert "–" in driver.find_element("id", "numbers").text  # noqa: RUF001
    assert not driver.find_element("id", "promoted-title").is_displayed()
    assert not driver.find_elements("css selector", "#head [data-key=mcs]")
    assert severe(driver) == []


def test_more_strings_than_two_bytes_can_number(driver, tmp_path):
    M, each = 700, 100
    pages = collect_neurons(sparse.csr_array(np.eye(M)), *rows_of([M], first=0), range(M), before=1, after=1)
    ids = np.arange(M * each).reshape(M, each)
    strings = {token: f"t{token};" for token in range(M * each)}
    table = table_of(pages, np.random.default_rng(0))
    effects = LogitEffects(ids, np.ones((M, each)), ids[:, ::-1], -np.ones((M, each)))
    write_dashboard(tmp_path / "page.html", "wide", [], table, pages, strings, effects)
    driver.get((tmp_path / "page.html").as_uri() + "#neuron=699")
    assert driver.find_element("css selector", "#promoted .token").text == "t69900;"
    assert driver.find_element("css selector", "#contexts p").text == "…t698;t699;"
    type_into(driver, "#search", "t69950;")
    assert numbers_in_list(driver) == [699]
    assert severe(driver) == []
