"""The command line: joins the sub-commands of the packages; imports nothing heavy until a command runs."""

import argparse
import re
import sys
from importlib import import_module, metadata
from typing import Any, NoReturn

from common.errors import FedwardError, UsageError, nearest

COMMANDS = (
    "simulations.cli",
    "simulations.compare_cli",
    "simulations.privacy_cli",
    "simulations.data_cli",
    "simulations.settings_cli",
    "simulations.templates_cli",
    "server.cli",
    "client.cli",
)
"""Modules whose ``add_parsers`` adds sub-commands."""
PACKAGES = ("client", "common", "server", "simulations")
# A line of a distribution's `top_level.txt`, which holds the bare names, or of its `RECORD`, which has a line a file.
SHIPPED = re.compile(rf"^({'|'.join(PACKAGES)})(?:(?:/[^,\n]*)?\.py,.*)?$", re.MULTILINE)


def main(words: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 failed, 2 used wrongly, 3 refused by policy, 4 unreachable."""
    try:
        args = parser().parse_args(words)
        check_installation()
        return int(args.run(args))
    except FedwardError as error:
        print(f"fedward: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fedward: stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong with a command line as every other error is said: in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`."""
        raise UsageError(f"{message}; '{self.prog} --help' shows what it takes")

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """Parse, and refuse what this command does not know: of a sub-command, the one above could not say what it takes."""
        known, rest = super().parse_known_args(*given, **named)
        options = [word for word in rest if word.startswith("-")]
        if options:
            self.error(f"unknown option {options[0]}; {nearest(options[0], self._option_string_actions)}")
        if rest:
            self.error(f"one argument too many: {rest[0]}")
        return known, rest


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = Parser(
        prog="fedward",
        description="Federated learning for hospitals.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"fedward {metadata.version('fedward')}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        import_module(name).add_parsers(subparsers)
    return top


def check_installation() -> None:
    """Refuse to start beside another distribution that ships a package of the same name: one of the two would be taken for the other.

    Raises
    ------
    FedwardError
        Naming the other distribution.
    """
    # `metadata.packages_distributions` takes a quarter of a second for the same: it parses all metadata and every path.
    for distribution in metadata.distributions():
        listed = distribution.read_text("top_level.txt") or distribution.read_text("RECORD") or ""
        shipped = SHIPPED.search(listed)
        if shipped and (name := distribution.metadata["Name"]) != "fedward":
            raise FedwardError(
                f"the installed distribution {name!r} also ships a package {shipped[1]!r}; install fedward in an environment of its own"
            )


if __name__ == "__main__":
    sys.exit(main())
