# fio writes at random through a mount and checks what it wrote, while the mount's servers are killed, ROUNDS of them.

dd if=/dev/urandom of=/tmp/volume bs=1M count=24 2>/dev/null
truncate -s 48M /tmp/volume
must ferry repo create $BLOCKFERRY_REPO >/dev/null
must ferry backup /tmp/volume --as t@h:/volume >/dev/null
DEVICE=$(must ferry mount latest --writable --name f)
case $DEVICE in /dev/$KIND*) ;; *) die "device $DEVICE" ;; esac
STATS=/sys/block/$(basename $DEVICE)
answered() { awk '{print $1 + $5}' $STATS/stat; }
waiting() { awk '{print $1 + $2}' $STATS/inflight; }
# One pass over the device, each part of which is written once or read. Only of jobs that read as well fio 3.33 compares the seed in
# what it finds: without it, what an earlier pass left would do for what this one wrote.
judge() { # seed, words
  SEED=$1; shift
  fio --name=judge --filename=$DEVICE --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --rwmixwrite=80 \
    --bssplit=512/50:4k/30:64k/20 --randseed=$SEED --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=256 --minimal "$@"
}

case_is "servers killed at any time while fio writes and reads lose nothing"
rm -f /tmp/over /tmp/ended
(
  PASS=0
  while [ ! -e /tmp/over ]; do
    PASS=$((PASS+1))
    judge $PASS >>/tmp/passes 2>>/tmp/faults || { echo "fio ended with $? in pass $PASS" > /tmp/ended; exit; }
  done
  echo whole > /tmp/ended
) & WRITER=$!
await '[ $(answered) -gt 100 ]'
ROUND=0; HELD=0
while [ $ROUND -lt $ROUNDS ]; do
  ROUND=$((ROUND+1))
  usleep $(( ( $(od -An -N2 -tu2 /dev/urandom) % 1500 ) * 1000 ))
  [ ! -e /tmp/ended ] || die "$(cat /tmp/ended /tmp/faults)"
  SERVER=$(pid)
  usleep $(( ( $(od -An -N2 -tu2 /dev/urandom) % 500 ) * 1000 ))
  [ $(waiting) = 0 ] || HELD=$((HELD+1))
  kill -9 $SERVER; await '[ "$(health)" = dead ]'
  must ferry mounts --adopt >/dev/null
  [ "$(health)" = serving ] || die "not adopted: $(cat /tmp/said)"
  # What an NBD server that died had taken is sent again after 25 s: there, some die before that.
  if [ $KIND = ublk ] || [ $((ROUND % 3)) = 0 ]; then BEFORE=$(answered); await '[ $(answered) -gt $((BEFORE + 32)) ] || [ -e /tmp/ended ]'; fi
done
touch /tmp/over; wait $WRITER
[ "$(cat /tmp/ended)" = whole ] || die "$(cat /tmp/ended /tmp/faults)"
[ ! -s /tmp/faults ] || die "$(cat /tmp/faults)"
awk -F';' -v kind=$KIND -v rounds=$ROUND -v held=$HELD '
  $5 != 0 { wrong++ }
  { read += $6; written += $47 }
  END { printf "FIO %s: %d servers killed, %d with requests under way; %d passes, %d KiB written, %d KiB read, %d wrong\n",
        kind, rounds, held, NR, written, read, wrong; exit wrong > 0 || written == 0 }' /tmp/passes || die "$(cat /tmp/passes)"

case_is "the next mount has what fio wrote"
WANT=$(sum $DEVICE)
must ferry unmount f >/dev/null
must ferry mount latest --writable --name f >/dev/null
[ "$(sum $DEVICE)" = "$WANT" ] || die "other bytes"
PASS=$(grep -c . /tmp/passes)
must judge $PASS --verify_only >/dev/null

case_is "fio tells bytes that are wrong"
dd if=/dev/zero of=$DEVICE bs=64k seek=100 count=16 oflag=direct 2>/dev/null
must_not judge $PASS --verify_only >/dev/null 2>&1
must ferry unmount f --discard >/dev/null
