"""The whole data set: photographs, parts, measures and a picture of it, made once."""

import shutil
from collections.abc import Mapping
from dataclasses import astuple
from functools import partial
from pathlib import Path

from mini_forensynths.generators import SPECS, load_generator, reconstruct
from mini_forensynths.measures import MEASURES, measure_set
from mini_forensynths.montage import draw_montage
from mini_forensynths.options import PARTS, DataSet, Photographs, Sizes
from mini_forensynths.photos import find_photos, split_photos
from mini_forensynths.real_generators import ENLARGEMENTS, NETWORKS, OPTIONAL, enlarge, load_network
from mini_forensynths.sets import REAL, SIMULATED, Way, make_part, part_name, set_names
from utils.errors import UserError
from utils.files import sha256_file, sha256_text, write_csv, write_text
from utils.provenance import Origin, is_current, read_record, remove_with_record, write_record
from utils.settings import plain

_COMPUTATION = 2
_PLAN = "plan.txt"


def build(photographs: Photographs, sizes: Sizes, data_set: DataSet) -> list[Path]:
    """Make the data set, or what an interrupted run has left to do; the table of measures and the montage.

    Raises:
        UserError: A photograph or the weights of a generator cannot be used, or the folder holds another data set.
    """
    root = data_set.output_dir
    photos = split_photos(find_photos(photographs.photos), photographs.shares, photographs.split_seed)
    weights = _weights(data_set)
    generators = _generators(weights)
    inputs = {f"{name} generator": sha256_file(path) for name, path in weights.items()}
    for part in PARTS:
        inputs[f"{part} photographs"] = sha256_text(f"{p.name} {sha256_file(p.path)}" for p in photos[part])
    facts = {**plain(sizes), "split_seed": photographs.split_seed, "shares": list(photographs.shares)}
    origin = Origin(_COMPUTATION, inputs, facts)
    table, montage = root / "measures.csv", root / "montage.png"
    if is_current([table], origin) and montage.is_file():
        return [table, montage]
    _claim(root, origin, data_set.overwrite)
    parts, skip = [part for part in PARTS if photos[part]], photographs.skip_bad_images
    skipped: list[str] = []
    for part in parts:
        skipped += make_part(root, part, photos[part], generators, sizes, skip_bad_images=skip)
    if skipped:
        write_text(root / "skipped.txt", "".join(f"{line}\n" for line in skipped))
    of_parts = [(part, name) for part in parts for name in set_names(part, list(generators))]
    rows = [(part, name, *astuple(measure_set(root / name))) for part, name in of_parts]
    draw_montage(root, montage, parts[-1], list(generators))
    write_csv(table, ("part", "set", *MEASURES), rows)
    write_record(
        [table],
        origin,
        settings=plain(photographs, sizes, data_set),
        seed=photographs.split_seed,
        device="cpu",
        photos={part: [photo.name for photo in photos[part]] for part in PARTS},
        skipped=skipped,
    )
    return [table, montage]


def _weights(data_set: DataSet) -> dict[str, Path]:
    """Files of the generators; that of the published network which does not come with the project may be absent."""
    simulated = {spec.name: data_set.generators / f"{spec.name}.safetensors" for spec in SPECS}
    real = {name: data_set.real_generators / f"{name}.safetensors" for name in NETWORKS}
    return simulated | {name: path for name, path in real.items() if name != OPTIONAL or path.exists()}


def _generators(weights: Mapping[str, Path]) -> dict[str, Way]:
    """Generators by name, the simulated ones first."""
    networks = {name: load_network(name, weights[name]) for name in NETWORKS if name in weights}
    simulated = {spec.name: partial(reconstruct, load_generator(spec, weights[spec.name])) for spec in SPECS}
    return simulated | {w.name: partial(enlarge, w, networks[w.weights]) for w in ENLARGEMENTS if w.weights in networks}


def _claim(root: Path, origin: Origin, overwrite: bool) -> None:
    """Note what is going to be made in `root`, so that files of another data set are never taken for this one's.

    Raises:
        UserError: There is another data set.
    """
    plan = root / _PLAN
    if is_current([plan], origin):
        return
    # plan.txt alone: interrupted before its record was there
    if root.exists() and any(path.name != _PLAN for path in root.iterdir()):
        if not read_record(plan):
            raise UserError(f"{root} holds other files: choose another --output_dir")
        if not overwrite:
            raise UserError(
                f"{root} holds a data set of other photographs or settings: give --overwrite, or another --output_dir"
            )
        # the table first: while it is there, the old data set counts as complete
        remove_with_record(root / "measures.csv")
        for name in ("montage.png", "skipped.txt"):
            (root / name).unlink(missing_ok=True)
        for folder in (root / name for name in (*map(part_name, PARTS), *set_names("test", [*SIMULATED, *REAL]))):
            if folder.exists():
                shutil.rmtree(folder)
    write_text(plan, "The images below are mini-ForenSynths; plan.txt.json says from what they are made.\n")
    write_record([plan], origin)
