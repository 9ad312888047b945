#!/usr/bin/env bash
# Debian packages that some tests use where they are there: a Slurm of one node (tests/support/slurm_node.py), and Chromium for the report.
set -u
export PATH="$PATH:/usr/sbin" DEBIAN_FRONTEND=noninteractive
there() { for name in "$@"; do command -v "$name" > /dev/null || return 1; done; }

# install WHAT TESTS "COMMANDS" PACKAGE...: the packages, unless the commands are there; without them the tests are skipped
install() {
  local what=$1 tests=$2 commands=$3 why log
  shift 3
  # shellcheck disable=SC2086
  there $commands && return
  if ! command -v apt-get > /dev/null; then why="this system has no apt-get"
  elif [ "$(id -u)" != 0 ]; then why="only root can install it"
  else
    log=$(mktemp)
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; } > "$log" 2>&1
    # shellcheck disable=SC2086
    there $commands && rm "$log" && return
    why="apt-get failed: $(grep -m 1 '^E:' "$log" || tail -n 1 "$log")"
    rm "$log"
  fi
  echo "tests/packages.sh: $what is not installed ($why); $tests is skipped" >&2
}

install Slurm tests/system/test_slurm.py "slurmctld slurmd sbatch munged" slurmctld slurmd slurm-client munge
install Chromium tests/system/test_page_browser.py chromium chromium
