"""``xrlhf serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from xrlhf.cli.options import DeviceName, Dtype, MaxLength, TokenBudget
from xrlhf.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from xrlhf.serving.settings import ServerSettings

__all__ = ["serve"]


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A reward model: a directory or a hub name.")],
    host: Annotated[str, typer.Option(help="Interface to listen at; 0.0.0.0 for all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for any that is free.")] = 8000,
    device: DeviceName = None,
    dtype: Dtype = "float32",
    max_length: MaxLength = None,
    token_budget: TokenBudget = 16384,
    name: Annotated[Optional[str], typer.Option(help="What answers call the model.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the port, each with its own model.")] = 1,
    max_queue: Annotated[int, typer.Option(help="Conversations in the server at once; more are refused.")] = 4096,
    max_inputs: Annotated[
        Optional[int], typer.Option(help="Conversations of one request; 1024, or --max-queue where that is less.")
    ] = None,
    max_body: Annotated[int, typer.Option(help="Bytes of one request's body.")] = 4_000_000,
    overload_status: Annotated[
        int, typer.Option(help="HTTP status when full: 429, or 503 for clients that give up at any 4xx.")
    ] = 429,
    drain_seconds: Annotated[
        float, typer.Option(help="Seconds that running requests may take when the server is told to end.")
    ] = 30.0,
    api_key_env: Annotated[
        Optional[str], typer.Option(metavar="NAME", help="Environment variable that holds the key clients must send.")
    ] = None,
    api_key_file: Annotated[
        Optional[Path], typer.Option(metavar="FILE", help="File whose only line is the key clients must send.")
    ] = None,
) -> None:
    """Serve a reward model over HTTP.

    Speaks its own protocol at /v1/rewards, and those of OpenRLHF, vLLM, SGLang, text-embeddings-inference and
    LLaMA-Factory. Prints a line when it is ready. SIGTERM or Ctrl-C lets running requests finish; a second one ends it.

    Examples:

      xrlhf serve reward_hf

      xrlhf serve reward_hf --host 0.0.0.0 --port 8100 --api-key-env REWARD_KEY
    """
    from xrlhf.serving.extra import check_can_serve
    from xrlhf.serving.settings import Limits, ModelSettings, ServerSettings

    check_can_serve()
    settings = ServerSettings(
        model=ModelSettings(
            path=model, device=device, dtype=dtype, max_length=max_length, token_budget=token_budget, name=name
        ),
        host=host,
        port=port,
        api_key=_read_key(api_key_env, api_key_file),
        workers=workers,
        limits=Limits(
            max_queue=max_queue,
            max_inputs=min(1024, max_queue) if max_inputs is None else max_inputs,
            max_body=max_body,
            overload_status=overload_status,  # type: ignore[arg-type]
            drain_seconds=drain_seconds,
        ),
    )
    from xrlhf.serving.listening import is_loopback, listen

    listening = listen(host, port)
    if settings.api_key is None and not is_loopback(listening):
        typer.echo(
            f"warning: whoever reaches {host} can ask this server: --api-key-env or --api-key-file sets a key", err=True
        )

    def ready() -> None:
        typer.echo(_ready_lines(settings, listening))

    if workers > 1:
        from xrlhf.serving.workers import serve_with_workers

        serve_with_workers(settings, listening, ready)
    else:
        from xrlhf.serving.server import serve as serve_here

        serve_here(settings, listening, ready)
    typer.echo("stopped")


def _ready_lines(settings: ServerSettings, listening: socket.socket) -> str:
    from xrlhf.serving.listening import url_of

    url = url_of(listening)
    key = "" if settings.api_key is None else " -H 'Authorization: Bearer KEY'"
    body = '{"inputs": [{"prompt": "What is 2 + 2?", "responses": ["4", "5"]}]}'
    return (
        f"ready: {settings.model.served_name} at {url}\n"
        f"  curl{key} -H 'Content-Type: application/json' {url}/v1/rewards -d '{body}'"
    )


def _read_key(variable: str | None, file: Path | None) -> str | None:
    """The key from where the command line says it is.

    Raises:
        ConfigError: It is not there, or nobody could send it.
    """
    if variable is not None and file is not None:
        raise ConfigError("give --api-key-env or --api-key-file, not both")
    if variable is not None:
        if variable not in os.environ:
            raise ConfigError(f"--api-key-env {variable}: there is no such environment variable")
        return _checked_key(os.environ[variable], f"--api-key-env {variable}")
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {file} cannot be read: {error}") from error
        return _checked_key(text, f"--api-key-file {file}")
    return None


def _checked_key(text: str, where: str) -> str:
    key = text.strip()
    if not key:
        raise ConfigError(f"{where}: the key is empty")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{where}: a key is one word of ASCII characters, since it travels in a header")
    return key
