#!/bin/sh
# The first program in the machine, from its initramfs: puts this machine's files, which are shared to be read, under a
# layer of memory that takes what is written, and goes on from there.
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
while read -r MODULE; do
  insmod "/modules/$MODULE.ko"
done < /modules/order
mkdir -p /below /above /root
mount -t virtiofs -o ro root /below || poweroff -f
mount -t tmpfs none /above
mkdir /above/written /above/work
mount -t overlay -o lowerdir=/below,upperdir=/above/written,workdir=/above/work none /root || poweroff -f
for FOLDER in proc sys dev; do
  mkdir -p "/root/$FOLDER"
  mount --move "/$FOLDER" "/root/$FOLDER"
done
mkdir /root/imds-vm
cp /bin/busybox /run.sh /plan.sh /root/imds-vm/
exec switch_root /root /bin/sh /imds-vm/run.sh
