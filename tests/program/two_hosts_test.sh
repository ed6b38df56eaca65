#!/usr/bin/env bash
# Training on two hosts, made of two network namespaces joined by a cable: two ranks on each, tensor parallel inside,
# pipeline or data parallel across, with messages of 32 MB; and the cable cut. Needs the right to make namespaces (root) and iproute2.
#   two_hosts_test.sh PROGRAM [CASE...]
# TWO_HOSTS_STEPS: how many steps the two training cases run in their long form, which is left out unless it is set.
# shellcheck source=tests/program/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

id=tx$$
net=10.$((64 + $$ / 256 % 64)).$(($$ % 256))  # a private subnet, of the two namespaces alone
namespaces=("$id-a" "$id-b")

end_hosts() {
  local name
  for name in "${namespaces[@]}"; do
    ip netns pids "$name" 2>/dev/null | xargs -r kill -KILL 2>/dev/null
    ip netns del "$name" 2>/dev/null
  done
}
# make_hosts: both namespaces, and `hosts` and `agent` for mpirun, in the case's directory.
make_hosts() {
  command -v ip >/dev/null || skip "iproute2 is not installed"
  { ip netns add "${namespaces[0]}" && ip netns add "${namespaces[1]}"; } 2>/dev/null || { end_hosts; skip "network namespaces are not allowed here"; }
  trap end_hosts EXIT
  local side
  ip link add "$id-a" type veth peer name "$id-b" || { end_hosts; skip "no virtual network interfaces here"; }
  for side in a b; do
    ip link set "$id-$side" netns "$id-$side"
    ip -n "$id-$side" link set lo up
    ip -n "$id-$side" link set "$id-$side" up
  done
  ip -n "$id-a" addr add "$net.1/24" dev "$id-a"
  ip -n "$id-b" addr add "$net.2/24" dev "$id-b"
  printf '%s slots=2\n' "$net.1" "$net.2" >hosts
  # Open MPI starts its daemon on the other host with this in place of ssh, which stays as long as the daemon, and longer
  # where no word of that comes through. Names make two hosts of one machine.
  cat >agent <<AGENT
#!/bin/sh
[ "\$1" = $net.1 ] && host=$id-a || host=$id-b
shift
setsid --wait ip netns exec \$host unshare --uts sh -c "hostname \$host; \$*" >"$PWD/daemon.log" 2>&1
status=\$?
while [ -e "$PWD/cut" ]; do sleep 1; done
exit \$status
AGENT
  chmod +x agent
}
# on_two_hosts COMMAND...: four ranks, two a host.
on_two_hosts() {
  ip netns exec "$id-a" unshare --uts sh -c 'hostname "$0"; exec "$@"' "$id-a" "$root/launch/run.sh" -n 4 \
    --program "$program" --hostfile hosts --mca plm_rsh_agent "$PWD/agent" --mca oob_tcp_if_include "$net.0/24" \
    --mca btl_tcp_if_include "$net.0/24" --mca mpi_yield_when_idle 1 -- "$@" </dev/null
}

quiet=(--set checkpoint.every_steps=0 --set log.validation_every_steps=0 --set log.final_validation_rows=1)
# Boundary tensors of 32 MB: 128 x 512 tokens x 128 x 4 bytes.
wide_boundary=(--set model.d_model=128 --set model.d_ff=128 --set data.sequence_length=512 --set parallel.global_batch=256
  --set parallel.microbatch_size=128 --set model.chunk=64)
