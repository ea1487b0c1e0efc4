#!/usr/bin/env python3
"""The planner next to Debian's hbal (package ganeti-htools) on the same clusters.

    placement/benches/hbal.py BALLAST [--sizes 20,50,100,200] [--seeds 1] [--hbal-seconds 600] [--hbal-moves N]

Each cluster is written in the text format of Ganeti's htools, with shared
storage, so that a move is a live migration and disks stay. hbal balances it;
so does `ballast plan show --snapshot`. Both results are judged by hbal's own
score (less is better): our assignment is written back in the text format and
scored there with no move allowed. Ours plans twice: as it would by itself, and
with no more moves than hbal needed; on large clusters hbal, too, may be given a
number of moves, since it takes minutes for each. One line of JSON a cluster; seconds are
CPU seconds of the whole command, since walls say little on a busy machine.
"""

import argparse
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NODE_MIB, NODE_OWN_MIB, NODE_CPUS = 65536, 512, 16
# hbal's score adds up standard deviations: of free memory and of virtual CPUs per CPU as shares, and, without measured
# load, four times that of the number of instances (each counts as equally busy, of four resources). Our planner levels two
# amounts. Memory is one; the other is made of instances and virtual CPUs so that one instance too many is worth more than
# the virtual CPUs of ten instances can differ (by three each), and the weights are such that a virtual CPU counts beside
# memory as in hbal's score.
UNITS_PER_INSTANCE, MILLICORES_PER_UNIT = 32, 100
POLICY = (
    "|128,1,1024,1,1,1|128,1,1024,1,1,1;32768,8,1048576,16,8,12"
    "|diskless,file,sharedfile,plain,blockdev,drbd,rbd,ext,gluster|4.0|32.0"
)


def cluster(nodes, instances, seed):
    """Instances as (MiB, virtual CPUs, node), piled up unevenly, memory at most 90 % full."""
    rng = random.Random(seed)
    pull = [rng.random() ** 1.5 + 0.1 for _ in range(nodes)]
    used, found = [0] * nodes, []
    for _ in range(instances):
        mib, cpus = rng.choice([1024, 2048, 4096, 8192]), rng.choice([1, 2, 4])
        fits = [n for n in range(nodes) if used[n] + mib <= NODE_MIB * 0.9]
        if not fits:
            sys.exit(f"hbal.py: {instances} instances do not fit on {nodes} nodes")
        node = rng.choices(fits, [pull[n] for n in fits])[0]
        used[node] += mib
        found.append((mib, cpus, node))
    return found


def text(nodes, instances):
    used = [0] * nodes
    for mib, _, node in instances:
        used[node] += mib
    lines = ["g|u|preferred||", ""]
    for n in range(nodes):
        free = NODE_MIB - NODE_OWN_MIB - used[n]
        lines.append(
            f"n{n:03}|{NODE_MIB}|{NODE_OWN_MIB}|{free}|1000000|1000000|{NODE_CPUS}|N|u|1||N|0|1|1.0"
        )
    lines.append("")
    for i, (mib, cpus, node) in enumerate(instances):
        lines.append(f"i{i:05}|{mib}|1024|{cpus}|running|Y|n{node:03}||sharedfile||1|1|N")
    return "\n".join([*lines, "", "", POLICY, ""])


def snapshot(nodes, instances):
    mib = 1 << 20
    busy = lambda cpus: (UNITS_PER_INSTANCE + cpus) * MILLICORES_PER_UNIT
    # A node that has its share is half busy.
    capacity = 2 * sum(busy(cpus) for _, cpus, _ in instances) // nodes
    weight = (capacity / MILLICORES_PER_UNIT / NODE_CPUS) ** 2
    host = lambda n: {
        "id": f"n{n:03}",
        "capacity": {"cpu_millicores": capacity, "memory_bytes": NODE_MIB * mib},
        "state": "active",
        "telemetry": {
            "status": "known",
            "overhead": {"cpu_millicores": 0, "memory_bytes": NODE_OWN_MIB * mib},
        },
        "link_bytes_per_sec": "10Gbit/s",
    }
    vm = lambda i, size, cpus, node: {
        "id": f"i{i:05}",
        "host": f"n{node:03}",
        "size": {"cpu_millicores": busy(cpus), "memory_bytes": size * mib},
        "demand": {
            "cpu_millicores": busy(cpus),
            "memory_bytes": size * mib,
        },
        "automation": "full",
        "mobility": {"status": "movable"},
    }
    return {
        "format": 1,
        "revision": 1,
        "taken_at": 0,
        "policy": {"balance": {"cpu": min(1000, round(weight)), "memory": 1}},
        "hosts": [host(n) for n in range(nodes)],
        "vms": [vm(i, *instance) for i, instance in enumerate(instances)],
    }


