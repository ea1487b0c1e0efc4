#!/usr/bin/env bash
# The planner on public problems: one line of JSON a run on standard output.
#
#   placement/benches/public.sh BALLAST DATA [btrplace|fragments]...
#
# BALLAST is the command, DATA a folder with btrplace/*.json.gz and vmr/gen.py
# (which writes clusters: gen.py OUT_DIR COUNT). Every plan is replayed by the
# simulator; a run whose plan is refused fails the script.
set -euo pipefail

ballast=$1
data=$2
shift 2
kinds=("$@")
[[ ${#kinds[@]} -gt 0 ]] || kinds=(btrplace fragments)
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
    *)
        echo "public.sh: unknown kind '$kind'; use 'btrplace' or 'fragments'" >&2
        exit 2
        ;;
    esac
done
