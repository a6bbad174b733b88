#!/usr/bin/env bash
# One process, two processes, and two hosts with addresses of their own, on one Linux machine: network namespaces joined
# by a cable (veth). Needs root, iproute2, and two cores for the times to mean anything.
#
#   sudo benchmarks/distributed/two_hosts.sh [PYTHON] [JSON]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${1:-.venv/bin/python}
json=${2:-}
export OMP_NUM_THREADS=1 TORCH_CPP_LOG_LEVEL=ERROR

for host in lm-a lm-b; do
  ip netns add $host || { echo "two_hosts: no network namespaces here (root? CAP_NET_ADMIN?)" >&2; exit 1; }
done
trap 'ip netns del lm-a; ip netns del lm-b' EXIT
ip link add lm-veth-a netns lm-a type veth peer name lm-veth-b netns lm-b
for side in a b; do
  [ $side = a ] && address=10.77.0.1 || address=10.77.0.2
  ip -n lm-$side addr add $address/24 dev lm-veth-$side
  ip -n lm-$side link set lm-veth-$side up
  ip -n lm-$side link set lo up
done
ip netns exec lm-b ping -c 1 -W 5 10.77.0.1 >/dev/null 2>&1 || sleep 1  # until the cable is up

run() {  # run HOSTS PROCESSES_PER_HOST OPTIONS...
  local hosts=$1 each=$2
  shift 2
  local job=("$python" -m torch.distributed.run --nproc-per-node "$each")
  local what=(-m benchmarks.distributed.scaling "$@" ${json:+--json "$json"})
  if [ "$hosts" = 1 ]; then
    "${job[@]}" --standalone "${what[@]}"
  else
    job+=(--nnodes 2 --master-addr 10.77.0.1 --master-port 29400)
    GLOO_SOCKET_IFNAME=lm-veth-b ip netns exec lm-b "${job[@]}" --node-rank 1 "${what[@]}" &
    GLOO_SOCKET_IFNAME=lm-veth-a ip netns exec lm-a "${job[@]}" --node-rank 0 "${what[@]}"
    wait
  fi
}

for options in "--problem sinusoid --tasks 256" "--problem conv4 --tasks 8"; do
  for hosts_and_each in "1 1" "1 2" "2 1"; do
    # shellcheck disable=SC2086  # two words and several options are meant
    run $hosts_and_each $options
  done
done
# in float64 the processes' parameters agree with one process's to far more digits than the digest takes
for hosts_and_each in "1 1" "1 2" "2 1"; do
  # shellcheck disable=SC2086
  run $hosts_and_each --problem sinusoid --tasks 25 --updates 20 --float64
done
