#!/usr/bin/env bash
# A host's first process, in namespaces of its own: it lays out the host's folders and stays as what reaps its orphans.
#   host.sh NAME ADDRESS VENV ROOT
# /mnt/keep holds what must still be seen once /tmp, /root, ... are the host's own: N.path names where N belongs.
set -euo pipefail
name=$1 address=$2 venv=$3 root=$4

hostname "$name"
cp -r /mnt/home /mnt/home-"$name"
for folder in /tmp /var/tmp /root /home /run /dev/shm; do
  mount -t tmpfs -o mode=1777 "$name" "$folder"
done
chmod 755 /run /home
chmod 700 /root
cp -rT /mnt/home-"$name" /root

for path in /mnt/keep/*.path; do
  target=$(cat "$path")
  mkdir -p "$target"
  mount --rbind "${path%.path}" "$target"
done
mkdir -p /run/sshd /run/cloud
mount --bind /mnt/door /run/cloud

printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" >/run/hosts
mount --bind /run/hosts /etc/hosts
# A locked root account is refused by sshd even with a key.
sed 's/^root:[^:]*:/root:*:/' /etc/shadow >/run/shadow
chmod 600 /run/shadow
mount --bind /run/shadow /etc/shadow

cat >/root/.bashrc <<RC
export PATH=$venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PYTHONPATH=$root PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
RC
# Where the project's own commands on a cluster look for it, beside the files that they are given.
mkdir -p /root/disaggregated-rloo
ln -s "$venv" /root/disaggregated-rloo/.venv
echo '. ~/.bashrc' >/root/.bash_profile
umount -l /mnt

/usr/sbin/sshd -f /root/.ssh/sshd_config -E /run/sshd.log
echo ready
# `wait` ends at no time of its own: sleep is renewed for ever, and bash reaps whatever is left to process 1.
while true; do sleep 3600 & wait $!; done
