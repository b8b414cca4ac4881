#!/bin/bash
# Eight workers, one study: every task of the array runs the same command and joins.
#
#   export PRUNETUNE_STORAGE='postgresql://me:PASSWORD@database/prunetune'
#   sbatch --export=ALL studies/slurm-array.sh
#
# Tasks may start late, be pre-empted or be killed; `sbatch` the file again to resume.
#SBATCH --job-name=prunetune
#SBATCH --array=0-7
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=48G
#SBATCH --time=04:00:00
#SBATCH --requeue
# SIGTERM two minutes before the limit: the running trial is queued again for another task.
#SBATCH --signal=TERM@120

set -euo pipefail
: "${PRUNETUNE_STORAGE:?set it to the URL of a PostgreSQL database}"

# exec: the signal has to reach prunetune, not this shell. From 22.05 on srun is not told by sbatch
# how many CPUs a task has, and would give it one.
exec srun --cpus-per-task "$SLURM_CPUS_PER_TASK" prunetune search \
    --model llava-next --keep 0.25 --trials 400 \
    --data "${DATA:-$HOME/pictures}" \
    --out "studies/llava-next-keep0.25/task-${SLURM_ARRAY_TASK_ID}" \
    --cache-dir "${SLURM_TMPDIR:-/tmp/$USER}/prunetune" \
    --threads "$SLURM_CPUS_PER_TASK"
