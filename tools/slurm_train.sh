#!/usr/bin/env bash
# Trains a recipe under slurm, on one node or many; goes on by itself after a preemption and at the time limit.
#
#   sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --time 12:00:00 tools/slurm_train.sh RECIPE [ARGUMENT...]
#
# One task is one process with one device. What follows the script goes to `xrlhf train`. Two minutes before the time
# limit slurm sends SIGUSR1 here; all processes save at the end of their step and end with status 75, and the job queues
# again. Options of sbatch given before the script override the lines below; docs/clusters.md says more.
#
#SBATCH --job-name=xrlhf
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
set -uo pipefail

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    echo "error: this is a batch script: sbatch [OPTION...] tools/slurm_train.sh RECIPE [ARGUMENT...]" >&2
    exit 2
fi
if [[ $# -eq 0 ]]; then
    echo "error: name a recipe: sbatch [OPTION...] tools/slurm_train.sh RECIPE [ARGUMENT...]" >&2
    exit 2
fi

# XRLHF_COMMAND may name what runs in place of `xrlhf`, such as "apptainer exec image.sif xrlhf".
read -r -a xrlhf <<<"${XRLHF_COMMAND:-xrlhf}"
# Since slurm 22.05 a step does not inherit the job's number.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-${SRUN_CPUS_PER_TASK:-}}
[[ -n $SRUN_CPUS_PER_TASK ]] || unset SRUN_CPUS_PER_TASK

srun --kill-on-bad-exit=1 "${xrlhf[@]}" train "$@" --launcher slurm --resume auto &
step=$!
received=
pass_on() {
    received+=" $1"
    # srun hands SIGUSR1 on to every task; of SIGTERM it would kill them.
    kill -USR1 "$step" 2>/dev/null
}
trap 'pass_on SIGUSR1' USR1
trap 'pass_on SIGTERM' TERM

# A trapped signal ends a wait early, with a status above 128, while srun goes on.
while :; do
    wait "$step"
    status=$?
    kill -0 "$step" 2>/dev/null || break
done

job=$(scontrol show job "$SLURM_JOB_ID")
[[ $job == *PreemptTime=2* ]] && received+=" preemption"
echo "start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID ended with status $status${received:+ after$received}"
# 75: saved and stopped. Above 128: cut off, in its start or in a long step; what it saved before is whole.
# A job that is not running any more was cancelled, or slurm itself queues it again.
if [[ $status -eq 75 || ($status -gt 128 && -n $received) ]] && [[ $job == *JobState=RUNNING* ]]; then
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    echo "error: job $SLURM_JOB_ID could not be queued again: submit it once more to go on" >&2
fi
exit "$status"
