"""The command line: parses, calls, prints, nothing else.

Nothing heavy is imported here, nor by any verb before it runs: ``--help`` answers at once.
"""

import sys
import time
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status.

    0 done, 1 a check failed, 2 bad input, 3 a bug, 130 interrupted. Every failure is one line on
    stderr.

    Args:
        argv: Arguments without the program's name; by default those of the process.
    """
    begun = time.monotonic()
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        from prunetune.cli._app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(
            f"error: the command line needs {error.name}, which is not installed; "
            "run: pip install 'prunetune[search]'",
            file=sys.stderr,
        )
        return 2
    return run(args, begun)
