#!/usr/bin/env bash
# The planner on public and made-up problems: one line of JSON a run on standard output.
#
#   placement/benches/public.sh BALLAST DATA [btrplace|fragments|balance|hbal|roadef]...
#
# BALLAST is the command, DATA a folder with btrplace/*.json.gz, vmr/gen.py
# (which writes clusters: gen.py OUT_DIR COUNT) and roadef/*.txt.xz. Every plan
# is replayed by the simulator, every cost of machine reassignment counted by a
# checker of its own; a run that does not hold fails the script. Machine
# reassignment ends with a table of medians; ROADEF_SECONDS (10, or 10,60,300)
# and ROADEF_SEEDS (5) say how long it takes. hbal (package ganeti-htools) is
# compared only when asked for, on clusters of HBAL_SIZES nodes (20,50).
set -euo pipefail

ballast=$1
data=$2
shift 2
kinds=("$@")
[[ ${#kinds[@]} -gt 0 ]] || kinds=(btrplace fragments balance roadef)
clusters=${CLUSTERS:-5}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for kind in "${kinds[@]}"; do
    case $kind in
    btrplace)
        for file in "$data"/btrplace/*.json.gz; do
            "$ballast" bench btrplace "$file"
        done
        ;;
    fragments)
        python3 "$data/vmr/gen.py" "$work" "$clusters" >&2
        for file in "$work"/flex_vm_H_*.json; do
            "$ballast" bench fragments "$file" --moves 50 --seconds 5
        done
        ;;
    balance)
        for seed in 1 2 3 4 5; do
            "$ballast" bench balance --hosts 1000 --vms 10000 --seed "$seed"
            "$ballast" bench balance --hosts 1000 --vms 10000 --case drain --seed "$seed"
            "$ballast" bench balance --hosts 1000 --vms 10000 --case loss --seed "$seed"
        done
        "$ballast" bench balance --hosts 5000 --vms 50000
        ;;
    hbal)
        "$(dirname "$0")"/hbal.py "$ballast" --sizes "${HBAL_SIZES:-20,50}" --seeds 5
        ;;
    roadef)
        "$(dirname "$0")"/roadef.py "$ballast" "$data/roadef" \
            --seconds "${ROADEF_SECONDS:-10}" --seeds "${ROADEF_SEEDS:-5}"
        ;;
    *)
        echo "public.sh: unknown kind '$kind'; use 'btrplace', 'fragments', 'balance', 'hbal' or 'roadef'" >&2
        exit 2
        ;;
    esac
done
