"""Settings as frozen dataclasses, and the command line that is derived from them.

A field made with `flag` is a flag of the same name: its help, default and choices are said once, and the command line,
a call from Python and a `--config` file are the same thing. Nothing here imports more than the standard library before
it is needed, so that `--help` is quick.
"""

import argparse
import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils import files
from utils.errors import UserError

_TRUE = frozenset({"true", "1", "yes"})
_FALSE = frozenset({"false", "0", "no"})


def flag(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    recorded: bool = True,
    positional: bool = False,
    short: str | None = None,
) -> Any:
    """A field of a settings dataclass that is a flag of the command line, too.

    The annotation says what the flag takes: `bool` is given alone or with True or False, `tuple[T, ...]` takes several
    words, `T | None` may be absent, `Literal` names the choices.

    Args:
        default: Immutable.
        help: For `--help`, which adds the default.
        parse: From a word to a value; raises ValueError with a sentence.
        metavar: Stands for the value in the help.
        recorded: Whether the value belongs to what a result was made with; `--resume` does not.
        positional: Given by its place on the command line, and only there.
        short: A letter that stands for the name, after one dash.
    """
    metadata = {"help": help, "parse": parse, "metavar": metavar, "recorded": recorded}
    metadata |= {"positional": positional, "short": short}
    return dataclasses.field(default=default, metadata=metadata)


def boolean(text: str) -> bool:
    """True for true, 1, yes and False for false, 0, no, in any case."""
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"{text!r} is neither True (1, yes) nor False (0, no)")
    return word in _TRUE


def count(text: str) -> int:
    """A whole number of at least 0."""
    if not re.fullmatch(r"\d+", text.strip(), re.ASCII):
        raise ValueError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"0*[1-9]\d*", text.strip(), re.ASCII):
        raise ValueError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive_number(text: str) -> float:
    """A finite number above 0."""
    return _number(text, lambda value: 0.0 < value < float("inf"), "a positive number")


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, lambda value: 0.0 <= value <= 1.0, "a number from 0 to 1")


def rate(text: str) -> float:
    """A number between 0 and 1."""
    return _number(text, lambda value: 0.0 < value < 1.0, "a number between 0 and 1")


def plain_name(text: str) -> str:
    """A word that can be part of a file name."""
    if not files.is_plain_name(text):
        raise ValueError(f"{text!r} is not a plain name: leave out '/' and control characters")
    return text


def number_or_all(text: str) -> int | str:
    """A whole number of at least 1, or the word "all"."""
    return "all" if text.strip().lower() == "all" else positive(text)


