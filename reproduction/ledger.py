"""What has been drawn from what, so that a second run draws only what is missing or out of date."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from utils.files import sha256_file, sha256_text, write_json


class Ledger:
    """A file that says for each step which inputs it had and which files it wrote.

    Args:
        root: Output folder; everything is named relative to it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / "reproduce" / "ledger.json"
        self._entries: dict[str, dict[str, object]] = {}
        try:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(entries, dict):
            self._entries = {step: entry for step, entry in entries.items() if isinstance(entry, dict)}

    def draw(
        self, step: str, sources: Iterable[Path], settings: Mapping[str, object], make: Callable[[], Iterable[Path]]
    ) -> bool:
        """Call `make` unless the files of an earlier call are there and come from the same sources and settings.

        Args:
            step: Name of the step.
            sources: Files it is drawn from.
            settings: Anything else the result depends on.
            make: Draws; returns the files written.

        Returns:
            Whether it was called.
        """
        origin = sha256_text(
            [json.dumps(settings, sort_keys=True), *(f"{self._name(path)}\0{sha256_file(path)}" for path in sources)]
        )
        entry = self._entries.get(step, {})
        outputs = entry.get("outputs")
        if (
            entry.get("origin") == origin
            and isinstance(outputs, list)
            and all((self._root / str(name)).is_file() for name in outputs)
        ):
            return False
        written = sorted(self._name(path) for path in make())
        self._entries[step] = {"origin": origin, "outputs": written}
        write_json(self._path, self._entries)
        return True

    def _name(self, path: Path) -> str:
        resolved, root = path.resolve(), self._root.resolve()
        return resolved.relative_to(root).as_posix() if resolved.is_relative_to(root) else resolved.as_posix()
