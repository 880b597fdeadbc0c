"""`--config FILE`: arguments of a command out of a YAML file."""

import argparse
from pathlib import Path
from typing import Any

LARGEST = 2**16  # bytes; PyYAML reads some 10 kB a second


def settings_file(arguments: list[str]) -> Path | None:
    """The file that `arguments` name."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", type=Path)
    try:
        return first.parse_known_args(arguments)[0].config
    except argparse.ArgumentError:
        return None  # the command's own parser will say why


def read_settings(file: Path) -> dict[str, Any]:
    """Name of an argument, with `_` for `-` -> its value.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    import yaml

    from hf_moe_lmc.checkpoints.small_files import read_small_file
    from hf_moe_lmc.errors import BadInputError

    try:
        found = yaml.safe_load(read_small_file(file, LARGEST).decode("utf-8"))
    except BadInputError as error:
        raise ValueError(str(error)) from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no `argument: value` lines")
    return {str(name).replace("-", "_"): value for name, value in found.items()}


def take_settings(command: argparse.ArgumentParser, actions: list[argparse.Action], file: Path) -> None:
    """Make what the file says the defaults of `command`, whose arguments are `actions`.

    Raises:
        ValueError: the file names an argument that does not exist, or a value that it cannot have.
    """
    known = {action.dest: action for action in actions if action.dest not in ("help", "config")}
    for name, value in read_settings(file).items():
        if name not in known:
            raise ValueError(f"{file}: there is no argument {name}; known are {', '.join(sorted(known))}")
        action = known[name]
        action.default = _converted(command, action, value, file)
        action.required = False


def _converted(command: argparse.ArgumentParser, action: argparse.Action, value: Any, file: Path) -> Any:
    """`value` as the parser would have made it of words on the command line."""
    if action.nargs == 0:
        if isinstance(value, bool):
            return value
        raise ValueError(f"{file}: {action.dest} is {value!r}; say true or false")
    several = action.nargs in ("+", "*")
    words = value if several and isinstance(value, list) else [value]
    if not all(isinstance(word, str | int | float) and not isinstance(word, bool) for word in words) or not words:
        raise ValueError(
            f"{file}: {action.dest} is {value!r}; give {'one value or a list' if several else 'one value'}"
        )
    if any("\0" in str(word) for word in words):
        raise ValueError(f"{file}: {action.dest} holds a NUL, which no argument can")
    try:
        return command._get_values(action, [str(word) for word in words])
    except argparse.ArgumentError as error:
        raise ValueError(f"{file}: {error}") from None
