"""Published weights into a registry, and networks of a registry into files that Keras reads."""

from pathlib import Path

from passes.options import RunOptions
from source_attribution.keras_files import is_keras, read_keras, write_keras
from source_attribution.options import Conversion
from source_attribution.registry import SUFFIX, add, add_secondary, primary_path, read_primary
from source_attribution.stored import PRIMARY, SECONDARY, check_belongs, read_stored
from utils.cli import say_files
from utils.errors import UserError
from utils.files import safe_join


def convert(options: Conversion, run: RunOptions | None = None) -> list[Path]:
    """Convert, one way or the other by the suffix of the weights; the files written.

    A published attribution file becomes its primary and, beside it, its secondary. Of a secondary both are written
    into one Keras file, as published.

    Raises:
        UserError: The weights cannot be used, or other ones are there already.
    """
    weights, overwrite = options.weights, run is not None and run.overwrite
    written = _to_registry(options, overwrite) if is_keras(weights) else _to_keras(weights, options)
    say_files(written)
    return written


def _to_registry(options: Conversion, overwrite: bool) -> list[Path]:
    first, *others = read_keras(options.weights, options, options.source)
    if options.dct and first.statistics is None:
        raise UserError(f"{options.weights} does not hold the statistics of its spectra: give --normstats DIR")
    path = safe_join(options.output, (options.name or options.weights.stem) + SUFFIX)
    add(path, first, overwrite=overwrite)
    return [path, *(add_secondary(path, first, secondary, overwrite=overwrite) for secondary in others)]


def _to_keras(weights: Path, options: Conversion) -> list[Path]:
    stored = read_stored(weights)
    if not is_keras(options.output):
        raise UserError(f"{options.output} is no name of a Keras file: give one that ends in .h5")
    if stored.description.kind not in (PRIMARY, SECONDARY, "notl"):
        raise UserError(f"{weights} is a {stored.description.kind} network, of which no Keras files are known")
    networks = [stored]
    if stored.description.kind == SECONDARY:
        networks.insert(0, read_primary(primary_path(weights)))
        check_belongs(stored, networks[0], weights)
    write_keras(options.output, *networks)
    return [options.output]