def timed(command, limit):
    """Standard output and the CPU seconds of a command; no output when it took too long."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=True)
        out = done.stdout
    except subprocess.TimeoutExpired:
        out = None
    except subprocess.CalledProcessError as error:
        sys.exit(f"hbal.py: {command[0]} failed: {error.stderr.strip() or error.stdout.strip()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return out, round(spent, 3)


def hbal(path, limit, *more):
    """(score before, score after, moves, CPU seconds)."""
    out, spent = timed(["hbal", "-t", str(path), "--no-disk-moves", *more], limit)
    if out is None:
        return None, None, None, spent
    before = re.search(r"Initial (?:cluster )?score: ([\d.]+)", out)
    improved = re.search(r"score improved from ([\d.]+) to ([\d.]+)", out)
    already = re.search(r"already (?:well )?balanced \(initial score ([\d.]+)", out)
    if improved:
        moves = len(re.findall(r"^\s*\d+\. ", out, re.M))
        return float(improved[1]), float(improved[2]), moves, spent
    score = before or already
    if not score:
        sys.exit(f"hbal.py: no score in hbal's answer:\n{out}")
    return float(score[1]), float(score[1]), 0, spent


def ballast(command, path, gain_min, limit, moves=None):
    most = ["--moves", str(moves)] if moves else []
    out, spent = timed([command, "-o", "json", "plan", "show", "--snapshot", str(path),
                        "--gain-min", str(gain_min), *most], limit)
    if out is None:
        sys.exit(f"hbal.py: no plan in {limit} s")
    found = json.loads(out)
    return found["steps"], spent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ballast")
    parser.add_argument("--sizes", default="20,50,100,200")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--per-node", type=int, default=10)
    parser.add_argument("--gain-min", type=float, default=0.001)
    parser.add_argument("--hbal-seconds", type=float, default=600)
    parser.add_argument("--hbal-moves", type=int, help="the most moves hbal may make")
    args = parser.parse_args()
    limit = ["-l", str(args.hbal_moves)] if args.hbal_moves else []
    if not shutil.which("hbal"):
        sys.exit("hbal.py: hbal is missing; install the package ganeti-htools")
    for nodes in map(int, args.sizes.split(",")):
        for seed in range(1, args.seeds + 1):
            instances = cluster(nodes, nodes * args.per_node, seed)
            with tempfile.TemporaryDirectory() as work:
                data, shot = Path(work, "cluster.txt"), Path(work, "snapshot.json")
                data.write_text(text(nodes, instances))
                shot.write_text(json.dumps(snapshot(nodes, instances)))
                before = hbal(data, 60, "-l", "0")[0]
                _, theirs, moves, cpu = hbal(data, args.hbal_seconds, *limit)
                results = []
                for most in [None, moves]:
                    steps, our_cpu = ballast(args.ballast, shot, args.gain_min, 600, most)
                    after = list(instances)
                    for step in steps:
                        vm = int(step["vm"][1:])
                        after[vm] = (*after[vm][:2], int(step["to"][1:]))
                    data_after = Path(work, "after.txt")
                    data_after.write_text(text(nodes, after))
                    results.append((hbal(data_after, 60, "-l", "0")[0], len(steps), our_cpu))
                (ours, our_moves, our_cpu), (bound, bound_moves, bound_cpu) = results
            print(json.dumps({
                "bench": "hbal", "nodes": nodes, "instances": len(instances), "seed": seed,
                "score_before": before,
                "ballast_score": ours, "ballast_moves": our_moves, "ballast_cpu_seconds": our_cpu,
                "bounded_score": bound, "bounded_moves": bound_moves, "bounded_cpu_seconds": bound_cpu,
                "hbal_score": theirs, "hbal_moves": moves, "hbal_cpu_seconds": cpu,
            }), flush=True)


if __name__ == "__main__":
    main()
