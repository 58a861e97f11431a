"""`vlad serve` as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager


@contextmanager
def serving(folder, *flags, **environment):
    """(address, process); it is told to end, and killed where it does not."""
    command = [sys.executable, "-m", "vlad.cli", "serve", "--port", "0", "--detectors", str(folder), *flags]
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with tempfile.TemporaryFile("w+") as log:  # no pipe: a full one that nobody reads would stop the server
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=given)
        try:
            line = process.stdout.readline()
            log.seek(0)
            found = re.match(r"http://\S+", line)
            assert found, f"it did not start: {line}{log.read()}"
            yield found[0], process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
