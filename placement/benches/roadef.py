#!/usr/bin/env python3
"""Machine reassignment: a table of the medians of several seeds, in Markdown.

    placement/benches/roadef.py BALLAST FOLDER [--seconds 10,60] [--seeds 5] [--threads 2] [--only a2_2,a2_3]

FOLDER has the challenge's set A: model_*.txt.xz and assignment_*.txt.xz. The
score of a run is 100 * (cost - best known) / initial cost; costs are those of
the checker that shares nothing with the solver. Every run is also printed on
standard error, as the command's line of JSON.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

BEST_KNOWN = {
    "a1_1": 44306501,
    "a1_2": 777531842,
    "a1_3": 583005717,
    "a1_4": 252728589,
    "a1_5": 727578309,
    "a2_1": 161,
    "a2_2": 720671548,
    "a2_3": 1190713414,
    "a2_4": 1680368578,
    "a2_5": 307150821,
}

# Wall time beyond what was asked for that a run may take: the start of the process.
GRACE_SECONDS = 0.5


def run(args, name, seconds, seed):
    """One run, as its line of JSON with the name and the score added."""
    command = [
        args.ballast, "bench", "roadef",
        "--model", args.folder / f"model_{name}.txt.xz",
        "--assignment", args.folder / f"assignment_{name}.txt.xz",
        "--seconds", seconds, "--seed", seed, "--threads", args.threads,
    ]
    output = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE)
    line = json.loads(output.stdout)
    line["instance"] = name
    line["score"] = 100 * (line["cost"] - BEST_KNOWN[name]) / line["initial"]
    if line["seconds"] > seconds + GRACE_SECONDS:
        sys.exit(f"{name}: {line['seconds']} s, {seconds} were asked for")
    print(json.dumps(line), file=sys.stderr, flush=True)
    return line


def row(args, names, seconds):
    """The medians of one length, and their sum."""
    medians = []
    for name in names:
        scores = [run(args, name, seconds, seed)["score"] for seed in range(1, args.seeds + 1)]
        medians.append(statistics.median(scores))
    return [f"{seconds:g} s"] + [f"{score:.2f}" for score in medians] + [f"**{sum(medians):.1f}**"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ballast")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seconds", default="10", help="lengths, with commas between")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default=",".join(BEST_KNOWN), help="instances, with commas between")
    args = parser.parse_args()
    names = args.only.split(",")
    if args.seeds < 1 or not set(names) <= set(BEST_KNOWN):
        parser.error(f"at least one seed, and instances of {', '.join(BEST_KNOWN)}")
    lines = [["median of", *names, "sum"], ["---"] * (len(names) + 2)]
    lines += [row(args, names, float(seconds)) for seconds in args.seconds.split(",")]
    for line in lines:
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
