# Mounts by the kernel's own drivers: their servers are killed, and others go on where they were.

dd if=/dev/urandom of=/tmp/volume bs=1M count=48 2>/dev/null
mkfs.ext4 -q -F /tmp/volume || die mkfs
WANT=$(sha256sum < /tmp/volume | cut -d' ' -f1)
must ferry repo create $BLOCKFERRY_REPO >/dev/null
must ferry backup /tmp/volume --as t@h:/volume >/dev/null; SOURCE=t@h:/volume
dd if=/dev/urandom of=/tmp/small bs=64k count=16 2>/dev/null
mkdir -p /mnt/a

case_is "a snapshot is a device of the best kind there is"
DEVICE=$(must ferry mount latest)
case $DEVICE in /dev/$KIND*) ;; *) die "device $DEVICE" ;; esac
[ "$(sum $DEVICE)" = "$WANT" ] || die "other bytes"
[ "$(blockdev --getro $DEVICE)" = 1 ] || die "not read-only"
must ferry unmount $DEVICE >/dev/null
gone || die "still there"

case_is "a mounted file system goes on when its server is killed"
must ferry mount latest --writable --name w --fs /mnt/a >/dev/null
dd if=/dev/urandom of=/tmp/content bs=1M count=8 2>/dev/null
must cp /tmp/content /mnt/a/first; sync
must cp /tmp/content /mnt/a/second
murder
must ferry mounts --adopt >/dev/null
[ "$(health)" = serving ] || die "not adopted: $(cat /tmp/said)"
sync; echo 3 > /proc/sys/vm/drop_caches
must cmp /tmp/content /mnt/a/first
must cmp /tmp/content /mnt/a/second

case_is "what was answered and never flushed is there after the server's death"
dd if=/tmp/content of=/mnt/a/third bs=64k oflag=direct 2>/dev/null
murder
must ferry mounts --adopt >/dev/null
echo 3 > /proc/sys/vm/drop_caches
must cmp /tmp/content /mnt/a/third
must ferry unmount w >/dev/null
must ferry mount latest --writable --name w --fs /mnt/a >/dev/null
must cmp /tmp/content /mnt/a/third
must ferry unmount w --discard >/dev/null

case_is "killed in mid write, the writer sees nothing of it"
must ferry mount latest --writable --name x >/dev/null
DEVICE=$(blockferry mounts --json | sed -n 's/.*"device": "\(.*\)",/\1/p')
dd if=/dev/urandom of=/tmp/content bs=1M count=40 2>/dev/null
(dd if=/tmp/content of=$DEVICE bs=64k oflag=direct conv=fsync 2>/tmp/dd; echo $? > /tmp/ended) & WRITER=$!
await '[ $(awk "{print \$7}" /sys/block/$(basename $DEVICE)/stat) -gt 8192 ]'
kill -9 $(pid); await '[ "$(health)" != serving ]'
must ferry mounts --adopt >/dev/null
wait $WRITER; [ "$(cat /tmp/ended)" = 0 ] || die "$(cat /tmp/dd)"
must ferry unmount x >/dev/null
must ferry mount latest --writable --name x >/dev/null
dd if=$DEVICE bs=1M count=40 iflag=direct 2>/dev/null | cmp - /tmp/content || die "other bytes"

case_is "a device that waits is not given up by accident"
murder
must_not blockferry unmount x 2>/tmp/refused
grep -q "adopt" /tmp/refused || die "$(cat /tmp/refused)"
must ferry unmount x --force --discard >/dev/null
gone || die "still there"

case_is "a commit of a mount that lost its server is what was written"
dd if=/dev/urandom of=/tmp/content bs=1M count=8 2>/dev/null
must ferry mount latest --writable --name c --fs /mnt/a >/dev/null
must cp /tmp/content /mnt/a/last
murder
must ferry mounts --adopt >/dev/null
must umount /mnt/a
must ferry commit c --as t@h:/c >/dev/null
must ferry unmount c --discard >/dev/null
must ferry mount latest:t@h:/c --fs /mnt/a >/dev/null
must cmp /tmp/content /mnt/a/last
must ferry unmount /mnt/a >/dev/null

case_is "a disk is hydrated while it is used, its repository away, its server killed"
[ "$(blockdev --getsize64 /dev/sda)" -ge 50331648 ] || die "no disk"
must ferry mount latest:$SOURCE --into /dev/sda --name h --fs /mnt/a >/dev/null
mv $BLOCKFERRY_REPO /tmp/away
must cp /tmp/small /mnt/a/during; sync
must cmp /tmp/small /mnt/a/during
# It waits for the repository, unless it had everything before.
await 'blockferry mounts --json | grep -q -e waiting -e \"complete\"'
murder
mv /tmp/away $BLOCKFERRY_REPO
must ferry mounts --adopt >/dev/null
must cp /tmp/small /mnt/a/after; sync
await 'blockferry mounts --json | grep -q "\"state\": \"complete\""'
mv $BLOCKFERRY_REPO /tmp/away
echo 3 > /proc/sys/vm/drop_caches
must cmp /tmp/small /mnt/a/during
must ferry unmount h >/dev/null
must mount /dev/sda /mnt/a
must cmp /tmp/small /mnt/a/during
must cmp /tmp/small /mnt/a/after
must umount /mnt/a
must e2fsck -fn /dev/sda >/dev/null 2>&1
# All but what the file system wrote is the snapshot's.
mv /tmp/away $BLOCKFERRY_REPO
