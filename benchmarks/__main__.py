"""python -m benchmarks [MEASURE ...]: measure, write benchmarks/results.csv, print the table."""

import argparse
import sys
import time
from dataclasses import replace

from benchmarks import measures, table
from benchmarks.setting import ROOT, Setting
from slt_lib.base.errors import InputError
from slt_lib.train.provenance import commit, processor


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "measures", nargs="*", help=f"{', '.join(measures.MEASURES)}; default: all that are not done yet"
    )
    parser.add_argument("--run", default="", help="decode with this run of the store instead of a short training")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.measures if name not in measures.MEASURES]
    if unknown:
        print(f"ONLY={unknown[0]}: no such measure; there are {', '.join(measures.MEASURES)}", file=sys.stderr)
        return 2
    try:
        setting = Setting.read()
        done = setting.folder / "done"  # measures that an interrupted call finished; the next call skips them
        left = options.measures or [name for name in measures.MEASURES if not (done / name).exists()]
        where = {"machine": processor(), "commit": commit()}
        for name in left:
            print(f"{name}: {measures.MEASURES[name].__doc__}", file=sys.stderr, flush=True)
            began = time.monotonic()
            extra = [options.run] if name == "decoding" else []
            table.write(replace(row, **where) for row in measures.MEASURES[name](setting, *extra))
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            if not options.measures:
                done.mkdir(parents=True, exist_ok=True)
                (done / name).touch()
        if not options.measures:
            for path in done.iterdir():
                path.unlink()
        print(table.table(table.read()))
        if table.PATH.parent.parent == ROOT:  # not in a test
            table.into(table.PAGE)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
