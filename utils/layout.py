"""Where every file of every analysis lies: one place for the folders that other tools rely on."""

from dataclasses import dataclass
from pathlib import Path

from utils.files import safe_join


@dataclass(frozen=True)
class Layout:
    """Files of one detector below an output folder.

    Attributes:
        root: Output folder.
        arch: Canonical name of the network.
        tag: Stands for the detector's training in file names (`--blur_jpg`).
    """

    root: Path
    arch: str
    tag: str

    def rankings(self, gan_name: str) -> Path:
        """Folder of a set's rankings, and of all that belongs to them."""
        return safe_join(self.root, "fmap_relevances", self.arch, f"{gan_name}_{self.tag}")

    def ranking(self, gan_name: str, label: str) -> Path:
        """The ranking of a label, `fake` or `real`, in the published format."""
        return safe_join(self.rankings(gan_name), f"{gan_name}-{label}.csv")

    def ranking_table(self, gan_name: str, what: str) -> Path:
        """A table beside the rankings of a set: `samples`, `fake-layers`, `fake-standard_errors`, and so on."""
        return safe_join(self.rankings(gan_name), f"{gan_name}-{what}.csv")

    def relevance_maps(self, gan_name: str) -> Path:
        """Folder of the relevance of single images."""
        return safe_join(self.root, "pt_files", self.arch, f"{gan_name}_{self.tag}")

    def scores(self, experiment: str, gan_name: str) -> Path:
        """Folder of scores: `transfer` (maps dropped), `grayscale-transfer` (colour)."""
        return safe_join(self.root, experiment, self.arch, f"{gan_name}_{self.tag}")

    def table(self, experiment: str) -> Path:
        """Stem of the table and the figure over all generators."""
        return safe_join(self.root, experiment, self.arch, f"{experiment}_{self.tag}")

    def whiskers(self, gan_name: str | None = None) -> Path:
        """Stem of the box-whisker plot of a generator, or of all."""
        folder = safe_join(self.root, "whisker_plots", self.arch)
        return folder / self.tag if gan_name is None else safe_join(folder, self.tag, gan_name)

    def activation_rankings(self, gan_name: str) -> Path:
        """Folder of the activation rankings of a generator."""
        return safe_join(self.root, "activation_rankings", self.arch, f"{gan_name}_{self.tag}")

    def patches(self, gan_name: str) -> Path:
        """Folder of the patches of a generator's fakes."""
        return safe_join(self.root, "patches", self.arch, f"{gan_name}_{self.tag}", "fake")

    @property
    def collages(self) -> Path:
        """Folder of collages."""
        return safe_join(self.root, "collages", self.arch, self.tag)

    @property
    def median_tests(self) -> Path:
        """Folder of all generators' median tests, and of the table over them."""
        return safe_join(self.root, "median_test", f"{self.arch}_{self.tag}")

    @property
    def histograms(self) -> Path:
        """Folder of activation histograms."""
        return safe_join(self.root, "activation_histograms", self.arch, self.tag)

    def attributions(self, method: str, classifier: str, *details: str) -> Path:
        """Folder of a method's explanations (`lrp`, `gradcam`) of a detector (`ud`), or of an `imagenet` classifier."""
        network = f"{classifier}_{self.tag}" if classifier == "ud" else classifier
        return safe_join(self.root, method, self.arch, "-".join((network, *details)))

    def training(self, subset: str | None = None) -> Path:
        """Folder of a training run called by the tag, or of one of its subsets of classes."""
        return safe_join(self.root, "training", self.arch, self.tag, *([subset] if subset else []))

    def state(self, job: str, gan_name: str) -> Path:
        """Saved state of an interrupted job."""
        return safe_join(self.root, ".states", f"{job}-{self.arch}_{self.tag}-{gan_name}.npz")

    def drawn(self, step: str) -> Path:
        """Record of what was drawn in a step."""
        return safe_join(self.root, ".drawn", f"{self.arch}_{self.tag}-{step}.json")
