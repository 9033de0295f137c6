# Commands of all machines that mount: everything that blockferry keeps is below PLACE.

export BLOCKFERRY_PASSWORD=secret BLOCKFERRY_REPO=$PLACE/repo BLOCKFERRY_STATE=$PLACE/state BLOCKFERRY_CACHE_DIR=/tmp/cache
ferry() { blockferry "$@" 2>>/tmp/said || { echo "blockferry $* ended with $?"; cat /tmp/said; return 1; }; }
pid() { blockferry mounts --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p'; }
health() { blockferry mounts --json | sed -n 's/.*"health": "\(.*\)",/\1/p'; }
murder() { kill -9 $(pid); await '[ "$(health)" = dead ]'; }
# The device is no more, or is nobody's.
gone() { [ ! -e /sys/block/$(basename $DEVICE)/size ] || [ "$(cat /sys/block/$(basename $DEVICE)/size)" = 0 ]; }
sum() { dd if=$1 bs=1M iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1; }

