# Makes a host, as process 1 of it, and becomes its first program: FOLDER NAME ADDRESS REPOSITORY OPENSSH sshd|systemd
# Its root is this machine's, under a layer that takes what is written (in memory where the disk is itself such a layer); the
# repository, temporary files and what runs here are hidden.
set -eu
folder=$1 name=$2 address=$3 repository=$4 openssh=$5 first=$6
cd "$folder"
mkdir -p upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root 2>/dev/null || {
    mount -t tmpfs tmpfs work
    mkdir work/upper work/work
    mount -t overlay overlay -o lowerdir=/,upperdir=work/upper,workdir=work/work root
}
mkdir -p root/models
mount --bind "$(readlink -f "$repository/.cache/models")" root/models
mount -o remount,bind,ro root/models
mkdir -p root/golden
mount --bind "$repository/tests/golden" root/golden
mount -o remount,bind,ro root/golden
cp -r "$openssh"/usr/. root/usr
[ ! -d "$openssh/lib" ] || cp -r "$openssh"/lib/. "root$(readlink -f /lib)"
mkdir -p root/etc/ssh/test
cp ssh_host_ed25519_key authorized_keys root/etc/ssh/test
chmod 600 root/etc/ssh/test/ssh_host_ed25519_key
# Whoever logs in reads it as the user that he is.
chmod 644 root/etc/ssh/test/authorized_keys
for hidden in "root$repository" root/run root/tmp root/root; do mount -t tmpfs tmpfs "$hidden"; done
mkdir -p root/run/sshd
grep -q '^sshd:' root/etc/passwd || echo 'sshd:x:74:74::/run/sshd:/usr/sbin/nologin' >>root/etc/passwd
hostname "$name"
sshd="/usr/sbin/sshd -D -e -f /dev/null -o ListenAddress=$address -o HostKey=/etc/ssh/test/ssh_host_ed25519_key -o UsePAM=no
    -o PidFile=none -o AuthorizedKeysFile=/etc/ssh/test/authorized_keys -o StrictModes=no -o PermitRootLogin=prohibit-password"
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mount -t proc proc root/proc
if [ "$first" = sshd ]; then
    mount --rbind /dev root/dev
    mount -t tmpfs tmpfs root/dev/shm
    mount --rbind /sys root/sys
    # shellcheck disable=SC2086
    exec chroot root env -i PATH=$path $sshd
fi

# systemd sets up devices and the kernel's settings: those it gets are its own, or cannot be written.
mount -t tmpfs -o mode=755 tmpfs root/dev
mkdir root/dev/shm root/dev/pts
mount -t tmpfs tmpfs root/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts root/dev/pts
for device in null zero full random urandom tty; do
    touch root/dev/$device
    mount --bind /dev/$device root/dev/$device
done
ln -s pts/ptmx root/dev/ptmx
ln -s /proc/self/fd root/dev/fd
for number in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${number%%:*}" "root/dev/${number#*:}"; done
mount --bind root/proc/sys root/proc/sys
mount -o remount,bind,ro root/proc/sys
mount -t sysfs -o ro sysfs root/sys
mount -t cgroup2 cgroup2 root/sys/fs/cgroup
# What this machine starts, mounts and loads is not for its copy: only the journal and the SSH server are started there.
units=root$(readlink -f /lib)/systemd
for hidden in root/etc/systemd "$units/system-generators" "$units"/system/sysinit.target.wants "$units"/system/multi-user.target.wants \
    "$units"/system/timers.target.wants; do
    mount -t tmpfs -o mode=755 tmpfs "$hidden"
done
for file in fstab crypttab; do : >"root/etc/$file"; done
tr -d - </proc/sys/kernel/random/uuid >root/etc/machine-id
mkdir -p root/etc/systemd/system/multi-user.target.wants
cat >root/etc/systemd/system/sshd-of-the-test.service <<UNIT
[Service]
ExecStart=$(echo $sshd)
UNIT
ln -s ../sshd-of-the-test.service root/etc/systemd/system/multi-user.target.wants
# It would start whatever somebody calls for.
ln -s /dev/null root/etc/systemd/system/dbus.socket
# Services have roots of their own below this one, so it must be a mount of its own, and all there is.
cd root
mkdir -p old
pivot_root . old
umount -l old
exec setpriv --bounding-set=-sys_module,-sys_time \
    env -i container=foggara PATH=$path /lib/systemd/systemd --unit=multi-user.target
