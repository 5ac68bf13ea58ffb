"""Damage everything that the program reads, for some minutes, and count what happens.

    python -m napari_jrss._tests.hostile.fuzz --minutes 20

runs the targets of the hostile tests in turn, each batch in a process of its own with limits on
time and memory, so that a crash is a finding too. Each kind of fault is printed once, with the
mutation that makes the file again; the exit code is 1 if there were any.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from napari_jrss._tests.hostile.targets import READERS, FaultError, an_arena, attack
from napari_jrss._tests.hostile.targets_engine import ENGINE_READERS

TARGETS = {target.name: target for target in (*READERS, *ENGINE_READERS)}
MODULE = "napari_jrss._tests.hostile.fuzz"
BATCH = 500


def batch(name: str, seed: int, examples: int, arena: Path) -> None:
    """One process's share: prints a line of JSON per distinct fault, then the counts."""
    target = TARGETS[name]
    current = arena / "current mutation"
    current.touch()
    tried, refused, slowest = 0, 0, 0.0
    faults: dict[str, str] = {}

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.mutations)
    def spoil(mutation) -> None:
        nonlocal tried, refused, slowest
        current.write_text(repr(mutation), encoding="utf-8", errors="backslashreplace")
        started = time.perf_counter()
        try:
            try:
                refused += attack(target, mutation, arena)
            except FaultError as fault:
                if not str(fault).startswith("no end"):
                    raise
                refused += attack(target, mutation, arena)  # or was the machine busy?
        except FaultError as fault:
            kind = re.sub(r"\d+|/[^ ]*|0x\w+|'[^']*'", "*", str(fault))[:160]
            faults.setdefault(kind, f"{fault}\n    {mutation!r}"[:1500])
        tried += 1
        slowest = max(slowest, time.perf_counter() - started)

    spoil()
    print(json.dumps({"tried": tried, "refused": refused, "slowest": slowest, "faults": faults}))


def _row(name: str, tried: int, refused: int, slowest: float, faults: int) -> None:
    print(f"| {name} | {tried} | {refused} | {slowest:.2f} | {faults} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--only", default="", help="targets whose name contains this")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--batch", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch:
        name, seed, examples, arena = options.batch
        batch(name, int(seed), int(examples), Path(arena))
        return 0
    names = [name for name in TARGETS if options.only in name]
    tried: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    slowest: dict[str, float] = {}
    faults: dict[tuple[str, str], str] = {}
    end = time.monotonic() + 60 * options.minutes
    seed = options.seed
    while time.monotonic() < end:
        for name in names:
            seed += 1
            with an_arena() as arena:
                command = [sys.executable, "-m", MODULE, "--batch", name, str(seed), str(BATCH)]
                done = subprocess.run(
                    [*command, str(arena)], capture_output=True, text=True, check=False
                )
                if done.returncode != 0:
                    mutation = (arena / "current mutation").read_text()
                    reason = done.stderr.strip().splitlines()[-1:] or [""]
                    reason = f"process ended with {done.returncode} ({reason[0]})"
                    found = {reason: f"{reason}\n    {mutation}"}
                    count = {"tried": 1, "refused": 0, "slowest": 0.0}
                else:
                    count = json.loads(done.stdout.splitlines()[-1])
                    found = count["faults"]
            tried[name] += count["tried"]
            refused[name] += count["refused"]
            slowest[name] = max(slowest.get(name, 0), count["slowest"])
            for kind, example in found.items():
                if (name, kind) not in faults:
                    faults[name, kind] = example
                    print(f"FAULT {name}: {example}", flush=True)
    print("\n| what is read | inputs | refused | slowest (s) | faults |\n|---|---:|---:|---:|---:|")
    for name in names:
        count = sum(1 for target, _ in faults if target == name)
        _row(name, tried[name], refused[name], slowest.get(name, 0), count)
    _row("all", tried.total(), refused.total(), max(slowest.values(), default=0), len(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
