#!/bin/sh
# An agent of the demo in a container: takes the first shard of demo:digits that no other container has.
#
# `--scale edge_agent=4` starts four equal containers, and none is told its number. So each locks the file of a shard
# in a volume that they share, and keeps it open as long as it lives: a lock ends with its holder, so nothing stale
# is left after a crash. The topic follows from the shard: whoever takes a shard up goes on where the last one was.
set -eu
shards="${CUTLAYER_SHARDS:-4}"
number=0
while [ "$number" -lt "$shards" ]; do
    exec 9>"${CUTLAYER_SHARD_LOCKS:-/run/shards}/$number"
    if flock --nonblock 9; then
        export CUTLAYER_USERNAME="${CUTLAYER_USERNAME_PREFIX:+$CUTLAYER_USERNAME_PREFIX$number}"
        [ -n "$CUTLAYER_USERNAME" ] || unset CUTLAYER_USERNAME
        exec edge-agent start --topic "demo/site-$number" --data demo:digits --shard "$number/$shards" "$@"
    fi
    number=$((number + 1))
done
echo "demo-agent: all $shards shards are taken (CUTLAYER_AGENTS=$shards); set CUTLAYER_AGENTS higher, or scale to less" >&2
exit 2
