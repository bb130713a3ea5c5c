#!/usr/bin/env bash
# isolated.sh CMD...: runs CMD in its own network (loopback only), pid, mount and ipc namespaces, with its own
# /tmp/ray and home. When CMD ends, all that it started is gone: a Ray cluster cannot leak, meet another one
# or find another one's token. Needs root on Linux.
folder=$(mktemp -d)
mkdir "$folder/ray" "$folder/home"
# bash stays process 1 and reaps; python would not, and `ray stop` waits for zombies.
unshare --net --pid --fork --mount --ipc --mount-proc --kill-child bash -c '
    folder=$1; shift
    ip link set lo up && mkdir -p /tmp/ray && mount --bind "$folder/ray" /tmp/ray || exit 125
    unset RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_TMPDIR TMPDIR
    export HOME="$folder/home" RAY_USAGE_STATS_ENABLED=0
    "$@"
    exit $?' _ "$folder" "$@"
code=$?
rm -rf --one-file-system "$folder"
exit $code
