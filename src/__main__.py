"""`tff SCRIPT ...`, or `python -m tff SCRIPT ...`: the scripts of this folder as subcommands of an installed copy."""

import runpy
import sys
from pathlib import Path

from utils.cli import run_script, say
from utils.errors import UserError

FOLDER = Path(__file__).resolve().parent
# About a working copy of the project, which an installed one is not.
_OF_THE_PROJECT = {"__main__", "check_setup", "demo", "inventory"}


def choose(words: list[str]) -> Path | None:
    """The script that the command line names, None where it asks what there is.

    Raises:
        UserError: There is none of that name.
    """
    scripts = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem not in _OF_THE_PROJECT}
    if not words or words[0] in ("-h", "--help"):
        say(
            "usage: tff SCRIPT ...   (tff SCRIPT --help for its flags)\n\n" + "\n".join(f"  {name}" for name in scripts)
        )
        return None
    if words[0] not in scripts:
        raise UserError(f"tff {words[0]}: no such script: choose among {', '.join(scripts)}")
    return scripts[words[0]]


def main() -> None:
    """Run the script that the first word names, as `python src/<script>.py` would."""

    def run() -> None:
        script = choose(sys.argv[1:])
        if script is not None:
            sys.argv = [str(script), *sys.argv[2:]]
            sys.path.insert(0, str(FOLDER))
            runpy.run_path(str(script), run_name="__main__")

    run_script(run)


if __name__ == "__main__":
    main()
