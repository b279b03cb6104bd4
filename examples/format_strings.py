"""Format strings of `millstream consume -f`, each printed over the same three records.

`python format_strings.py` shows the format and what it prints; the same strings work in a shell.
"""

import os
import subprocess
import sys
import tempfile

import millstream

FORMATS = [
    r"%s\n",  # the value, which is what consume prints without -f
    r"%t [%p] at offset %o: key %k: %s\n",  # as kcat's manual does
    r"%k\t%S\t%T\n",  # key, length of the value, timestamp in UTC milliseconds
    r"%d{rfc3339} %d{strftime[%H:%M]} %s\n",
    r"%k{hex} %s{base64}\n",  # bytes that are not text
    r"%H headers: %h{%k is %v; }\n",
    r"%o{hex} 100%%\n",
]

with tempfile.TemporaryDirectory() as directory:
    with millstream.open(directory) as store:
        store.create_topic("orders")
        store.append("orders", b"tea", key=b"u1", timestamp_ms=1_700_000_000_000)
        store.append("orders", b"milk", timestamp_ms=1_700_000_060_000, headers=[("shop", b"7")])
        store.append("orders", None, key=b"u1", timestamp_ms=1_700_000_120_000)
    for text in FORMATS:
        print(f"-f '{text}'", flush=True)
        command = [sys.executable, "-m", "millstream", "consume", "orders", "-e", "-Z", "-f", text]
        environment = {**os.environ, "MILLSTREAM_DIR": directory}
        subprocess.run(command, check=True, env=environment)  # noqa: S603 - our own command
