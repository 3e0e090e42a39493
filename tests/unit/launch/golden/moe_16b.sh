#!/bin/bash
# Written by dsv3 VERSION for launcher.profile=h800: 6 runs, 8 ranks each.
# Not to be edited: asked for the same runs again, dsv3 writes a new one.
#SBATCH --job-name=dsv3-table5_balance-0123456789ab
#SBATCH --comment=dsv3:0123456789ab
#SBATCH --array=0-5%4
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=8
#SBATCH --time=1-00:00:00
#SBATCH --partition=gpu
#SBATCH --exclusive
#SBATCH --output=%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120

set -uo pipefail
submission=/shared/you/ablations/runs/.jobs/0123456789ab
cd -- /shared/you/ablations || exit 3
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export TORCH_NCCL_TRACE_BUFFER_SIZE=2000

# What is done once per start, before and after the ranks.
once() {
  /shared/you/dsv3/.venv/bin/python -P -m dsv3.launch.slurm.job "$1" "$submission" "$SLURM_ARRAY_TASK_ID" "${@:2}"
}

trap : TERM USR1  # Slurm tells the ranks itself; this shell waits for them
once begin
code=$?
if [ "$code" -eq 100 ]; then exit 0; fi
if [ "$code" -ne 0 ]; then exit "$code"; fi

# Outside of any container, where scontrol is. Without it the ranks could not meet, and would wait.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [ -z "$MASTER_ADDR" ]; then
  once end -1
  exit 3
fi
export MASTER_ADDR
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # since 22.05 srun does not take it from sbatch

srun --kill-on-bad-exit=1 --wait=60 \
  /shared/you/dsv3/.venv/bin/python -P -m dsv3.launch.slurm.task "$submission" "$SLURM_ARRAY_TASK_ID" &
ranks=$!
wait "$ranks"
code=$?
while kill -0 "$ranks" 2>/dev/null; do
  wait "$ranks"
  code=$?
done

once end "$code"
code=$?
# 85: saved, or lost a rank, and to be gone on with. A job that somebody cancelled, or that Slurm
# requeues itself, is not running any more. The requeue ends this script, not its own last line.
# Not by SLURM_JOB_ID: that of one task is the array's own, and would requeue all of them.
job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
if [ "$code" -eq 85 ] &&
  scontrol show job --oneliner "$job" | grep -q " JobState=RUNNING " &&
  scontrol requeue "$job"; then
  sleep 60
fi
exit "$code"
