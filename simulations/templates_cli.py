"""``fedward template``: a skeleton of a user's own task, with a small made-up data set that it runs on."""

import argparse
import csv
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

from common import command
from common.errors import DataError, UsageError

KINDS = ("tabular", "images", "text", "sequence")
EXAMPLE = "template tabular my_task.py && fedward simulate ./my_task.py:task --data my_task.csv"
PATIENTS = 120
SIZE = 28


def add_parsers(subparsers: Any) -> None:
    """Add the command."""
    parser = command.add(
        subparsers,
        template,
        "fedward",
        "write the skeleton of a task of your own",
        EXAMPLE,
        "Write the skeleton of a task for a table, a folder of images, texts or sequences, and beside it a small made-up data set of two hospitals.",
    )
    parser.add_argument("kind", choices=KINDS, help="what the data are")
    parser.add_argument("file", type=Path, help="the task's file to write, such as my_task.py")


def template(args: argparse.Namespace) -> int:
    """Run ``fedward template``."""
    if args.file.suffix != ".py":
        raise UsageError(f"{args.file}: expected a name that ends in .py")
    data = args.file.with_suffix("") if args.kind == "images" else args.file.with_suffix(".csv")
    for path in (args.file, data):
        if path.exists():
            raise UsageError(f"{path}: is there already; choose another name")
    skeleton = resources.files("simulations.templates") / f"{args.kind}.py.txt"
    try:
        _write_images(data) if args.kind == "images" else data.write_text(_rows(args.kind), encoding="utf-8")
        args.file.write_text(skeleton.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{args.file}: cannot be written ({error.strerror}); name another place") from None
    dealt = " --partition iid --hospitals 2" if args.kind == "images" else ""
    task, given = (path if path.is_absolute() else f"./{path}" for path in (args.file, data))
    command = f"fedward simulate {task}:task --data {given}{dealt}"
    written = {"task": str(args.file), "data": str(data), "command": command}
    print(json.dumps(written) if args.json else f"wrote {args.file} and {data}; now: {command}")
    return 0


def _rows(kind: str) -> str:
    """Return a made-up table: two hospitals, patients with a visit each, and a label that follows from what stands there."""
    import numpy as np

    draw = np.random.default_rng(1)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ill = draw.integers(0, 2, PATIENTS)
    named = {"tabular": ("age", "pressure", "smoker", "ward", "ill"), "text": ("text", "label")}
    writer.writerow(("hospital", "patient", *named.get(kind, ("events", "died"))))
    for patient, label in enumerate(ill.tolist()):
        words = ["pain" if label else "well", *draw.choice(["left", "right", "daily", "rest", "walk"], 5).tolist()]
        cells: tuple[Any, ...] = (" ".join(words),)
        if kind == "tabular":
            measured = round(draw.normal(50 + 15 * label, 10)), round(draw.normal(125 + 20 * label, 12))
            cells = (*measured, int(draw.integers(0, 2)), str(draw.choice(["north", "south"])))
        writer.writerow(("east" if patient % 2 else "west", patient, *cells, label))
    return out.getvalue()


def _write_images(folder: Path) -> None:
    """Write made-up grey images, those of the class ``yes`` brighter in the middle."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(1)
    for label, name in enumerate(("no", "yes")):
        (folder / name).mkdir(parents=True)
        for number in range(PATIENTS // 2):
            pixels = draw.integers(60, 140, (SIZE, SIZE))
            pixels[8:20, 8:20] += 80 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:03d}.png")
