"""Command explore: all pages under one address, in the browser."""

import contextlib
import io
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from figures.explorer.background import stop_all
from figures.run_options import Explore
from simulator import RequestError

HOST = "127.0.0.1"
"""This machine only: a page runs code."""
FIRST = "model"


def application():
    """The ASGI application: every page at its own path, the root leading to the first.

    Raises:
        RequestError: marimo is not installed.
    """
    try:
        import marimo
    except ImportError as error:
        raise RequestError("explore needs marimo; pip install 'sae-recovery[explore]'") from error
    from figures.explorer.layout import PAGES

    folder = Path(__file__).parent / "pages"
    server = marimo.create_asgi_app(include_code=False, quiet=True)
    for name in PAGES:
        server = server.with_app(path=f"/{name}", root=str(folder / f"{name.replace('-', '_')}.py"))
    pages = server.build()

    async def lead(scope, receive, send) -> None:
        """The root shows the first page."""
        if scope["type"] == "http" and scope["path"] in ("", "/"):
            await send(
                {"type": "http.response.start", "status": 307, "headers": [(b"location", f"/{FIRST}/".encode())]}
            )
            await send({"type": "http.response.body", "body": b""})
        else:
            await pages(scope, receive, send)

    return lead


def explore(options: Explore, tell: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        options: of the command.
        tell: called with the address.

    Raises:
        RequestError: marimo is not installed, or the port is taken.
    """
    app = application()
    import uvicorn

    listener = _listener(options.port)
    address = f"http://{HOST}:{listener.getsockname()[1]}/"
    tell(f"explorer at {address} (Ctrl-C ends it)")
    _warm_up()
    if options.browser:
        threading.Timer(0.5, webbrowser.open, (address,)).start()
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    signal.signal(signal.SIGTERM, _leave)  # what uvicorn raises again after its own shutdown
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    stop_all(5.0)
    sys.stdout.flush()
    sys.stderr.flush()
    # The kernels of marimo's pages wait for input in threads that the interpreter would join for ever.
    os._exit(0)


def _leave(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise RequestError(f"port {port} cannot be used ({error}); take another, or 0 for any free one") from error
    listener.listen(128)
    return listener


def _warm_up() -> None:
    """Compile and import what the first move of a dial would wait for, while the browser starts."""

    def work() -> None:
        from figures.explorer.scenes import adaptation, identifiability, model, resonance

        for figure in model.show(6, 2, 2).figures:
            figure.savefig(io.BytesIO(), format="png")
        identifiability.show(4, 0.3, 0.1)
        adaptation.show(0.03, 0.9, 0.0)
        resonance.band(resonance.Place())

    threading.Thread(target=work, daemon=True).start()
