#!/usr/bin/env bash
# A real slurm of two nodes on this machine, on loopback, for tests; needs root, slurm-wlm and munge.
# Usage: bash tools/ci/slurm_cluster.sh start DIR     prints the path of the slurm.conf to put into SLURM_CONF
#        bash tools/ci/slurm_cluster.sh stop DIR
# Everything it needs and writes is in DIR; a slurm of the machine's own is not touched. Jobs of the partition `urgent`
# take the nodes from those of `main`, which get SIGTERM and a minute.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
action=${1:?start or stop}
dir=$(readlink -f "${2:?a folder}")
export SLURM_CONF=$dir/slurm.conf

stop() {
    local pids
    scancel --full --signal=KILL --user=root 2>/dev/null || true
    pids=$(cat "$dir"/run/*.pid 2>/dev/null || true)
    [[ -n $pids ]] || return 0
    # shellcheck disable=SC2086
    kill $pids 2>/dev/null || true
    for _ in $(seq 100); do
        # shellcheck disable=SC2086
        kill -0 $pids 2>/dev/null || break
        sleep 0.1
    done
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Each node is a slurmd that listens on a port of its own.
node_line() {
    echo "NodeName=$1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$(free_port) CPUs=2 State=UNKNOWN"
}

start() {
    mkdir -p "$dir"/{state,spool,run}
    # munged wants no folder on the way that others may write to.
    chmod 755 "$dir" "$dir"/*/
    head -c 1024 /dev/urandom >"$dir/munge.key"
    chmod 600 "$dir/munge.key"
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/run/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
    # Credentials that are short-lived, and a scheduler that looks often, let a job that queues again start seconds
    # later, not minutes.
    cat >"$SLURM_CONF" <<CONF
ClusterName=xrlhf
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.sock,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$(node_line xrlhf1)
$(node_line xrlhf2)
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
CONF
    slurmctld -c
    slurmd -N xrlhf1
    slurmd -N xrlhf2
    for _ in $(seq 300); do
        [[ $(sinfo --noheader --Node --partition main --states idle 2>/dev/null | wc -l) -eq 2 ]] && break
        sleep 0.1
    done
    if [[ $(sinfo --noheader --Node --partition main --states idle | wc -l) -ne 2 ]]; then
        echo "slurm does not come up: $(tail -n 3 "$dir/slurmctld.log")" >&2
        stop
        exit 1
    fi
    echo "$SLURM_CONF"
}

"$action"
