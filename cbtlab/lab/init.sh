#!/lab/busybox sh
# The guest's first process: loads modules, runs /lab/command, hands back /out and the status.
# busybox's shell runs its own applets before the programs of /sbin: call those by their path.
PATH=/usr/sbin:/usr/bin:/sbin:/bin:/lab:/lab/applets
# There is no udev here: device-mapper's tools make the nodes themselves.
export PATH HOME=/root DM_DISABLE_UDEV=1 PYTHONPATH=/lab/python PYTHONDONTWRITEBYTECODE=1
/lab/busybox mkdir -p /lab/applets /proc /sys /dev /tmp /run /mnt /out /dev/lab /etc
/lab/busybox --install -s /lab/applets
[ -e /bin/sh ] || ln -s /lab/busybox /bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /out
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
ln -sf /proc/mounts /etc/mtab
mkdir -p /dev/lab /dev/mapper
echo 4 4 1 4 > /proc/sys/kernel/printk
while read -r module; do
    /lab/busybox insmod "$module" || echo "cbtlab: $module was not loaded"
done < /lab/modules/order
tries=0
while [ "$(ls -d /sys/block/vd* 2>/dev/null | wc -l)" -lt "$LAB_DISKS" ] && [ $tries -lt 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
for disk in /sys/block/vd*; do
    ln -s "/dev/${disk##*/}" "/dev/lab/$(cat "$disk/serial")"
done
cd /root || exit 1
echo "cbtlab: started"
/lab/command < /dev/null
status=$?
cd /
tar -C /out -cf /dev/lab/results . || status=120
sync
# The closing line: without it the host takes the run as failed.
echo "cbtlab-exit $status"
sleep 0.1
poweroff -f
