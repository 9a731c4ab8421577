"""Shared by all tests: shapes in annotations are enforced, one thread, no display, one browser."""

import importlib.util
import os
import shutil

os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

# Modules whose functions are compiled by numba stay out: the hook wraps every function.
_HOOK = install_import_hook(
    ["simulator.world", "simulator.dictionaries", "simulator.frequencies", "theory"], "typecheck.check"
)

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# The same examples on every run: a failure is one that can be repeated.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> np.random.Generator:
    """Fixed randomness for tests that need some data."""
    return np.random.default_rng(20250614)


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """Headless Chromium; skipped where it is missing, a failure with SAE_RECOVERY_BROWSER=1."""
    chromium, chromedriver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    needed = {"chromium": chromium, "chromedriver": chromedriver, "selenium": importlib.util.find_spec("selenium")}
    missing = [name for name, found in needed.items() if not found]
    if missing:
        reason = f"the page is not tested in a browser: no {', no '.join(missing)}"
        if os.environ.get("SAE_RECOVERY_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    profile = tmp_path_factory.mktemp("profile")
    for switch in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(params=[(1280, 900), (768, 1000)], ids=["wide", "narrow"])
def window(request, driver):
    """The browser at a desk and on a narrow screen, with an empty page and an empty log."""
    width, height = request.param
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get("about:blank")
    driver.get_log("browser")  # what pages of other tests have left there
    return driver
