"""p(fake) of images under several conditions: collected in a pass, kept as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluation.conditions import Condition
from images.sets import ImageSet
from passes.one_pass import PassBatch, PerImage
from passes.shared_forward import SharedForward, finite
from utils.errors import UserError
from utils.files import write_csv
from utils.tables import read_table


@dataclass(frozen=True, eq=False)
class Scores:
    """p(fake) of every image, a column for each condition.

    Attributes:
        paths: Names of the images below the data set folder.
        labels: (n,) 0 real, 1 fake, -1 unknown.
        columns: By condition (n,) float64, 0..1.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    columns: Mapping[str, np.ndarray]

    def write(self, path: Path) -> None:
        """Write as CSV with the columns path, label and the conditions."""
        rows = zip(self.paths, self.labels.tolist(), *(c.tolist() for c in self.columns.values()), strict=True)
        write_csv(path, ("path", "label", *self.columns), rows)


def read_scores(path: Path, *, made_by: str) -> Scores:
    """Read a table that `Scores.write` wrote; `made_by` is the command that makes it, for messages.

    Raises:
        UserError: Missing, unreadable or of another format.
    """
    header, lines = read_table(path, made_by=made_by)
    try:
        if header[:2] != ["path", "label"]:
            raise ValueError("not a table of scores")
        labels = np.array([int(line[1]) for line in lines], dtype=np.int64)
        values = np.array([[float(text) for text in line[2:]] for line in lines], dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("a score is not a number")
    except ValueError as error:
        raise UserError(f"{path} is damaged or not a table of scores ({error}): make it anew with {made_by}") from error
    values = values.reshape(len(lines), len(header) - 2)
    return Scores(
        tuple(line[0] for line in lines),
        labels,
        {name: values[:, column].copy() for column, name in enumerate(header[2:])},
    )


class ScoreCollector(PerImage):
    """Collects p(fake) of every image under several conditions; 8 bytes for each pair of the two.

    Args:
        forward: Forward passes of the detector, shared with other collectors.
        images: The images of the pass.
        conditions: Columns.
        published: Apply the sigmoid in float32, as the published code does: scores above 0.99999997 become 1 and tie.
    """

    def __init__(
        self, forward: SharedForward, images: ImageSet, conditions: Sequence[Condition], *, published: bool = False
    ) -> None:
        self._forward, self._images, self._published = forward, images, published
        self.conditions = tuple(conditions)
        for condition in self.conditions:
            condition.request(forward)
        super().__init__(len(images), (len(self.conditions),))

    def update(self, batch: PassBatch) -> None:
        """Add a batch.

        Raises:
            UserError: A score is not a number; names the image.
        """
        head = self._forward.detector.head
        columns = [
            head.probability(condition.output(self._forward, batch), single_precision=self._published)
            for condition in self.conditions
        ]
        scores = finite(torch.stack(columns, dim=1), batch, "the detector's output")
        self.put(batch.positions, scores.cpu().numpy())

    def result(self) -> Scores:
        """Scores of all images seen, in the order of the set."""
        seen = np.flatnonzero(self.seen)
        items = [self._images.items[position] for position in seen]
        labels = np.array([-1 if item.label is None else item.label for item in items], dtype=np.int64)
        columns = {condition.name: self.values[seen, index] for index, condition in enumerate(self.conditions)}
        return Scores(tuple(item.name for item in items), labels, columns)
