"""Scores of a detector under several conditions: collected in a pass, kept as a table."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detectors.feature_maps import FeatureMapNetwork, by_layer
from detectors.heads import Head
from images.sets import ImageSet
from passes.one_pass import PassBatch, State
from passes.shared_forward import SharedForward
from sensitivity_assessment.variants import Variants
from utils.errors import UserError
from utils.files import write_csv

RGB = "rgb"
GRAYSCALE = "grayscale"

Score = Callable[[PassBatch], Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Scores:
    """p(fake) of every image, one column per condition.

    Attributes:
        paths: Names of the images below the data set folder.
        labels: (n,) 0 real, 1 fake.
        columns: By condition (n,) float64, 0..1.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    columns: Mapping[str, np.ndarray]

    def write(self, path: Path) -> None:
        """Write as CSV with the columns path, label and the conditions; atomic."""
        rows = zip(self.paths, self.labels.tolist(), *(c.tolist() for c in self.columns.values()), strict=True)
        write_csv(path, ("path", "label", *self.columns), rows)


def read_scores(path: Path, *, made_by: str) -> Scores:
    """Read a table that `Scores.write` wrote.

    Args:
        path: CSV file.
        made_by: Script that makes it, for the message.

    Raises:
        UserError: missing, unreadable or of another format.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            header, *rows = list(csv.reader(file))
        if header[:2] != ["path", "label"] or any(len(row) != len(header) for row in rows):
            raise ValueError("not a table of scores")
        labels = np.array([int(row[1]) for row in rows], dtype=np.int64)
        values = np.array([[float(text) for text in row[2:]] for row in rows], dtype=np.float64)
    except FileNotFoundError:
        raise UserError(f"no scores at {path}: make them with {made_by}") from None
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or not a table of scores: make it anew with {made_by}") from error
    values = values.reshape(len(rows), len(header) - 2)
    columns = {name: values[:, column].copy() for column, name in enumerate(header[2:])}
    return Scores(tuple(row[0] for row in rows), labels, columns)


class ScoreCollector:
    """Collects p(fake) of every image under several conditions; 8 bytes for each pair of the two.

    Args:
        name: Of its part of the saved state.
        image_set: The images of the pass, labelled.
        columns: The conditions.
        score: From a batch to the logits (N, 1) under each condition.
        single_precision: Apply the sigmoid in float32, as the published code does: scores above 0.99999997 become 1
            and tie.
        head: Of the detector.
    """

    def __init__(
        self,
        name: str,
        image_set: ImageSet,
        columns: Sequence[str],
        score: Score,
        *,
        head: Head,
        single_precision: bool = False,
    ) -> None:
        self.name = name
        self.columns = tuple(columns)
        self._image_set = image_set
        self._score = score
        self._head, self._single_precision = head, single_precision
        self._values = np.full((len(image_set), len(self.columns)), np.nan)

    def update(self, batch: PassBatch) -> None:
        """Add a batch.

        Raises:
            UserError: A score is not a number.
        """
        logits = self._score(batch)
        columns = [
            self._head.probability(logits[column], single_precision=self._single_precision) for column in self.columns
        ]
        scores = torch.stack(columns, dim=1).cpu().numpy()
        broken = np.isnan(scores).any(axis=1)
        if broken.any():
            raise UserError(
                f"{batch.items[int(broken.argmax())].path}: the detector's output is not a number: "
                "check the checkpoint, or use --precision fp32"
            )
        self._values[list(batch.batch.positions)] = scores

    def state(self) -> State:
        """Scores, (images, conditions); NaN where an image has not been seen."""
        return {"values": self._values.copy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Replace what was collected by a saved state."""
        self._values = state["values"].copy()

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add the state of a collector that saw other images of the same set."""
        seen = ~np.isnan(state["values"]).any(axis=1)
        self._values[seen] = state["values"][seen]

    def result(self) -> Scores:
        """Scores of all images seen, in the order of the set."""
        seen = np.flatnonzero(~np.isnan(self._values).any(axis=1))
        items = [self._image_set.items[position] for position in seen]
        labels = np.array([-1 if item.label is None else item.label for item in items], dtype=np.int64)
        columns = {column: self._values[seen, place] for place, column in enumerate(self.columns)}
        return Scores(tuple(item.name for item in items), labels, columns)


def dropout_scores(
    network: FeatureMapNetwork, variants: Variants, image_set: ImageSet, *, published: bool = False
) -> ScoreCollector:
    """Collects the scores of all variants; each batch is run once up to where the variants part.

    Raises:
        UserError: The detector lacks a map.
    """
    dropped = {column: by_layer((fmap.layer, fmap.index) for fmap in maps) for column, maps in variants.maps.items()}
    scores = network.dropping(dropped)
    return ScoreCollector(
        "sensitivity",
        image_set,
        list(dropped),
        lambda batch: scores(batch.inputs),
        single_precision=published,
        head=network.head,
    )


def colour_scores(forward: SharedForward, image_set: ImageSet, *, published: bool = False) -> ScoreCollector:
    """Collects the scores of the images as they are and of the same decoded images in greyscale."""
    forward.request("rgb", logits=True)
    forward.request("grayscale", logits=True)

    def score(batch: PassBatch) -> dict[str, Tensor]:
        rgb, grayscale = forward.of(batch, "rgb").logits, forward.of(batch, "grayscale").logits
        assert rgb is not None
        assert grayscale is not None
        return {RGB: rgb, GRAYSCALE: grayscale}

    return ScoreCollector(
        "colour", image_set, (RGB, GRAYSCALE), score, single_precision=published, head=forward.network.head
    )
