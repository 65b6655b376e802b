#!/usr/bin/env bash
# Installs what tests start for themselves, where that is allowed (root, apt): slurm, munge, Open MPI, Chromium.
# Without it those tests are skipped, with the reason. Nothing is started; a failure is a line, not an error.
set -uo pipefail

packages=(slurm-wlm munge openmpi-bin iproute2 chromium)
missing=()
for command in slurmctld munged mpirun ip chromium; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || missing+=("$command")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "not here, and neither root nor apt to install them: ${missing[*]}; tests that need them are skipped"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
echo "installing ${packages[*]}"
log=$(mktemp)
apt=(timeout 600 apt-get -q -o Acquire::Retries=1 -o Acquire::http::Timeout=30)
if ! { "${apt[@]}" update && "${apt[@]}" install --yes --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
    echo "apt-get could not install ${packages[*]}: $(tail -n 1 "$log"); tests that need them are skipped"
fi
rm -f "$log"
