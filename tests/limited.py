"""Run the program with a limit on the size of files, as on a full disk: LIMIT ARGUMENTS..."""

from __future__ import annotations

import resource
import signal
import sys

from gradexp.cli import main

limit = int(sys.argv.pop(1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
