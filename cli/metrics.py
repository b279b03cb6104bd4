"""`millstream metrics`: the metrics of a store as Prometheus reads them, once or for scraping.

What they are is the library's (`Store.metrics`, `millstream.prometheus`).
"""

from __future__ import annotations

import select
import sys
from typing import Any

import click

from millstream import missing_extra
from millstream.processor import list_pipelines
from millstream.prometheus import register

from .command import Command, examples
from .output import print_document
from .settings import settings
from .signals import StopSignals


@click.command(
    cls=Command,
    short_help="Print metrics for Prometheus, or serve them.",
    epilog=examples(
        "millstream metrics                             print them once",
        "millstream metrics --listen 127.0.0.1:9308     serve them until stopped",
        "millstream metrics --output json               as JSON, needs no extra",
    ),
)
@click.option(
    "--listen",
    metavar="[HOST:]PORT",
    help="Serve them at http://HOST:PORT/metrics; HOST is 127.0.0.1 if not given.",
)
def metrics(listen: str | None) -> int:
    """Print log ends, lag of groups, jobs of queues, sizes and more, as of now.

    Lag and log ends have the names of kafka_exporter, so that dashboards and alerts for it work.
    Needs the extra `metrics`: pip install 'millstream[metrics]'.

    With --listen they are served until Ctrl-C or SIGTERM, and read anew at every scrape. Anybody
    who reaches the port can read them.
    """
    current = settings()
    if listen is None and current.mode in {"json", "jsonl"}:
        with current.open(read_only=True) as store:
            plain = _plain(store.metrics())
        del plain["handle"]  # of a process that has done nothing
        print_document(plain, current.mode)
        return 0
    address = None if listen is None else _address(listen)
    try:
        import prometheus_client  # noqa: PLC0415 - an extra
    except ImportError:
        raise missing_extra("`millstream metrics`", "prometheus_client", "metrics") from None
    with StopSignals() as stop, current.open(read_only=True) as store:
        registry = prometheus_client.CollectorRegistry()
        register(store, registry, pipelines=list_pipelines)
        if address is None:
            sys.stdout.write(prometheus_client.generate_latest(registry).decode())
            sys.stdout.flush()
            return 0
        try:
            server, thread = prometheus_client.start_http_server(
                address[1], addr=address[0], registry=registry
            )
        except OSError as error:
            raise click.ClickException(f"cannot listen at {listen}: {error.strerror}") from None
        current.say(f"metrics at http://{address[0]}:{server.server_port}/metrics")
        select.select([stop.fileno()], [], [])
        server.shutdown()
        server.server_close()
        thread.join()
        return stop.exit_code


def _address(text: str) -> tuple[str, int]:
    """Host and port.

    >>> _address("9308"), _address("0.0.0.0:80"), _address("[::1]:80")
    (('127.0.0.1', 9308), ('0.0.0.0', 80), ('::1', 80))
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise click.UsageError(f"--listen: {text!r} is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _plain(value: object) -> Any:
    """Named tuples as objects of JSON."""
    if isinstance(value, tuple):
        if hasattr(value, "_asdict"):
            return {name: _plain(each) for name, each in value._asdict().items()}
        return [_plain(each) for each in value]
    return value
