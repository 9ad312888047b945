"""How a plan is spread: over this machine's cores and GPUs, a Ray cluster, or a Slurm queue; one file an engine."""
