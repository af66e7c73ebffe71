# The second one: makes a host of the machine, as its init would, and runs what `plan.sh` lists. What it says of that, a
# line each, begins with `#imds` and is read by `transcript.rs`.
exec < /dev/null > /dev/ttyS1 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

. /imds-vm/plan.sh

mount -t tmpfs none /run
mkdir -p /dev/pts /dev/shm
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm
mount -t bpf none /sys/fs/bpf
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p "/lib/modules/${MODULES##*/}"
mount --bind "$MODULES" "/lib/modules/${MODULES##*/}"
# The kernel calls it for what is missing. That of the files may be a link to another program, or not be there.
rm -f /sbin/modprobe
cp /imds-vm/busybox /sbin/modprobe
# It does not wait for a module that somebody else is loading, and tests run beside each other. Besides, the device that
# would load `tun` by being opened is made by what is no part of this machine.
for MODULE in tun veth bridge 8021q sch_ingress cls_bpf nf_tables ip_tables ip6_tables; do
  modprobe "$MODULE"
done
hostname imds-vm
ip link set lo up
cd "$TESTS"
echo "#imds kernel $(uname -r)"

# run FILE SECONDS PROGRAM [ARGUMENT...]: the tests of a file, for so long at most.
run() {
  NAME=$1 SECONDS_MAX=$2 PROGRAM=$3
  shift 3
  echo "#imds begin $NAME"
  : > "$IMDS_SKIP_LOG"
  read -r BEGAN REST < /proc/uptime
  timeout -k 5 "$SECONDS_MAX" "$PROGRAM" --color never "$@"
  CODE=$?
  read -r ENDED REST < /proc/uptime
  while read -r SKIP; do
    echo "#imds skip $SKIP"
  done < "$IMDS_SKIP_LOG"
  echo "#imds end $CODE $((${ENDED%.*} - ${BEGAN%.*}))"
}

plan
echo "#imds over"
/imds-vm/busybox poweroff -f
