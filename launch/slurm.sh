#!/usr/bin/env bash
# Runs lmx on the nodes of a SLURM job, which is requeued until the run is finished:
#
#   lmx launch 'sbatch -N 4 --gpus-per-node=8 -t 12:00:00 launch/slurm.sh' \
#     experiments/gpt2_124m.gin Mesh.data=32 --run /shared/gpt2 --plan h100-8x4
#
# Arguments after the script are those of `lmx train`. Each node runs one process, which
# uses all devices of the node; `lmx` must be on the PATH there. Options of sbatch come
# before the script, or replace these lines in a copy:
#SBATCH --job-name=lmx
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# Two minutes before its time limit, the job signals the run, which has 110 s to save.

srun lmx train --restarts 5 --grace 110 "$@"
status=$?
# 143: saved but not finished. A cancelled job does not reach this line.
if [ "$status" = 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