# Gradients of 50 MB, half of them on each rank of a tp group.
many_weights=(--set model.d_model=640 --set model.d_ff=2560)
losses() { sed -n 's/.*"train\/loss":\([0-9.e+-]*\).*/\1/p' "$1/metrics.jsonl"; }
# train_on HOSTS DIRECTORY OPTION...: on one rank, on four of this host, or on two hosts.
train_on() {
  local launch=("$program") hosts=$1 directory=$2
  [ "$hosts" = rank ] || launch=(on_two_hosts)
  [ "$hosts" != one ] || launch=("$root/launch/run.sh" -n 4 --program "$program" --)
  run "${launch[@]}" train "${@:3}" "${quiet[@]}" --set "log.run_directory=$directory"
  expect 0
  losses "$directory" >"$directory.losses"
}
# equals_one_host AXIS OPTION...: the losses of one rank alone, within the bound of tests/equivalence, for three steps,
# after which differences of rounding grow. The long form: those of the same mesh on one host, to the bit.
equals_one_host() {
  local mesh=(--set parallel.timeout_seconds=60 --set parallel.tp=2 --set "parallel.$1=2")
  shift
  make_hosts
  tokens || return
  config short.textproto 3
  train_on rank rank --config short.textproto "$@"
  train_on two two --config short.textproto "$@" "${mesh[@]}"
  expect 0 "4 ranks"
  expect_not "span"
  paste rank.losses two.losses | awk '
    function abs(x) { return x < 0 ? -x : x }
    NF != 2 || abs($1 - $2) > 1e-5 * $1 { bad = 1 }
    END { exit bad || NR != 3 }' || wrong "other losses: $(paste rank.losses two.losses)"
  [ -n "${TWO_HOSTS_STEPS:-}" ] || return
  config long.textproto "$TWO_HOSTS_STEPS"
  train_on two long-two --config long.textproto "$@" "${mesh[@]}"
  train_on one long-one --config long.textproto "$@" "${mesh[@]}"
  cmp long-one.losses long-two.losses && [ "$(wc -l <long-two.losses)" = "$TWO_HOSTS_STEPS" ] ||
    wrong "other losses: $(paste long-one.losses long-two.losses | awk '$1 != $2' | head -n 3)"
}
case_pipeline_across_hosts() { equals_one_host pp "${wide_boundary[@]}"; }
case_data_across_hosts() { equals_one_host dp "${many_weights[@]}"; }

# Ranks in the wrong order: said before the first step, once.
case_tensor_group_spans_hosts() {
  make_hosts
  tokens || return
  config apart.textproto 2
  run on_two_hosts train --config apart.textproto --set parallel.tp=4 --set model.num_heads=4 --set model.d_model=32
  expect 0 "tensor-parallel group" "$id-a, $id-b" "parallel.tp to at most"
  [ "$(grep -c "tensor-parallel group" "$output")" = 1 ] || wrong "said $(grep -c "tensor-parallel group" "$output") times"
}

# on_both: the processes of both hosts, ranks and launchers.
on_both() {
  local name
  for name in "${namespaces[@]}"; do
    ip netns pids "$name" | xargs -r ps -o pid=,comm= -p | sed "s/^/$name:/"
  done
}
# The network goes in mid-step: every rank says what it waited for, and nothing stays on either host.
case_network_cut() {
  make_hosts
  tokens || return
  config run.textproto 100000000
  local limit=5 margin=40 rank steps=0 job _
  on_two_hosts train --config run.textproto "${quiet[@]}" --set model.d_model=64 --set data.sequence_length=256 \
    --set parallel.global_batch=32 --set parallel.microbatch_size=16 --set parallel.timeout_seconds=$limit \
    --set parallel.tp=2 --set parallel.pp=2 >"$output" 2>&1 &
  job=$!
  for _ in $(seq 300); do
    steps=$(grep -cs '"train/loss"' run/metrics.jsonl)
    [ "${steps:-0}" -lt 3 ] || break
    sleep 0.1
  done
  [ "${steps:-0}" -ge 3 ] || { wrong "no steps: $(tail -n 15 "$output")"; return; }
  touch cut
  ip -n "$id-a" link set "$id-a" down
  SECONDS=0
  while [ -n "$(on_both)" ] && [ $SECONDS -lt $((limit + margin)) ]; do sleep 0.2; done
  [ -z "$(on_both)" ] || wrong "still there $SECONDS s after the cut: $(on_both | tr '\n' ' ')"
  end_hosts
  status=0
  wait $job || status=$?
  expect 7 "what every rank did last" "$id-a, $id-b; is the network between them up?" "exit code 7"
  for rank in 0 1 2 3; do
    grep -qE "error: Rank $rank in [a-z_]+ #[0-9]+ of '[^']+': waited $limit\.[0-9] s for ranks? [0-3] \($id-[ab]\)" \
      "run/log/rank-$rank.txt" || wrong "rank $rank does not say what it waited for: $(tail -n 3 "run/log/rank-$rank.txt")"
  done
}

run_cases "$@"
