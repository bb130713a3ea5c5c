#!/usr/bin/env bash
# Several hosts on one machine, for `ray up`: each has its own network, processes, /root, /tmp and sshd.
#
#   hosts.sh up N           a client, cli (10.77.0.10), and N hosts, h0 (10.77.0.11), h1, ..., on one switch
#   hosts.sh exec NAME CMD  run CMD there as root, in bash, as after a login
#   hosts.sh kill NAME      power cut: all its processes are gone at once; its address still refuses
#                           connections, so that others notice in a second or two
#   hosts.sh start NAME     power on again, with what was on its disk
#   hosts.sh cut NAME       pull its network cable: silence, which others notice when their patience ends
#   hosts.sh mend NAME      put the cable back
#   hosts.sh down           remove everything, from any state
# No packet gets out: switch and cables are in network namespaces with no connection to the machine's. Needs
# root, iproute2, openssh-server, util-linux; rsync for `ray up`.
#
#   LAB_DIR     folder of all state, removed by down
#   LAB_PREFIX  of the namespaces' names, so that two labs fit on a machine
#   LAB_OWNER   a process; when it ends, for any reason, everything is removed
#   LAB_ENV     what is exported in a login there: NAME=VALUE ...
#   LAB_SHOW    folders below /root or /tmp that all hosts share; the rest of the disk they share anyway
set -eu
S=${LAB_DIR:?} P=${LAB_PREFIX:-lab} NET=10.77.0

add() { # NAME IP: a network namespace with a cable to the switch, then power on
  ip netns add "$P-$1"
  ip link add eth0 netns "$P-$1" type veth peer name "$1" netns "$P-switch"
  ip -n "$P-switch" link set "$1" master br0 up
  ip -n "$P-$1" addr add "$2/24" dev eth0
  ip -n "$P-$1" link set eth0 up
  ip -n "$P-$1" link set lo up
  # Ray takes its address from the route to 8.8.8.8, without sending anything; else 127.0.0.1.
  ip -n "$P-$1" route add default dev eth0
  local home=$S/$1/root
  mkdir -p "$home/.ssh" "$S/$1/tmp"
  chmod 700 "$home" "$home/.ssh"
  cp "$S/key" "$home/.ssh/id_ed25519"
  cp "$S/key.pub" "$home/.ssh/authorized_keys"
  echo "export ${LAB_ENV:-LAB_ENV}" > "$home/.bashrc"
  start "$1"
}

start() { # NAME
  # bash is process 1, because it buries orphans: python would not, and `ray stop` would wait for them.
  local host='
    hostname "$1"; cd "$2"; shift 2
    mount -t tmpfs -o size=2g tmpfs /dev/shm
    mount -t tmpfs tmpfs /run; mkdir /run/sshd
    for folder; do mkdir -p ".$folder"; mount --rbind "$folder" ".$folder"; done
    mount --rbind root /root; mount --rbind tmp /tmp; cd /root
    echo "power on"
    /usr/sbin/sshd -D -e -f /dev/null -h /root/.ssh/id_ed25519 -o PidFile=none -o MaxStartups=100 &
    while :; do wait -n || :; sleep 1; done'
  rm -f "$S/$1/log"
  # shellcheck disable=SC2086  # LAB_SHOW is a list
  ip netns exec "$P-$1" env -i HOME=/root PATH="$SYSTEM_PATH" \
    unshare --pid --fork --kill-child --mount --mount-proc --uts --ipc \
    bash -ec "$host" bash "$1" "$S/$1" ${LAB_SHOW:-} > "$S/$1/log" 2>&1 < /dev/null &
  echo $! > "$S/$1/unshare.pid"
  for ((i = 0; i < 100; i++)); do
    if grep -qs "^power on" "$S/$1/log"; then return; fi
    sleep 0.05
  done
  cat "$S/$1/log" >&2
  return 1
}
SYSTEM_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

process_1() { awk '{print $1}' "/proc/$(cat "$S/$1/unshare.pid")"/task/*/children; }

case ${1:-} in
  up)
    mkdir -p "$S"
    ssh-keygen -q -t ed25519 -N '' -f "$S/key"
    ip netns add "$P-switch"
    ip -n "$P-switch" link add br0 type bridge
    ip -n "$P-switch" link set br0 up
    add cli $NET.10
    for ((n = 0; n < $2; n++)); do add "h$n" $NET.$((11 + n)); done
    if [ "${LAB_OWNER:-}" ]; then
      at_its_end='tail --pid="$1" -f /dev/null; "$2" down'
      setsid bash -c "$at_its_end" bash "$LAB_OWNER" "$0" > /dev/null 2>&1 < /dev/null &
    fi
    ;;
  exec)
    name=$2 && shift 2
    exec nsenter -t "$(process_1 "$name")" --all -- env -i HOME=/root PATH="$SYSTEM_PATH" \
      bash -c "cd; source .bashrc; $*"
    ;;
  kill)
    kill -9 "$(process_1 "$2")"
    rm "$S/$2/unshare.pid" # or down would kill another process that has the number by then
    ;;
  start) start "$2" ;;
  cut) ip -n "$P-switch" link set "$2" down ;;
  mend) ip -n "$P-switch" link set "$2" up ;;
  down)
    for pid in "$S"/*/unshare.pid; do
      kill -9 "$(process_1 "$(basename "$(dirname "$pid")")")" 2> /dev/null || :
    done
    sleep 0.5
    for name in $(ip netns list | awk -v prefix="$P-" 'index($1, prefix) == 1 {print $1}'); do
      ip netns del "$name"
    done
    rm -rf --one-file-system "$S"
    ;;
  *)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit 2
    ;;
esac
