"""Processes of this interpreter that start in a blink: forks that have torch loaded already.

A fresh interpreter needs seconds to import torch, and tests of sweeps start many. What such a
process does is the same; that fresh ones do it too is tested where the program is run as a whole.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

_Popen = subprocess.Popen


class ForkedPopen(_Popen):  # type: ignore[type-arg]
    """As `Popen`, but `python -m MODULE ...` and `python -c CODE ...` run in a fork."""

    def __init__(self, args: Any, *more: Any, **options: Any) -> None:
        if isinstance(args, list) and args[0] == sys.executable:
            kept = options.get("pass_fds", ())
            options["preexec_fn"] = partial(_become, args[1:], options.get("env"), kept)
        super().__init__(args, *more, **options)


def fork_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no fresh interpreters from here on, in processes that are started neither.

    Where there is a GPU nothing changes: its driver does not survive a fork.
    """
    if not torch.cuda.is_available():
        importlib.import_module("torch._dynamo")  # training does so, and it takes as long as torch
        monkeypatch.setattr(subprocess, "Popen", ForkedPopen)


def _become(arguments: Sequence[str], env: dict[str, str] | None, kept: Collection[int]) -> None:
    """In the child, between fork and exec: be that program, and end."""
    code = 1
    try:
        _close_all_but({0, 1, 2, *kept})
        _start_afresh(arguments, env)
        code = _carry_out(arguments)
    except BaseException:  # noqa: BLE001  whatever it is ends this process, not the test
        traceback.print_exc()
    finally:
        _flush(sys.stdout, sys.stderr)
        os._exit(code)


def _close_all_but(kept: set[int]) -> None:
    """Among what is closed is what the parent waits for: the end of the start."""
    for descriptor in map(int, [one.name for one in Path("/proc/self/fd").iterdir()]):
        if descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError:  # the listing's own
                continue


def _start_afresh(arguments: Sequence[str], env: dict[str, str] | None) -> None:
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # as an interpreter does when it starts
        signal.signal(ignored, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    while arguments and arguments[0] == "-W":
        arguments = arguments[2:]
    sys.argv = list(arguments[1:])


def _carry_out(arguments: Sequence[str]) -> int:
    while arguments[0] == "-W":
        arguments = arguments[2:]
    kind, program, *_ = arguments
    try:
        if kind == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # noqa: T201
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _flush(*streams: TextIO) -> None:
    for stream in streams:
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
