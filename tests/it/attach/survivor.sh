# A kind of device that outlives its server: a volume in a file of the machine, attached, used, its server killed, adopted, grown,
# left behind, taken away. KIND is the kind, DEV the device that it makes, GROWS whether the kernel lets it grow, ROUNDS how often a
# server is killed under writing; XFS and LINKS are set for the cases that only one kind does.

FILE=/tmp/volume
SYS=/sys/block/${DEV#/dev/}
# Serves until `detach`; waits for the device.
serve() { # identifier, words
  mkfifo /tmp/hold; rm -f /tmp/device
  attach $FILE "$@" </tmp/hold >/tmp/device 2>/tmp/said & SERVER=$!
  exec 3>/tmp/hold
  await 'grep -q /dev/ /tmp/device || ! kill -0 $SERVER'
  rm /tmp/hold; grep -q /dev/ /tmp/device || die "no device: $(cat /tmp/said)"
}
detach() { exec 3>&-; wait $SERVER; ENDED=$?; }
fell() { kill -9 $SERVER; exec 3>&-; wait $SERVER 2>/dev/null; }
sum() { dd if=$1 bs=1M iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1; }
# Seconds until a server that has just taken over has answered something, by field $1 of the statistics, and until all is done.
uptime_cs() { tr -d . < /proc/uptime | cut -d' ' -f1; }
answered() { awk "{print \$$1}" $SYS/stat; }
adopted() { # field, process, what
  BEFORE=$(answered $1); BEGUN=$(uptime_cs)
  serve bf-abc $KIND adopt
  await '[ $(answered '$1') -gt $BEFORE ] || ! kill -0 '$2' 2>/dev/null'
  FIRST=$(( $(uptime_cs) - BEGUN )); wait $2
  echo "STALL $KIND: $3 went on after ${FIRST}0 ms, and ended after $(( $(uptime_cs) - BEGUN ))0 ms"
}
listed() { attach list "$1"; }

dd if=/dev/urandom of=$FILE bs=1M count=96 2>/dev/null
WANT=$(sha256sum < $FILE | cut -d' ' -f1)

case_is "a read-only device is the volume and takes no write"
serve bf-abc $KIND read-only
[ "$(cat /tmp/device)" = $DEV ] || die "$(cat /tmp/device)"
[ "$(cat $SYS/queue/logical_block_size)" = 512 ] || die "block size"
[ "$(blockdev --getro $DEV)" = 1 ] || die "not read-only"
# The block layer makes no more queues than there are processors.
[ "$(ls $SYS/mq | wc -l)" = 2 ] || die "queues: $(ls $SYS/mq)"
must_not dd if=/dev/zero of=$DEV bs=4k count=1 oflag=direct 2>/dev/null
[ "$(sum $DEV)" = "$WANT" ] || die "other bytes"
[ "$(listed bf-)" = "bf-abc $KIND $DEV 100663296 served" ] || die "listed: $(listed bf-)"
must_not attach $FILE bf-abc $KIND </dev/null 2>/tmp/twice
grep -q "bf-abc is being served by process $SERVER" /tmp/twice || die "$(cat /tmp/twice)"
must_not attach $FILE bf-abc $KIND adopt </dev/null 2>/tmp/twice
grep -q "is being served" /tmp/twice || die "$(cat /tmp/twice)"
detach; [ $ENDED = 0 ] || die "detach: $ENDED $(cat /tmp/said)"
[ -z "$(listed bf-)" ] || die "still there: $(listed bf-)"
[ -z "$(ls /run/blockferry)" ] || die "left: $(ls /run/blockferry)"

case_is "what is written is found again"
serve bf-abc $KIND
mkfs.ext4 -q -F $DEV || die mkfs
mkdir -p /mnt/a; must mount $DEV /mnt/a
dd if=/dev/urandom of=/tmp/content bs=1M count=24 2>/dev/null
must cp /tmp/content /mnt/a/content; sync

case_is "a device in use stays, and its holder is named"
detach; [ $ENDED = 3 ] || die "detach of a mounted device: $ENDED"
grep -q "the mount at /mnt/a" /tmp/said || die "$(cat /tmp/said)"

# That server has ended without taking the device away, as one that was killed.
case_is "a foreign identifier is refused, nobody else's server takes the place"
[ "$(listed bf-)" = "bf-abc $KIND $DEV 100663296 leaked" ] || die "listed: $(listed bf-)"
must_not attach $FILE bf-xyz $KIND adopt </dev/null 2>/tmp/said
grep -q "no device of this identifier" /tmp/said || die "$(cat /tmp/said)"
must_not attach $FILE bf-abc $KIND </dev/null 2>/tmp/said
grep -q "$DEV of an earlier bf-abc is still there" /tmp/said || die "$(cat /tmp/said)"

case_is "another server adopts a mounted device"
serve bf-abc $KIND adopt
echo 3 > /proc/sys/vm/drop_caches
must cmp /tmp/content /mnt/a/content

case_is "a mounted device grows with its volume"
truncate -s 128M $FILE
echo >&3
await '[ $(wc -l < /tmp/device) = 2 ]'
if [ $GROWS = yes ]; then
  [ "$(tail -n 1 /tmp/device)" = 134217728 ] || die "$(cat /tmp/device)"
  [ "$(blockdev --getsize64 $DEV)" = 134217728 ] || die "size"
  must resize2fs $DEV >/dev/null 2>&1
  dd if=/dev/urandom of=/tmp/more bs=1M count=60 2>/dev/null
  must cp /tmp/more /mnt/a/more; sync; echo 3 > /proc/sys/vm/drop_caches
  must cmp /tmp/more /mnt/a/more; rm /tmp/more
else
  tail -n 1 /tmp/device | grep -q "no: this kernel cannot grow $DEV" || die "$(cat /tmp/device)"
  [ "$(blockdev --getsize64 $DEV)" = 100663296 ] || die "size"
fi
must cmp /tmp/content /mnt/a/content
must umount /mnt/a; must e2fsck -fn $DEV >/dev/null 2>&1
detach; [ $ENDED = 0 ] || die "detach: $(cat /tmp/said)"

case_is "killed in mid read, adopted, the reader gets every byte"
truncate -s 96M $FILE
WANT=$(sha256sum < $FILE | cut -d' ' -f1)
serve bf-abc $KIND
(sum $DEV > /tmp/sum) & READER=$!
await '[ $(awk "{print \$3}" $SYS/stat) -gt 8192 ]'
fell
[ "$(listed bf-)" = "bf-abc $KIND $DEV 100663296 leaked" ] || die "listed: $(listed bf-)"
kill -0 $READER || die "the reader did not wait"
adopted 1 $READER "a read"
[ "$(cat /tmp/sum)" = "$WANT" ] || die "other bytes after adoption"

case_is "killed in mid write, adopted, every byte arrives"
dd if=/dev/urandom of=/tmp/content bs=1M count=64 2>/dev/null
(dd if=/tmp/content of=$DEV bs=256k oflag=direct conv=fsync 2>/tmp/dd; echo $? > /tmp/ended) & WRITER=$!
await '[ $(awk "{print \$7}" $SYS/stat) -gt 8192 ]'
fell
adopted 5 $WRITER "a write"
[ "$(cat /tmp/ended)" = 0 ] || die "$(cat /tmp/dd)"
detach; [ $ENDED = 0 ] || die "detach: $(cat /tmp/said)"
dd if=$FILE bs=1M count=64 2>/dev/null | cmp - /tmp/content || die "other bytes in the volume"
rm /tmp/content

case_is "a volume of another size is not put behind a device"
serve bf-abc $KIND
fell
truncate -s 64M /tmp/smaller
must_not attach /tmp/smaller bf-abc $KIND adopt </dev/null 2>/tmp/said
grep -q "volume of 67108864 bytes" /tmp/said || die "$(cat /tmp/said)"
listed bf- | grep -q "bf-abc $KIND $DEV .* leaked" || die "the device is gone: $(listed bf-)"
serve bf-abc $KIND adopt
detach; [ $ENDED = 0 ] || die "detach: $(cat /tmp/said)"

case_is "operations of all kinds leave what they should"
serve bf-abc $KIND
must exercise random $DEV 7 $OPERATIONS
WANT=$(sum $DEV)
detach; [ $ENDED = 0 ] || die "detach: $(cat /tmp/said)"
[ "$(sha256sum < $FILE | cut -d' ' -f1)" = "$WANT" ] || die "the volume is not what the device was"

case_is "a device that nobody serves is taken away, and no other"
serve bf-abc $KIND
mkfs.ext4 -q -F $DEV; must mount $DEV /mnt/a
[ -z "$(attach reclaim bf-)" ] || die "reclaimed what is served"
fell
must_not attach reclaim bf- 2>/tmp/said
grep -q "in use by the mount at /mnt/a" /tmp/said || die "$(cat /tmp/said)"
[ -z "$(attach reclaim other-)" ] || die "reclaimed another's"
# Without its record a ublk device is somebody else's. One of NBD bears its identifier itself.
mv /run/blockferry/bf-abc.device /tmp/record
if [ $KIND = ublk ]; then WANT=; else WANT="bf-abc $KIND $DEV 100663296 leaked"; fi
[ "$(listed bf-)" = "$WANT" ] || die "without a record: $(listed bf-)"
mv /tmp/record /run/blockferry/bf-abc.device
[ "$(attach reclaim bf- in-use)" = $DEV ] || die "not reclaimed"
[ -z "$(ls /run/blockferry)" ] || die "left: $(ls /run/blockferry)"
umount /mnt/a
await '[ -z "$(listed bf-)" ]'

if [ -n "$XFS" ]; then
  case_is "another file system"
  rm $FILE; truncate -s 320M $FILE
  serve bf-abc $KIND
  must mkfs.xfs -q $DEV; must mount -t xfs $DEV /mnt/a
  dd if=/dev/urandom of=/tmp/content bs=1M count=24 2>/dev/null
  must cp /tmp/content /mnt/a/content; sync
  fell
  serve bf-abc $KIND adopt
  echo 3 > /proc/sys/vm/drop_caches
  must cmp /tmp/content /mnt/a/content
  must umount /mnt/a; must xfs_repair -n $DEV >/dev/null 2>&1
  detach; [ $ENDED = 0 ] || die "detach: $(cat /tmp/said)"
  rm $FILE; truncate -s 96M $FILE
fi

case_is "a volume that hangs holds nothing for ever"
serve bf-abc $KIND hangs
touch /tmp/hang
(dd if=$DEV of=/dev/null bs=1M count=8 iflag=direct 2>/tmp/dd; echo $? > /tmp/ended) & READER=$!
await '[ $(awk "{print \$1 + \$2}" $SYS/inflight) -gt 0 ]'
echo abort >&3
await 'grep -q aborted /tmp/device'
wait $READER; [ "$(cat /tmp/ended)" != 0 ] || die "read what was not there"
grep -q "Input/output error" /tmp/dd || die "$(cat /tmp/dd)"
detach; [ -z "$(listed bf-)" ] || die "still there: $(listed bf-)"
rm /tmp/hang

if [ -n "$LINKS" ]; then
  case_is "links that the kernel gives up are replaced while the server lives"
  serve bf-abc $KIND
  WANT=$(sum $FILE)
  (sum $DEV > /tmp/sum) & READER=$!
  await '[ $(answered 1) -gt 8 ]'
  # Longer than a request may take.
  kill -STOP $SERVER; sleep 30; kill -CONT $SERVER
  wait $READER
  [ "$(cat /tmp/sum)" = "$WANT" ] || die "other bytes"
  dmesg | grep -q "nbd0: reconnected socket" || die "no link was replaced"
  detach; [ $ENDED = 0 ] || die "detach: $(cat /tmp/said)"
fi

case_is "servers killed at any time under writing lose nothing"
serve bf-abc $KIND
rm -f /tmp/over
(exercise random $DEV 8 /tmp/over > /tmp/exercised 2>&1; echo "ended $?" >> /tmp/exercised) & WRITER=$!
ROUND=0
while [ $ROUND -lt $ROUNDS ]; do
  ROUND=$((ROUND+1))
  usleep $(( ( $(od -An -N2 -tu2 /dev/urandom) % 1500 + 300 ) * 1000 ))
  [ -s /tmp/exercised ] && die "$(cat /tmp/exercised)"
  fell
  serve bf-abc $KIND adopt
  # Where requests of a dead server are sent again at once each gets somewhere, else now and then one does.
  if [ $KIND = ublk ] || [ $((ROUND % 3)) = 0 ]; then BEFORE=$(answered 5); await '[ $(answered 5) -gt $((BEFORE + 8)) ]'; fi
done
touch /tmp/over; wait $WRITER
grep -q "ended 0" /tmp/exercised || die "$(cat /tmp/exercised)"
echo "$KIND: $ROUND servers killed, $(head -n 1 /tmp/exercised)"
WANT=$(sum $DEV)
detach; [ $ENDED = 0 ] || die "detach: $(cat /tmp/said)"
[ "$(sha256sum < $FILE | cut -d' ' -f1)" = "$WANT" ] || die "the volume is not what the device was"
