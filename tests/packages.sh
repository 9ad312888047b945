#!/usr/bin/env bash
# Debian packages that some tests use where they are there: a Slurm of one node (tests/slurm_node.py).
set -u
commands=(slurmctld slurmd sbatch munged)
export PATH="$PATH:/usr/sbin"
there() { for name in "${commands[@]}"; do command -v "$name" > /dev/null || return 1; done; }
there && exit 0
why=""
if ! command -v apt-get > /dev/null; then why="this system has no apt-get"
elif [ "$(id -u)" != 0 ]; then why="only root can install them"
else
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge; } > "$log" 2>&1
  there && rm "$log" && exit 0
  why="apt-get failed: $(grep -m 1 '^E:' "$log" || tail -n 1 "$log")"
  rm "$log"
fi
echo "tests/packages.sh: Slurm is not installed ($why); tests/test_slurm.py is skipped" >&2
