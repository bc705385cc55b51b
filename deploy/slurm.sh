#!/usr/bin/env bash
# One run on Slurm nodes: sbatch deploy/slurm.sh policy=llama3_8b reward=ultrarm_13b data=shp out=/shared/runs/first
#
# Change: partition, GPUs, nodes, and VENV, an environment with this package on a disk that all nodes share, as `out` is.
# `ray symmetric-run` starts Ray on every node, runs the command on the first and takes Ray down at its end. The run
# stops by itself (run.max_hours) before Slurm's limit with a snapshot and exit code 75; the job is then queued again and
# goes on, as it does after a node fails or a job of higher priority preempts it (--requeue).
#SBATCH --job-name=aisp
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=48G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=aisp-%j.log
set -euo pipefail

source "${VENV:-$HOME/aisp}/bin/activate"
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
export RAY_USAGE_STATS_ENABLED=0
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node

code=0
srun --kill-on-bad-exit=1 ray symmetric-run --address "$address:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-gpus "${SLURM_GPUS_ON_NODE:-0}" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
    python jobs/eval.py run.max_hours=11.5 "$@" || code=$?
if [ "$code" = 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
