"""One process: the API below /v1 and the chat page at /, before one engine.

`create_app` joins the parts; `serve` is the command `llavamed serve MODEL`. What can be wrong is checked before the
model is loaded, because that takes long: the extra packages, an open address without a key, a port in use.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llavamed.engine.request import Engine
from llavamed.errors import InputError
from llavamed.serve.desk import MAX_WAITING, Desk

if TYPE_CHECKING:
    from fastapi import FastAPI

NOT_INSTALLED = "the server's packages are not installed ({}); run: pip install 'llavamed[serve]'"
_FINISH_SECONDS = 10  # what answers in the making get when the server is told to stop


def create_app(
    engine: Engine,
    *,
    api_key: str | None = None,
    page: bool = True,
    examples: Sequence[tuple[Path, str]] = (),
    max_waiting: int = MAX_WAITING,
) -> FastAPI:
    """The ASGI application. `examples` are (image file, question) pairs that the page offers.

    With an `api_key`, /v1 wants it as a Bearer token and the page asks for it as a password. Raises InputError if the
    extra `[serve]` is not installed.
    """
    try:
        from fastapi import FastAPI

        from llavamed.serve import api, gate
    except ModuleNotFoundError as error:
        raise InputError(NOT_INSTALLED.format(error.name)) from None

    desk = Desk(engine, max_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    # The framework's own documentation pages load scripts from a public host, so they are off.
    app = FastAPI(title="llavamed", docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json", lifespan=lifespan)
    app.state.desk = desk
    app.add_middleware(gate.Gate, api_key=api_key)
    api.add_error_handlers(app)
    app.include_router(api.routes(desk))
    if page:
        try:
            from llavamed.serve.page import mount
        except ModuleNotFoundError as error:
            raise InputError(NOT_INSTALLED.format(error.name)) from None
        mount(app, desk, api_key=api_key, examples=examples)
    return app


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    *,
    page: bool = True,
    examples: Sequence[tuple[Path, str]] = (),
) -> None:
    """Serve `model` (a folder or an endpoint URL) until Ctrl-C or SIGTERM; answers in the making get 10 s to finish.

    Raises InputError if the packages are absent, the address is open to others without a key, or the port is in use.
    """
    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise InputError(NOT_INSTALLED.format(error.name)) from None
    from llavamed.engine import connect

    listener = listen(host, port, api_key)
    with contextlib.closing(listener), contextlib.closing(connect(model)) as engine:
        app = create_app(engine, api_key=api_key, page=page, examples=examples)
        listener.listen()  # from the line that names the address on, a client that connects is served
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        print(f"{engine.name}: for research; not for clinical use", file=sys.stderr)
        if page:
            print(f"chat page  {url}/")
        print(f"API        {url}/v1   (OpenAI-compatible; model {engine.name!r})", flush=True)

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                # Open tabs of the page hold connections that never end; only an answer is worth waiting for.
                config.timeout_graceful_shutdown = _FINISH_SECONDS if app.state.desk.is_busy else 1
                await super().shutdown(sockets)

        config = uvicorn.Config(app, log_level="critical")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # else it would skip what is closed on the way out
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises each signal again after an orderly end
            Server(config).run(sockets=[listener])


def listen(host: str, port: int, api_key: str | None) -> socket.socket:
    """A socket bound to host and port (0: any free one). InputError for an open address without a key, a bad host, a
    port in use or a forbidden one."""
    if api_key is not None and not api_key.strip():
        raise InputError("the API key is empty; give one, or leave the option out")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, OverflowError) as error:
        raise InputError(f"{host}:{port}: not an address to serve on ({error})") from None
    if api_key is None and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise InputError(
            f"{host} can be reached from other machines, so an API key is needed: give --api-key, or serve on 127.0.0.1"
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InputError(f"{host}:{port}: cannot serve there ({error.strerror}); try another --port") from None
    return listener
