"""The readers against very many outputs: `python -m tests.soak.readers --count 1000000 --seed 1`.

Ends with one JSON line: count, seed, readable, unreadable, seconds, failures. Exits with 1 if there is a failure; the
first few are printed before.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from random import Random

from tqdm import tqdm

from tests.soak.outputs import any_output, examine

SHOWN = 5


def main() -> int:
    """Draw, read and check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=1_000_000, help="outputs to read")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng, started = Random(args.seed), time.monotonic()
    readable = failures = 0
    for _ in tqdm(range(args.count), desc="readers", unit="output", mininterval=1.0):
        output = any_output(rng)
        reading, fault = examine(output)
        readable += reading is not None
        failures += fault is not None
        if fault and failures <= SHOWN:
            print(f"{fault}: {output}", file=sys.stderr)
    result = {
        "count": args.count,
        "seed": args.seed,
        "readable": readable,
        "unreadable": args.count - readable,
        "seconds": round(time.monotonic() - started, 1),
        "failures": failures,
    }
    print(json.dumps(result))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
