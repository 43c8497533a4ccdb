"""What every verb does with errors: one line on stderr and exit status 2, never a traceback for a user's mistake."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import typer

from fastalter.errors import FastalterError

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT."""


def run(app: typer.Typer, arguments: Sequence[str] | None = None, *, stopped: str = "nothing was written") -> int:
    """Run a verb and return its exit status: 0, 2 after a mistake (options included), 130 after Ctrl-C.

    stopped   what Ctrl-C leaves behind, in the verb's own words
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # deprecations inside dependencies; -W default brings them back
    try:
        status = app(args=arguments, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:
        # A wrong option: typer's base class for these has moved between versions, its method has not.
        usage = getattr(error, "format_message", None)
        if usage is None and not isinstance(error, FastalterError):
            raise
        print("error:", " ".join((usage() if usage else str(error)).split()), file=sys.stderr)
        return 2
    if status == INTERRUPTED:  # newer typers return it themselves
        print(f"stopped; {stopped}", file=sys.stderr)
    return status if isinstance(status, int) else 0
