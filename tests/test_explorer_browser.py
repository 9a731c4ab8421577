"""The explorer in a real browser: every page opens, dials move by the keyboard, picture and number follow."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from figures.explorer.scenes import adaptation, identifiability, model, resonance

pytestmark = pytest.mark.slow
SLIDER = """
for (const host of document.querySelectorAll('marimo-slider')) {
  const root = host.shadowRoot;
  if (root && root.textContent.includes(arguments[0])) return root.querySelector('[role=slider]');
}
return null"""
TEXT = """
const words = [];
const read = node => {
  if (node.nodeType === Node.TEXT_NODE) words.push(node.textContent);
  if (node.shadowRoot) read(node.shadowRoot);
  if (!['STYLE', 'SCRIPT'].includes(node.nodeName)) node.childNodes.forEach(read);
};
read(document.body);
return words.join(' ')"""
"""All that is written on the page, inside marimo's elements too."""
IMAGE = "const image = document.querySelector('img[alt]'); return image && image.naturalWidth ? image.src : null"


@contextlib.contextmanager
def serving():
    """A server of its own: (its process, its address)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "figures.cli", "explore", "--port", str(port), "--no-browser"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until(lambda: answers(port), "the server")
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.communicate(timeout=30)


@pytest.fixture(scope="module")
def address(driver):
    with serving() as (_, at):
        yield at


def answers(port):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).status == 200


def until(happens, what, seconds=60):
    """Wait for something true and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if found := happens():
                return found
        time.sleep(0.05)
    pytest.fail(f"{what} did not come in {seconds} s")


@pytest.fixture
def page(window):
    yield window
    window.get("about:blank")


def opened(page, address, name):
    page.get(f"{address}/{name}/")
    until(lambda: page.execute_script(IMAGE), f"the picture of {name}")


def press(page, label, key, times=1):
    """Keys on a slider, as a person without a mouse would."""
    for _ in range(times):
        until(lambda: page.execute_script(SLIDER, label), f"slider {label}").send_keys(key)


def shows(page, text):
    until(lambda: text in written(page), f"the text {text!r}")


def written(page):
    """Words and signs with one blank between them at most, as they are read."""
    return re.sub(r" ([.,:;)])", r"\1", " ".join(page.execute_script(TEXT).split()))


def readable(page):
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert "Traceback" not in written(page)
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


RIGHT, LEFT, HOME, END, ENTER = "\ue014", "\ue012", "\ue011", "\ue010", "\ue007"


def test_the_root_leads_to_the_first_page_and_links_to_all(page, address):
    page.get(f"{address}/")
    until(lambda: page.current_url.endswith("/model/"), "the first page")
    links = until(lambda: page.find_elements("css selector", "nav[aria-label=pages] a"), "links")
    assert [link.get_attribute("href").split("/")[-2] for link in links] == [
        "model", "identifiability", "adaptation", "resonance", "own-world",
    ]  # fmt: skip
    links[1].click()
    until(lambda: page.current_url.endswith("/identifiability/"), "the second page")


def test_the_model(page, address):
    opened(page, address, "model")
    before = page.execute_script(IMAGE)
    press(page, "features n", RIGHT, 3)
    shows(page, f"{model.show(9, 2, 2).numbers['coherence']:.3f}")
    shows(page, "9 features share 2 dimensions")
    assert page.execute_script(IMAGE) != before
    press(page, "features n", HOME)  # n = 2
    press(page, "active per sample", END)  # s = 6
    shows(page, "Not possible: s = 6 exceeds the number of features n = 2")
    readable(page)


def test_identifiability(page, address):
    opened(page, address, "identifiability")
    shows(page, "No composite explains the same data")
    before = page.execute_script(IMAGE)
    press(page, "coherence", RIGHT, 20)
    scene = identifiability.show(4, 0.3, 0.1)
    shows(page, "Another dictionary explains the same data")
    assert scene.numbers["alternative"]
    assert page.execute_script(IMAGE) != before
    press(page, "sparsity", HOME)
    shows(page, "Not possible: with s = 1 no two features occur together")
    readable(page)


def test_adaptation(page, address):
    opened(page, address, "adaptation")
    before = page.execute_script(IMAGE)
    press(page, "target frequency", RIGHT)
    shows(page, f"in {adaptation.show(0.05, 0.9, 0.0).numbers['two-sided frequency']:.4f} under the two-sided rule")
    assert page.execute_script(IMAGE) != before
    readable(page)


def test_resonance_trains_shows_progress_and_stops(page, address):
    opened(page, address, "resonance")
    press(page, "features n", HOME)
    press(page, "dimensions d", LEFT)
    press(page, "neurons per feature", HOME)
    place = resonance.Place(64, 24, 3, 64)
    button(page, "Train at this p").send_keys(ENTER)  # before the page has followed the dials
    shows(page, f"predicted share {resonance.show(place, 1.3 * place.f).numbers['predicted']:.2f}")
    until(lambda: page.find_elements("css selector", "progress[aria-label=training]"), "progress")
    trial = resonance.Trial(place, 1.3 * place.f, seed=0).train(lambda step, loss: None)
    shows(page, f"learned {trial.shares[-1]:.2f}")
    press(page, "features n", END)
    shows(page, "f = s / n = 0.0059")
    button(page, "Train at this p").send_keys(ENTER)
    until(lambda: page.find_elements("css selector", "progress[aria-label=training]"), "progress")
    button(page, "Stop").send_keys(ENTER)
    shows(page, "Stopped at step")
    readable(page)


def test_a_world_of_your_own(page, address):
    page.get(f"{address}/own-world/")
    shows(page, "sae-recovery verify --method ba --steps 2000")
    number(page, "steps", "300")
    shows(page, "sae-recovery verify --method ba --steps 300")
    button(page, "Train").send_keys(ENTER)
    until(lambda: re.search(r"\d+ of 128 features recovered", written(page)), "the verdict")
    assert page.execute_script(IMAGE)
    number(page, "active s", "64")
    number(page, "features n", "32")
    shows(page, "Not possible: s = 64 exceeds the number of features n = 32")
    readable(page)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_the_server_ends_at_once_in_mid_training_and_leaves_nothing(driver, number, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with serving() as (server, at):
        driver.get(f"{at}/own-world/")
        shows(driver, "sae-recovery verify --method ba --steps 2000")
        button(driver, "Train").send_keys(ENTER)
        until(lambda: driver.find_elements("css selector", "progress[aria-label=training]"), "progress")
        assert list(tmp_path.glob("sae-recovery-*"))
        server.send_signal(number)
        told = server.communicate(timeout=30)
        assert server.returncode == 0
        assert "Traceback" not in told[0] + told[1]
        assert not list(tmp_path.glob("sae-recovery-*"))
    driver.get("about:blank")


def button(page, label):
    script = """
    for (const host of document.querySelectorAll('marimo-button')) {
      const button = host.shadowRoot && host.shadowRoot.querySelector('button');
      if (button && button.textContent.trim() === arguments[0]) return button;
    }
    return null"""
    return until(lambda: page.execute_script(script, label), f"button {label}")


def number(page, label, value):
    script = """
    for (const host of document.querySelectorAll('marimo-number')) {
      const root = host.shadowRoot;
      if (root && root.textContent.includes(arguments[0])) return root.querySelector('input');
    }
    return null"""
    field = until(lambda: page.execute_script(script, label), f"number {label}")
    field.send_keys("\ue009a\ue000", value, "\ue007")  # select all, type, enter
