#!/bin/sh
# Installs a package into a copy of this machine and looks at what comes of it: `install_deb.sh FILE.deb FOLDER VERSION`.
# The copy is an overlay over /, in a mount namespace of its own; nothing of it stays.
set -eu
if [ "${1:-}" != inside ]; then
    exec unshare --mount --propagation private sh "$0" inside "$@"
fi
deb=$2 folder=$3 version=$4
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$folder/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
mount -t proc proc "$folder/root/proc"
mount -t tmpfs tmpfs "$folder/root/run"
mount -t tmpfs tmpfs "$folder/root/tmp"
cp "$deb" "$folder/root/tmp/foggara.deb"
cat >"$folder/root/tmp/inside.sh" <<'INSIDE'
set -eu
fails() { echo "FAILED: $*"; exit 1; }
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
unset FOGGARA_BIN FOGGARA_CLUSTER_TOKEN || true

# Images of systems often leave manuals out.
rm -f /etc/dpkg/dpkg.cfg.d/*
dpkg -i /tmp/foggara.deb
[ "$(foggara --version)" = "foggara $1" ] || fails "it is $(foggara --version)"
[ -z "$(dpkg --verify foggara)" ] || fails "$(dpkg --verify foggara)"
[ "$(stat -c %U:%a /var/lib/foggara)" = foggara:750 ] || fails "whose /var/lib/foggara is"
[ "$(stat -c %U:%a /usr/bin/foggara)" = root:755 ] || fails "whose the program is"

# The files it brings need a token.
echo of-the-test >/etc/foggara/token
chown root:foggara /etc/foggara/token
chmod 644 /etc/foggara/token
check() { setpriv --reset-env --reuid foggara --regid foggara --init-groups /usr/bin/foggara config check /etc/foggara/*.toml; }
if check >/tmp/check; then fails "everybody may read the token"; fi
grep -q 'chmod 640 /etc/foggara/token' /tmp/check || fails "$(cat /tmp/check)"
chmod 640 /etc/foggara/token
check >/tmp/check || fails "$(cat /tmp/check)"

for page in /usr/share/man/man1/foggara*.1.gz; do
    warnings=$(man --warnings --encoding=UTF-8 --local-file -Tutf8 "$page" 2>&1 >/tmp/page)
    [ -z "$warnings" ] || fails "$page: $warnings"
done
man --local-file /usr/share/man/man1/foggara-worker.1.gz | grep -q -e --join || fails "no --join in its manual"

bash -c 'set -e; . /usr/share/bash-completion/completions/foggara; complete -p foggara
    COMP_WORDS=(foggara wor); COMP_CWORD=1; _foggara foggara wor foggara; [ "${COMPREPLY[*]}" = worker ]' ||
    fails "bash completes nothing"
grep -q '^#compdef foggara' /usr/share/zsh/vendor-completions/_foggara || fails "zsh"
grep -q 'complete -c foggara' /usr/share/fish/vendor_completions.d/foggara.fish || fails "fish"

units="foggara-coordinator.service foggara-worker.service foggara-worker@1.service"
# Older systemds do not know how to wait longer each time; nothing else may be amiss.
systemd-analyze verify $units 2>/tmp/verify || { cat /tmp/verify; fails "systemd-analyze verify"; }
! grep -v -e "RestartSteps" -e "RestartMaxDelaySec" /tmp/verify || fails "systemd-analyze verify"
for unit in foggara-coordinator.service foggara-worker.service; do
    systemd-analyze security --no-pager --offline=true --threshold=25 $unit >/tmp/security 2>&1 ||
        { cat /tmp/security; fails "$unit is open to more than it needs"; }
done

echo '# edited' >>/etc/foggara/worker.toml
dpkg -i /tmp/foggara.deb
grep -q '# edited' /etc/foggara/worker.toml || fails "an upgrade loses settings"
dpkg -r foggara
[ ! -e /usr/bin/foggara ] && [ -e /etc/foggara/worker.toml ] || fails "removing it"
dpkg -P foggara
[ ! -e /etc/foggara/worker.toml ] && [ -d /var/lib/foggara/models ] || fails "purging it"
echo "installed, looked at, removed"
INSIDE
exec chroot "$folder/root" sh /tmp/inside.sh "$version"
