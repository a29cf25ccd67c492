#!/bin/busybox sh
# The guest's whole user land. What it reports on the console is the record of what it was promised:
# "GUEST synced N SUM" is printed only after sync(1) came back.
export PATH=/sbin:/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys

word() { sed -n "s/.*\b$1=\([a-z0-9]*\).*/\1/p" /proc/cmdline; }
fail() { echo "GUEST failed: $*"; finish; }
finish() {
	sync
	umount /mnt 2>/dev/null
	mount -o remount,ro / || echo "GUEST failed: remount of the root disk"
	echo "GUEST off"
	poweroff -f
}

echo "GUEST booted $(word job)"
case $(word job) in
write)
	# By its path: busybox prefers its own of that name.
	/sbin/mke2fs -q -t ext4 -O metadata_csum,64bit,extent,has_journal /dev/vdb || fail "mke2fs"
	mount -t ext4 /dev/vdb /mnt || fail "mount"
	echo "GUEST formatted"
	files=$(word files)
	i=0
	while [ $i -lt "$files" ]; do
		i=$((i + 1))
		dd if=/dev/urandom of=/mnt/file$i bs=1k count=$((7 + i * 37 % 600)) 2>/dev/null || fail "write $i"
		sum=$(sha256sum </mnt/file$i | cut -d' ' -f1)
		echo "$sum  file$i" >>/mnt/sums
		# The root disk gets its share of writes.
		echo "$i $sum" >>/written
		echo "GUEST writing $i"
		sync || fail "sync $i"
		echo "GUEST synced $i $sum"
		# Every third file goes again, so that space is freed and reused under way.
		if [ $((i % 3)) = 0 ]; then
			gone=$((i - 1))
			rm /mnt/file$gone && sed -i "/  file$gone\$/d" /mnt/sums || fail "remove $gone"
			sync || fail "sync after removing $gone"
			echo "GUEST removed $gone"
		fi
	done
	;;
check)
	mount -t ext4 -o ro /dev/vdb /mnt || fail "mount"
	cd /mnt && sha256sum -c sums >/tmp/result 2>&1 || fail "checksums: $(grep -v OK /tmp/result | head -5)"
	echo "GUEST intact $(grep -c OK /tmp/result)"
	cd /
	;;
*) fail "no such job" ;;
esac
finish
