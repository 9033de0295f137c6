# Volumes with a GPT and with an MBR, as each kind of device: their partitions are devices beside it, and go with it.

must ferry repo create $BLOCKFERRY_REPO >/dev/null
mkdir -p /mnt/a /tmp/tree
echo before > /tmp/tree/first
for LABEL in gpt dos; do
  dd if=/dev/zero of=/tmp/$LABEL bs=1M count=0 seek=48 2>/dev/null
  printf "label: $LABEL\nstart=2048, size=49152\n,\n" | must sfdisk -q /tmp/$LABEL
  must mkfs.ext4 -q -F -d /tmp/tree -E offset=1048576 /tmp/$LABEL 24M 2>/dev/null
  must ferry backup /tmp/$LABEL --as t@h:/$LABEL >/dev/null
done

for LABEL in gpt dos; do
  for KIND in fuse nbd ublk; do
    case_is "$LABEL by $KIND"
    must_not blockferry mount latest:t@h:/$LABEL --attach $KIND --fs /mnt/a 2>/tmp/refused >/dev/null
    grep -q "table of partitions" /tmp/refused || die "$(cat /tmp/refused)"

    DEVICE=$(must ferry mount latest:t@h:/$LABEL --attach $KIND)
    await '[ -e ${DEVICE}p1 ] && [ -e ${DEVICE}p2 ]'
    must mount -t ext4 -o ro,noload ${DEVICE}p1 /mnt/a
    [ "$(cat /mnt/a/first)" = before ] || die "other bytes"
    must_not blockferry unmount $DEVICE 2>/tmp/refused >/dev/null
    grep -q "in use by.*/mnt/a" /tmp/refused || die "$(cat /tmp/refused)"
    must umount /mnt/a
    must ferry unmount $DEVICE >/dev/null
    # The kernel's NBD client lets partitions go when its device is opened the next time, as udev does at once.
    await '[ ! -e $DEVICE ] || dd if=$DEVICE of=/dev/null count=0 2>/dev/null; [ ! -e ${DEVICE}p1 ]'

    # What is written to a partition is written to the volume.
    DEVICE=$(must ferry mount latest:t@h:/$LABEL --attach $KIND --writable --accept-fragile --name w)
    await '[ -e ${DEVICE}p1 ]'
    must mount -t ext4 ${DEVICE}p1 /mnt/a
    echo after > /mnt/a/second
    must umount /mnt/a
    must ferry unmount w >/dev/null
    DEVICE=$(must ferry mount latest:t@h:/$LABEL --attach $KIND --writable --accept-fragile --name w)
    await '[ -e ${DEVICE}p1 ]'
    must mount -t ext4 ${DEVICE}p1 /mnt/a
    [ "$(cat /mnt/a/second)" = after ] || die "what was written is gone"
    must umount /mnt/a
    must ferry unmount w --discard >/dev/null
  done
done
