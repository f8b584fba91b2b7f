"""Scores of a network in training on a validation set, over all processes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from cr_ud.augmentation import Augmentation
from cr_ud.parallel import from_first, share_buffers
from cr_ud.training_data import load_validation
from detectors.detector import Detector
from detectors.heads import Head
from evaluation.metrics import accuracies, average_precision
from images.sets import ImageSet
from passes.processes import Ranks


@dataclass(frozen=True)
class Validation:
    """Mean loss, AP and accuracies (0..1, at 0.5) of a network on `images` validation images."""

    images: int
    loss: float
    ap: float
    acc: float
    acc_real: float
    acc_fake: float


def validate(
    detector: Detector,
    image_set: ImageSet,
    augmentation: Augmentation,
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    num_workers: int,
    autocast: torch.autocast,
    ranks: Ranks,
    skip_bad_images: bool,
) -> Validation:
    """Validate in evaluation mode, each process its share; all get the same result; the mode is put back.

    Raises:
        UserError: an image cannot be used, or the network's scores are not finite.
    """
    model = detector.model
    share_buffers(model, ranks)
    was_training = model.training
    model.eval()
    mine: list[tuple[int, float, float]] = []
    try:
        for loaded in load_validation(
            image_set,
            augmentation,
            batch_size=batch_size,
            epoch=epoch,
            seed=seed,
            num_workers=num_workers,
            ranks=ranks,
            skip_bad_images=skip_bad_images,
        ):
            if not loaded.positions:
                continue
            inputs = detector.inputs(torch.from_numpy(loaded.images).permute(0, 3, 1, 2))
            with torch.no_grad(), autocast:
                logits = model(inputs).squeeze(1).float().cpu()
            mine += zip(loaded.positions, loaded.labels.tolist(), logits.tolist(), strict=True)
    finally:
        model.train(was_training)
    gathered = ranks.gather(mine)
    result = None if gathered is None else _summary(sorted(row for rows in gathered for row in rows), detector.head)
    return from_first(result, ranks)


def _summary(rows: list[tuple[int, float, float]], head: Head) -> Validation:
    labels = np.array([label for _, label, _ in rows])
    logits = torch.tensor([logit for _, _, logit in rows], dtype=torch.float64)
    loss = binary_cross_entropy_with_logits(logits, torch.from_numpy(labels).double())
    scores = head.probability(logits[:, None]).numpy()
    real, fake, overall = accuracies(labels, scores, 0.5)
    return Validation(len(rows), float(loss), average_precision(labels, scores), overall, real, fake)
