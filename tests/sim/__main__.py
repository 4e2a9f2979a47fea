"""`python -m tests.sim --seed N --workers W --tasks T`: one run, and what it did."""

import argparse
import sys
import time

from tests.sim.world import Summary, simulate


def main() -> int:
    """The exit code: 0 only if every promise held and every kind of fault was there."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim", description="The real cores in virtual time, under faults."
    )
    parser.add_argument("--seed", type=int, default=1, help="what everything is drawn from (default 1)")
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1, metavar="COUNT", help="so many runs, from --seed up")
    options = parser.parse_args()
    for seed in range(options.seed, options.seed + options.seeds):
        start = time.monotonic()
        summary = simulate(seed, options.workers, options.tasks)
        show(summary, time.monotonic() - start)
        missing = [kind for kind, count in summary.faults.items() if not count]
        if missing:
            print(f"no fault of the kind: {', '.join(missing)}")
            print(
                f"to see this again: python -m tests.sim --seed {seed} --workers {options.workers} --tasks {options.tasks}"
            )
            return 1
    return 0


def show(summary: Summary, real_s: float) -> None:
    """A run, for people. The first line is the only one that differs from machine to machine."""
    print(f"seed {summary.seed}: sound, {real_s:.1f} s, {summary.events / real_s:,.0f} events/s")
    print(
        f"  {summary.workers} workers with {summary.slots} slots, {summary.tasks} tasks in {summary.jobs} jobs, lease {summary.lease_s:g} s"
    )
    print(
        f"  {summary.virtual_s:,.0f} virtual seconds (healed after {summary.healed_after_s:,.0f}), {summary.events:,} events, {summary.commits:,} commits, {summary.epochs} epochs"
    )
    states = ", ".join(f"{count} {state}" for state, count in summary.tasks_by_state.items() if count)
    print(
        f"  tasks: {states}; {summary.attempts} attempts, {summary.attempts_lost} lost, {summary.retries} retries, {summary.refused_reports} reports refused since the last start"
    )
    print("  faults: " + ", ".join(f"{count} {kind}" for kind, count in summary.faults.items()))


if __name__ == "__main__":
    sys.exit(main())
