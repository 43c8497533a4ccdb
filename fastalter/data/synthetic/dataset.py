"""Write a synthetic dataset in the form of nuScenes: files, thirteen tables, a map and splits.json."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from fastalter.data.synthetic.recording import Tables, record_scene
from fastalter.data.synthetic.rig import MOUNTS
from fastalter.data.synthetic.settings import SyntheticSettings
from fastalter.data.synthetic.tables import LIDAR, MAP_FILE, TRAIN, VAL, VERSION, scene_name, shared_tables
from fastalter.data.synthetic.world import MAP_SIZE
from fastalter.errors import DataError

MAP_PIXEL = 0.1
"""Side of a map pixel in metres: what the devkit takes it to be."""


def write_dataset(
    root: Path,
    settings: SyntheticSettings,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> None:
    """Write the dataset of `settings` as folder `root`, which must not be there yet, or be empty.

    Scenes are made by `workers` processes (default: one per core); the files do not depend on how many. Everything is
    written beside `root` first and renamed at the end. Raises `DataError` where that cannot be done.
    """
    if workers is not None and workers < 1:
        raise DataError(f"workers is {workers}; give 1 or more, or none for one per core")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} is there already and not empty: name a new folder, or remove it")
    if not root.parent.is_dir():
        raise DataError(f"{root}: there is no folder {root.parent}; make it first")
    try:
        staged = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".part", dir=root.parent))
    except OSError as error:
        raise DataError(f"{root}: cannot write into {root.parent} ({error.strerror}); name another place") from error
    try:
        _fill(staged, settings, workers or os.cpu_count() or 1, progress)
        staged.chmod(0o755)
        os.replace(staged, root)
    except OSError as error:
        raise DataError(f"{root}: cannot be written ({error}); free the place or name another") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _fill(root: Path, settings: SyntheticSettings, workers: int, progress: Callable[[str, int, int], None]) -> None:
    for channel in (LIDAR, *MOUNTS):
        (root / "samples" / channel).mkdir(parents=True)
    if settings.sweeps:
        (root / "sweeps" / LIDAR).mkdir(parents=True)
    tables = shared_tables(settings)
    total = settings.scenes + settings.val_scenes
    progress("scenes", 0, total)
    for done, records in enumerate(_scenes(root, settings, workers), start=1):
        for table, rows in records.items():
            tables.setdefault(table, []).extend(rows)
        progress("scenes", done, total)
    folder = root / VERSION
    folder.mkdir()
    for table, rows in tables.items():
        (folder / f"{table}.json").write_text(json.dumps(rows), encoding="utf-8")
    names = [scene_name(number) for number in range(total)]
    splits = {TRAIN: names[: settings.scenes], VAL: names[settings.scenes :]}
    (folder / "splits.json").write_text(json.dumps(splits, indent=1), encoding="utf-8")
    (root / MAP_FILE).parent.mkdir()
    side = round(MAP_SIZE / MAP_PIXEL)
    Image.new("L", (side, side), 255).save(root / MAP_FILE)  # all of it is drivable


def _scenes(root: Path, settings: SyntheticSettings, workers: int) -> Iterator[Tables]:
    """The records of every scene, in order."""
    numbers = range(settings.scenes + settings.val_scenes)
    record = partial(record_scene, root, settings)
    if workers == 1 or len(numbers) == 1:
        yield from map(record, numbers)
        return
    # Not forked: torch's threads do not survive it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(numbers)), mp_context=context) as pool:
        yield from pool.map(record, numbers)
