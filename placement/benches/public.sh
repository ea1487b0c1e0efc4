#!/usr/bin/env bash
# The planner on public problems: one line of JSON a run on standard output.
#
#   placement/benches/public.sh BALLAST DATA [btrplace|fragments|roadef]...
#
# BALLAST is the command, DATA a folder with btrplace/*.json.gz, vmr/gen.py
# (which writes clusters: gen.py OUT_DIR COUNT) and roadef/*.txt.xz. Every plan
# is replayed by the simulator, every cost of machine reassignment counted by a
# checker of its own; a run that does not hold fails the script. Machine
# reassignment ends with a table of medians; ROADEF_SECONDS (10, or 10,60,300)
# and ROADEF_SEEDS (5) say how long it takes.
set -euo pipefail

ballast=$1
data=$2
shift 2
kinds=("$@")
[[ ${#kinds[@]} -gt 0 ]] || kinds=(btrplace fragments roadef)
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
    roadef)
        "$(dirname "$0")"/roadef.py "$ballast" "$data/roadef" \
            --seconds "${ROADEF_SECONDS:-10}" --seeds "${ROADEF_SEEDS:-5}"
        ;;
    *)
        echo "public.sh: unknown kind '$kind'; use 'btrplace', 'fragments' or 'roadef'" >&2
        exit 2
        ;;
    esac
done
