#!/usr/bin/env bash
# A run on the nodes of a SLURM job, which goes back in the queue until the run is done:
#
#   lmx launch 'sbatch -N 4 --gpus-per-node=8 -t 12:00:00 launch/slurm.sh' \
#     experiments/gpt2_124m.gin Mesh.data=32 --run /shared/gpt2 --plan h100-8x4
#
# What follows the script are words of `lmx train`. Each node has one process, and that
# one all of the node's devices; `lmx` must be on the path there. Options of sbatch come
# before the script, or into a copy of these lines:
#SBATCH --job-name=lmx
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# Two minutes before the job's time is over the run is told to save, and has 110 s.

srun lmx train --restarts 5 --grace 110 "$@"
status=$?
# 143: saved, and not done. A job that is cancelled does not come so far.
if [ "$status" = 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