def _number(text: str, fits: Callable[[float], bool], meaning: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not fits(value):
        raise ValueError(f"{text!r} is not {meaning}")
    return value


def read_settings(description: str, example: str, *groups: Any, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Settings from the command line, one instance for each group, in the order given.

    Args:
        description: For `--help`.
        example: A command to copy, shown at the end of the help.
        groups: Dataclasses, or instances whose values are the defaults of this script.
        argv: Words of the command line; by default those of the process.
    """
    parser = _Parser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        # A flag that several groups have is one flag, as the last of them words it; all get its value.
        conflict_handler="resolve",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="flags from a YAML file (topk: 114), or those in the record (.json) of a result; the command line goes "
        "before them",
    )
    known = {name: entry for group in groups for name, entry in _add_flags(parser, group).items()}
    given = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(given)
    if args.config is not None:
        words = [word for name, value in _read_config(args.config, known).items() for word in _words(name, value)]
        try:
            args = parser.parse_args([*words, *given])
        except UserError as error:
            raise UserError(f"{args.config}: {error}") from error
    return tuple(_instance(group, args) for group in groups)


def plain(*settings: Any) -> dict[str, Any]:
    """What a `--config` file would say of settings: values by flag, as JSON has them; None and `--resume` left out."""
    return {
        field.name: files.plain(value)
        for group in settings
        for field in dataclasses.fields(group)
        if field.metadata.get("recorded") and (value := getattr(group, field.name)) is not None
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other error a user can mend."""
        raise UserError(f"{message} (see {self.prog} --help)")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" says nothing; what happens then is in the help text itself.
        if action.default in (None, ()):
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        # The shortest usage: [True|False] for booleans, NAME ... for several words.
        if action.nargs == "+":
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What an annotation says: the type of a word, whether there may be several, and which words are allowed."""

    word: Any
    several: bool = False
    choices: tuple[str, ...] | None = None


def _kind_of(annotation: Any) -> _Kind:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        (inner,) = [part for part in parts if part is not type(None)][:1]
        return _kind_of(inner)
    if origin is tuple:
        return dataclasses.replace(_kind_of(parts[0]), several=True)
    if origin is typing.Literal:
        return _Kind(str, choices=tuple(map(str, parts)))
    return _Kind(annotation)


def _add_flags(parser: argparse.ArgumentParser, settings: Any) -> dict[str, _Kind]:
    """Add a group of flags; what each takes, by name."""
    cls = settings if isinstance(settings, type) else type(settings)
    hints = typing.get_type_hints(cls)
    group = parser.add_argument_group((cls.__doc__ or cls.__name__).splitlines()[0].rstrip("."))
    known = {}
    for field in dataclasses.fields(cls):
        if "help" not in field.metadata:
            continue
        kind, metadata = _kind_of(hints[field.name]), field.metadata
        default = field.default if isinstance(settings, type) else getattr(settings, field.name)
        options: dict[str, Any] = {"default": default, "help": metadata["help"]}
        parse = metadata["parse"] or (boolean if kind.word is bool else kind.word)
        options["type"] = _for_argparse(parse)
        if kind.word is bool and not kind.several:
            options |= {"nargs": "?", "const": True, "metavar": metadata["metavar"] or "True|False"}
        else:
            options["choices"] = kind.choices
            options["metavar"] = metadata["metavar"]
            if options["choices"] is None and metadata["metavar"] is None:
                options["metavar"] = {int: "N", Path: "FILE"}.get(kind.word, "X")
        if kind.several:
            options["nargs"] = "+"
        if metadata["positional"]:
            group.add_argument(field.name, **options)
            continue
        group.add_argument(*([f"-{metadata['short']}"] if metadata["short"] else []), f"--{field.name}", **options)
        known[field.name] = kind
    return known


def _for_argparse(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    convert.__name__ = getattr(parse, "__name__", "value")
    if parse in (int, float):
        # argparse words its own message from the type's name.
        return parse
    return convert


def _instance(settings: Any, args: argparse.Namespace) -> Any:
    cls = settings if isinstance(settings, type) else type(settings)
    values = {}
    for field in dataclasses.fields(cls):
        if hasattr(args, field.name):
            value = getattr(args, field.name)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _read_config(path: Path, known: Mapping[str, _Kind]) -> dict[str, Any]:
    """Values by flag of a YAML file, or of the record of a result.

    Raises:
        UserError: As `read_mapping`, or a flag that the script does not have.
    """
    content = read_mapping(path, "--config", "write lines such as topk: 114")
    if isinstance(content.get("settings"), dict):
        # The record of a result may name flags of the other steps of its run.
        return {name: value for name, value in content["settings"].items() if name in known}
    unknown = sorted(str(name) for name in content if name not in known)
    if unknown:
        raise UserError(f"--config {path}: no flag is called {', '.join(unknown)}: choose among {', '.join(known)}")
    return content


def read_mapping(path: Path, flag: str, mend: str) -> dict[str, Any]:
    """A mapping in YAML or JSON; `flag` names the file, and `mend` says what it should be, for messages.

    Raises:
        UserError: Unreadable, or not a mapping.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"cannot read {flag} {path} ({error.strerror}): check the path") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{flag} {path} is not YAML ({str(error).splitlines()[0]}): {mend}") from error
    if not isinstance(content, dict):
        raise UserError(f"{flag} {path} is not a list of flags: {mend}")
    return content


def _words(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    # A negative number or a name with a dash would be read as a flag; one word is joined to its flag.
    words = [str(word) for word in values]
    return [f"--{name}={words[0]}"] if len(words) == 1 else [f"--{name}", *words] if words else []
