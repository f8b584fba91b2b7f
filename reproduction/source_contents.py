"""What the report shows of source attribution, if it was tested into the same folder: read from the files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.summary import ScoreSummary
from source_attribution.confusion import ClassRow
from source_attribution.source_evaluation import UNKNOWN
from utils.tables import read_rows

_SCRIPT = "src/attribute_source.py att test"


@dataclass(frozen=True)
class SourceContents:
    """A test of a primary and its secondaries.

    Attributes:
        name: Of the primary.
        classes: Of the attribution; the last one is all of them.
        open_set: Empty without images of unknown generators.
        confusion: The matrix.
        evidence: First page of loose images, if there are any.
    """

    name: str
    classes: Sequence[ClassRow]
    open_set: Sequence[ScoreSummary]
    confusion: Path
    evidence: Path | None

    @property
    def unknown(self) -> ClassRow | None:
        """Fakes of generators without a secondary."""
        return next((row for row in self.classes if row.name == UNKNOWN), None)

    @property
    def chance(self) -> float:
        """Accuracy of guessing the largest class."""
        return max(row.images for row in self.classes[:-1]) / self.classes[-1].images


def read_sources(root: Path) -> list[SourceContents]:
    """All tests of several sources below an output folder.

    Raises:
        UserError: A table is damaged.
    """
    contents = []
    for table in sorted(root.glob("test_results/*/*/ATT_classes.csv")):
        folder = table.parent
        opened, page = folder / "open_set.csv", root / "attributed" / "sheet_001.png"
        contents.append(
            SourceContents(
                folder.name,
                read_rows(table, ClassRow, made_by=_SCRIPT),
                read_rows(opened, ScoreSummary, made_by=_SCRIPT) if opened.is_file() else [],
                folder / "ATT.png",
                page if page.is_file() else None,
            )
        )
    return contents
