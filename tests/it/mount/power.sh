# The volume is hydrated into /dev/vdb and written to until the power goes, and taken up again after that. /dev/vda has a file
# system with the repository, the state, and the volume as it was. SEED tells what is written, DURABLE which batch of it was flushed
# before the power went: 0 in the first run. AWAY is set where the repository is not there when it goes, TOLD where the end of
# hydration is to be told, ADOPT where it is `mounts --adopt` that takes the mount up.

export BLOCKFERRY_PASSWORD="correct horse battery"
mkdir -p $PLACE; must mount -t ext4 /dev/vda $PLACE
hydration() { blockferry mounts --json | sed -n 's/.*"'$1'": "\{0,1\}\([a-z0-9]*\).*/\1/p'; }
device() { blockferry mounts --json | sed -n 's/.*"device": "\(.*\)",/\1/p'; }
into() { blockferry mount latest --into /dev/vdb --name h --attach $KIND --limit-download 2MiB "$@"; }

if [ $DURABLE = 0 ]; then
  case_is "hydrated and written to until the power goes"
  DEVICE=$(must into)
  await '[ $(hydration presentBytes) -gt 4194304 ]'
  if [ -n "$AWAY" ]; then must mv $BLOCKFERRY_REPO $PLACE/away; sync; fi
  if [ -n "$TOLD" ]; then (await '[ "$(hydration state)" = complete ]'; echo COMPLETE) & fi
  exercise record $DEVICE $SEED
  die "it stopped"
fi

case_is "taken up after the power went"
[ "$(health)" = dead ] || die "$(blockferry mounts)"
if [ -e $PLACE/away ]; then
  must_not into 2>/tmp/said
  must_not ferry mounts --adopt >/dev/null
  [ "$(health)" = dead ] || die "$(blockferry mounts)"
  must mv $PLACE/away $BLOCKFERRY_REPO
fi
if [ -n "$ADOPT" ]; then must ferry mounts --adopt >/dev/null; else must into >/dev/null; fi
echo "PRESENT $(hydration presentBytes)"
must exercise check $(device) $SEED $DURABLE $PLACE/volume
await '[ "$(hydration state)" = complete ]'
must ferry unmount h >/dev/null
echo WHOLE
die "the power stayed"
