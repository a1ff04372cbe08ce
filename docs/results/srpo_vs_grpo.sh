#!/usr/bin/env bash
# Makes the runs of docs/results/srpo_vs_grpo.md: three seeds each of GRPO, SRPO, and SRPO whose embeddings belong to the
# wrong episodes. All start from one policy and see the same initial states. About 30 minutes on 2 quiet cores.
# Usage: docs/results/srpo_vs_grpo.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-runs/srpo_vs_grpo}
[ -n "${EFFERENCE:-}" ] || cargo build --quiet --release -p efference
efference() { "${EFFERENCE:-target/release/efference}" "$@"; }
train() { efference train --quiet "$@" --set run.out="$out" --set record.rerun=false --set record.episodes_per_eval=0 --set eval.episodes_per_task=25; }

# What is finished stays, what was broken off goes on.
once() {
  local name=$1
  shift
  if grep -qs '"finished": true' "$out/$name/summary.json"; then return; fi
  if [ -d "$out/$name" ]; then efference train --quiet --resume "$out/$name"; else train "$@" --set run.name="$name"; fi
}

once sft configs/tabletop_srpo.toml --set rl=none
for seed in 0 1 2; do
  common=(--set sft=none --set model.init_from="$out/sft" --set run.seed=$seed)
  once grpo-s$seed configs/tabletop_grpo.toml "${common[@]}"
  once srpo-s$seed configs/tabletop_srpo.toml "${common[@]}"
  once shuffled-s$seed configs/tabletop_srpo.toml "${common[@]}" --set rl.encoder.shuffled=true
done
efference compare "$out"/{grpo,srpo,shuffled}-s?
