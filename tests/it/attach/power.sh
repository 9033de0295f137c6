# An overlay on the machine's disk, attached by KIND as DEV, written to and flushed until the power goes.

case_is "written until the power goes"
mkdir -p /mnt/disk /mnt/disk/overlay; must mount -t ext4 /dev/vda /mnt/disk
mkdir -p /mnt/disk/overlay
mkfifo /tmp/hold
attach /mnt/disk/overlay bf-power $KIND </tmp/hold >/tmp/device 2>/tmp/said & SERVER=$!
exec 3>/tmp/hold
await 'grep -q /dev/ /tmp/device || ! kill -0 $SERVER'
grep -q $DEV /tmp/device || die "no device: $(cat /tmp/said)"
exercise record $DEV $SEED
die "it stopped: $(cat /tmp/said)"
