"""Heads: what a network's output means. p(fake) and the relevance to start from are computed here and nowhere else.

Classes are numbered. Of a detector 1 is fake and 0 real, as the labels of images; of a classifier they are the columns
of its output. Nothing here waits for the device.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lrp.explainer import sign


class Head(ABC):
    """The meaning of a network's output, (N, K) or (N, 1, H, W) in any floating-point type."""

    outputs: int
    """K, the rows of the last linear layer."""
    class_names: tuple[str, ...]
    """By class number."""

    @abstractmethod
    def logit(self, output: Tensor) -> Tensor:
        """Evidence for fake, (N,) in the type of the output; p(fake) = sigmoid(logit).

        Raises:
            ValueError: The network does not tell fake from real.
        """

    @abstractmethod
    def probability(self, output: Tensor, classes: Tensor | None = None, *, single_precision: bool = False) -> Tensor:
        """(N,) float64: p(fake) of a detector, whatever the class; of a classifier the softmax of the class.

        Args:
            output: Of the network.
            classes: (N,) int64; without it the decision of a classifier.
            single_precision: Apply the sigmoid in float32, as the published code does: scores above 0.99999997
                become 1 and tie.
        """

    @abstractmethod
    def decision(self, output: Tensor) -> Tensor:
        """The most probable class, (N,) int64."""

    @abstractmethod
    def score(self, output: Tensor, classes: Tensor) -> Tensor:
        """The explained quantity g (N,), differentiable: the logit of the class (of real, minus that of fake)."""

    @abstractmethod
    def start_relevance(self, output: Tensor, classes: Tensor, *, published: bool = False) -> Tensor:
        """Relevance of the output, in its shape; that of an image sums to +1 or -1.

        Its sign is that of g, so that positive relevance is evidence for the class whatever the sign of the logit
        (zero counts as positive). The published code starts at +1 for fake and any class and at -1 for real instead.
        """


@dataclass(frozen=True)
class OneLogit(Head):
    """(N, 1): the logit of fake, or with sign -1 that of real."""

    sign: Literal[1, -1] = 1
    outputs = 1
    class_names = ("real", "fake")

    def logit(self, output: Tensor) -> Tensor:
        return output[:, 0] * self.sign

    def probability(self, output: Tensor, classes: Tensor | None = None, *, single_precision: bool = False) -> Tensor:
        # in double precision, so that large logits stay apart
        dtype = torch.float32 if single_precision else torch.float64
        return torch.sigmoid(self.logit(output.to(dtype))).double()

    def decision(self, output: Tensor) -> Tensor:
        return (self.logit(output) > 0).long()

    def score(self, output: Tensor, classes: Tensor) -> Tensor:
        return self.logit(output) * _direction(classes, output)

    def start_relevance(self, output: Tensor, classes: Tensor, *, published: bool = False) -> Tensor:
        signs = _direction(classes, output) if published else sign(self.score(output, classes))
        return signs[:, None]


@dataclass(frozen=True)
class LogitMap(OneLogit):
    """(N, 1, H, W): a logit at every place.

    Attributes:
        mean_of: The score of an image: the mean of the places' logits, or of their p(fake).
    """

    mean_of: Literal["logits", "probabilities"] = "logits"

    def logit(self, output: Tensor) -> Tensor:
        places = output.flatten(1) * self.sign
        if self.mean_of == "logits":
            return places.mean(1)
        # log(p / (1 - p)) of the mean p; the logarithms of the two sums stay finite where p rounds to 0 or 1
        return logsigmoid(places).logsumexp(1) - logsigmoid(-places).logsumexp(1)

    def start_relevance(self, output: Tensor, classes: Tensor, *, published: bool = False) -> Tensor:
        """As `Head.start_relevance`, shared out over the places as an epsilon rule shares a mean.

        Of mean probabilities a place's weight is the derivative of its p(fake) (first-order Taylor expansion).
        """
        total = super().start_relevance(output, classes, published=published)
        places = output.flatten(1)
        if self.mean_of == "probabilities":
            p = torch.sigmoid(places)
            places = places * p * (1 - p)
        whole = places.sum(1, keepdim=True)
        shares = (places / whole).masked_fill(whole == 0, 1 / places.shape[1])
        return (total * shares).view_as(output)


@dataclass(frozen=True)
class Classes(Head):
    """(N, K): one logit for each of K classes, none of which is plain fake.

    Attributes:
        class_names: By class number.
    """

    class_names: tuple[str, ...]

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """K."""
        return len(self.class_names)

    def logit(self, output: Tensor) -> Tensor:
        raise ValueError(f"a classifier of {self.outputs} classes has no logit of fake")

    def probability(self, output: Tensor, classes: Tensor | None = None, *, single_precision: bool = False) -> Tensor:
        softmax = output.to(torch.float32 if single_precision else torch.float64).softmax(1).double()
        return self.score(softmax, self.decision(output) if classes is None else classes)

    def decision(self, output: Tensor) -> Tensor:
        return output.argmax(1)

    def score(self, output: Tensor, classes: Tensor) -> Tensor:
        return output.gather(1, classes[:, None])[:, 0]

    def start_relevance(self, output: Tensor, classes: Tensor, *, published: bool = False) -> Tensor:
        scores = self.score(output, classes)[:, None]
        return torch.zeros_like(output).scatter_(
            1, classes[:, None], torch.ones_like(scores) if published else sign(scores)
        )


def _direction(classes: Tensor, output: Tensor) -> Tensor:
    """+1 for fake and -1 for real, in the type of the output."""
    return classes.to(output.dtype) * 2 - 1
