# The kernel's NBD client: a volume in a file of the machine, attached, used, its server killed, adopted, taken away.

FILE=/tmp/volume
backend() { cat /sys/block/nbd0/backend 2>/dev/null; }
# Serves until `detach`; waits for the device.
serve() { # identifier, words
  mkfifo /tmp/hold; rm -f /tmp/device
  attach $FILE "$@" </tmp/hold >/tmp/device 2>/tmp/said & SERVER=$!
  exec 3>/tmp/hold
  await 'grep -q /dev/ /tmp/device || ! kill -0 $SERVER'
  rm /tmp/hold; grep -q /dev/ /tmp/device || die "no device: $(cat /tmp/said)"
}
detach() { exec 3>&-; wait $SERVER; ENDED=$?; }
sum() { dd if=$1 bs=1M iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1; }

dd if=/dev/urandom of=$FILE bs=1M count=96 2>/dev/null
WANT=$(sha256sum < $FILE | cut -d' ' -f1)

case_is "a read-only device is the volume and takes no write"
serve backup-abc nbd read-only
[ "$(cat /tmp/device)" = /dev/nbd0 ] || die "$(cat /tmp/device)"
[ "$(backend)" = backup-abc ] || die "backend $(backend)"
[ "$(cat /sys/block/nbd0/queue/logical_block_size)" = 512 ] || die "block size"
[ "$(blockdev --getro /dev/nbd0)" = 1 ] || die "not read-only"
# Four links; the block layer makes no more queues than there are processors.
[ "$(ls /sys/block/nbd0/mq | wc -l)" = 2 ] || die "queues: $(ls /sys/block/nbd0/mq)"
must_not dd if=/dev/zero of=/dev/nbd0 bs=4k count=1 oflag=direct 2>/dev/null
[ "$(sum /dev/nbd0)" = "$WANT" ] || die "other bytes"
detach; [ $ENDED = 0 ] || die "detach: $ENDED $(cat /tmp/said)"
[ -z "$(backend)" ] || die "still there"

case_is "what is written is found again"
serve backup-abc nbd
mkfs.ext4 -q -F /dev/nbd0 || die mkfs
mkdir -p /mnt/a; must mount /dev/nbd0 /mnt/a
dd if=/dev/urandom of=/tmp/content bs=1M count=24 2>/dev/null
must cp /tmp/content /mnt/a/content; sync

case_is "a device in use stays, and its holder is named"
detach; [ $ENDED = 3 ] || die "detach of a mounted device: $ENDED"
grep -q "the mount at /mnt/a" /tmp/said || die "$(cat /tmp/said)"

# That server has ended without taking the device away, as one that was killed.
case_is "a foreign identifier is refused, nobody else's server takes the place"
must_not attach $FILE backup-xyz nbd adopt </dev/null 2>/tmp/said
grep -q "no device of this identifier" /tmp/said || die "$(cat /tmp/said)"

case_is "another server adopts a mounted device"
serve backup-abc nbd adopt
echo 3 > /proc/sys/vm/drop_caches
must cmp /tmp/content /mnt/a/content
must umount /mnt/a; must e2fsck -fn /dev/nbd0 >/dev/null 2>&1
detach; [ $ENDED = 0 ] || die "detach: $(cat /tmp/said)"

case_is "killed in mid read, adopted, the reader gets every byte"
WANT=$(sha256sum < $FILE | cut -d' ' -f1)
serve backup-abc nbd
(sum /dev/nbd0 > /tmp/sum) & READER=$!
await '[ $(awk "{print \$3}" /sys/block/nbd0/stat) -gt 8192 ]'
kill -9 $SERVER; exec 3>&-; wait $SERVER 2>/dev/null
await 'dmesg | grep -q "nbd0: Dead connection\|nbd0: Receive control failed"'
kill -0 $READER || die "the reader did not wait"
BEGUN=$(cut -d. -f1 /proc/uptime)
serve backup-abc nbd adopt
wait $READER
echo "adopted read took $(( $(cut -d. -f1 /proc/uptime) - BEGUN )) s"
[ "$(cat /tmp/sum)" = "$WANT" ] || die "other bytes after adoption"

case_is "killed in mid write, adopted, every byte arrives"
dd if=/dev/urandom of=/tmp/content bs=1M count=64 2>/dev/null
(dd if=/tmp/content of=/dev/nbd0 bs=256k oflag=direct conv=fsync 2>/tmp/dd; echo $? > /tmp/ended) & WRITER=$!
await '[ $(awk "{print \$7}" /sys/block/nbd0/stat) -gt 8192 ]'
kill -9 $SERVER; exec 3>&-; wait $SERVER 2>/dev/null
serve backup-abc nbd adopt
wait $WRITER; [ "$(cat /tmp/ended)" = 0 ] || die "$(cat /tmp/dd)"
detach; [ $ENDED = 0 ] || die "detach: $(cat /tmp/said)"
dd if=$FILE bs=1M count=64 2>/dev/null | cmp - /tmp/content || die "other bytes in the volume"

case_is "a volume of another size is not put behind a device"
serve backup-abc nbd
kill -9 $SERVER; exec 3>&-; wait $SERVER 2>/dev/null
truncate -s 64M /tmp/smaller
must_not attach /tmp/smaller backup-abc nbd adopt </dev/null 2>/tmp/said
grep -q "not a volume of" /tmp/said || die "$(cat /tmp/said)"
[ "$(backend)" = backup-abc ] || die "the device is gone"
serve backup-abc nbd adopt
detach; [ $ENDED = 0 ] || die "detach: $(cat /tmp/said)"
