"""Runs the body of a verb: whatever it raises becomes a message and an exit code."""

import sys
from importlib import import_module
from typing import Any

from dsv3.commands import console, signals, streams

BROKEN_PIPE = 141
"""What a shell reports for a reader that went away early: 128 + SIGPIPE."""
INTERRUPTED = 130
"""The same for Ctrl-C, outside of training: nothing is half done, nothing needed saving."""
REQUEUE = 85
"""For the other signals: a queue may ask again."""


def call(module: str, verb: str, *arguments: Any, **options: Any) -> int:
    """Call function `verb` of `dsv3.commands.<module>`; returns an exit code, raises nothing."""
    code = 0
    try:
        code = _body(module, verb, *arguments, **options)
        sys.stdout.flush()
    except BrokenPipeError:
        streams.silence(sys.stdout)
        return code or BROKEN_PIPE
    except OSError as error:
        streams.silence(sys.stdout)
        return code or console.report(error)
    return code


def _body(module: str, verb: str, *arguments: Any, **options: Any) -> int:
    try:
        console.refuse_lost_directory()
        body = getattr(import_module(f"dsv3.commands.{module}"), verb)
        return int(body(*arguments, **options))
    except BrokenPipeError:
        raise
    except signals.StoppedError as stopped:
        console.note(f"{stopped}: nothing is half done; the same command starts again")
        return REQUEUE
    except KeyboardInterrupt:
        console.note("interrupted")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last line of defence: messages, no tracebacks
        return console.report(error, as_json=options.get("as_json", False))
