#!/bin/sh
# What is done on one machine. Terraform puts it there; it may be run by hand, too, as root:
#
#   sh /usr/local/lib/foggara/host.sh plan           whether the machine runs what has been put on it, and what it would take
#   sh /usr/local/lib/foggara/host.sh install        put program, configuration, token and certificates in their places; restarts nothing
#   sh /usr/local/lib/foggara/host.sh start          start what does not run
#   sh /usr/local/lib/foggara/host.sh roll SECONDS [force]   restart what runs with something older, one process after the
#                                                    other, in a cluster that is whole (with force: in any)
#   sh /usr/local/lib/foggara/host.sh settled SECONDS WORKERS
#   sh /usr/local/lib/foggara/host.sh stop           stop all
#   sh /usr/local/lib/foggara/host.sh remove [purge] stop all and remove what was installed (with purge: data and logs, too)
set -eu

home=/usr/local/lib/foggara   # programs, and what was installed
etc=/etc/foggara
bin=/usr/local/bin/foggara
here=$(cd "$(dirname "$0")" && pwd)

say() { echo "${host:+$host: }$*"; }
fail() { echo "error: ${host:+$host: }$*" >&2; exit 1; }

# A variable of host.env as it is staged ($1 = bundle) or installed.
staged_env() { awk '$2 == "'$home'/host.env" { print $3 }' "$here/bundle" | base64 -d; }
value() { sed -n "s/^$1=//p" | tr -d "'"; }

load_env() {
    [ -e $home/host.env ] || fail "nothing is installed here"
    . $home/host.env
}

client() {
    token=$(cat $etc/cluster-token)
    [ "${tls:-no}" = no ] || export FOGGARA_TLS_CA=$etc/ca.crt
    FOGGARA_CLUSTER_TOKEN=$token FOGGARA_ENDPOINT=$endpoints $bin status "$@"
}

# The process manager's words for one process.
unit() { case $1 in coordinator) echo foggara-coordinator ;; *) echo "foggara-worker@${1#worker-}" ;; esac; }
supervised() { $bin supervise list 2>/dev/null; }
is_running() {
    case $service_manager in
    systemd) systemctl is-active --quiet "$(unit "$1")" ;;
    foggara) supervised | grep -q "^$1 " ;;
    esac
}
start_process() {
    case $service_manager in
    # A worker's unit is ready when it has joined, and the cluster may not be there yet.
    systemd) systemctl enable --quiet --now --no-block "$(unit "$1")" ;;
    foggara) if supervised >/dev/null; then $bin supervise reload >/dev/null; else $bin supervise --dir $etc --program $bin --detach; fi ;;
    esac
}
restart_process() {
    case $service_manager in
    systemd) systemctl restart "$(unit "$1")" ;;
    foggara) $bin supervise restart "$1" >/dev/null ;;
    esac
}
stop_process() {
    case $service_manager in
    systemd) systemctl disable --quiet --now "$(unit "$1")" ;;
    # Its file is gone by now.
    foggara) $bin supervise reload >/dev/null ;;
    esac
}
stop_all() {
    case $service_manager in
    systemd)
        # Those that answer requests first.
        for kind in foggara-coordinator 'foggara-worker@*'; do
            units=$(systemctl list-units --all --plain --no-legend "$kind.service" | awk '{ print $1 }')
            [ -z "$units" ] || systemctl disable --quiet --now $units
        done ;;
    foggara) if supervised >/dev/null; then $bin supervise stop >/dev/null; fi ;;
    esac
}

# What a process runs with: when this changes, it must be restarted.
life() {
    {
        cat $etc/"$1".toml
        echo "$binary_sha $token_sha"
        [ $service_manager != systemd ] || systemctl cat "$(unit "$1")"
    } | sha256sum | cut -d' ' -f1
}
# A start is noted before it is made: one that is cut short between the two is not repeated, and the check of the cluster tells.
note_life() { mkdir -p $home/running; life "$1" >$home/running/"$1"; }

# What a program speaks, PROTOCOLS:FORMATS: it says so in a text in it.
speaks() {
    said=$(LC_ALL=C grep -a -o -m 1 'foggara-build version=[^ ]* protocols=[^ ]* formats=[^ ]*' "$1" | head -n 1)
    said=$(echo "$said" | sed -n 's/.* protocols=\([^ ]*\) formats=\([^ ]*\)$/\1:\2/p')
    echo "${said:-0-0:0-0}"
}

plan() {
    staged_env >"$here/host.env"
    new_sha=$(value binary_sha <"$here/host.env")
    # Whom others take: those with their token, who speak TLS as they do.
    new_token=$(value token_sha <"$here/host.env")+$(value tls <"$here/host.env")
    new=$here/foggara-$new_sha
    [ -e "$new" ] || new=$home/programs/$new_sha/foggara
    [ -e "$new" ] || fail "program $new_sha is not here: terraform apply -replace='…terraform_data.program[…]'"
    chmod 755 "$new"
    new_version=$("$new" --version) || fail "the program does not run on this machine: $new_version"
    if [ ! -e $home/generation ]; then
        echo "fresh - - $(echo "$new_version" | tr ' ' _):$(speaks "$new") $new_token"
        return
    fi
    load_env
    state=changed
    [ "$(cat $home/generation)" != "$(generation)" ] || state=current
    echo "$state $($bin --version | tr ' ' _):$(speaks $bin) $token_sha+${tls:-no} $(echo "$new_version" | tr ' ' _):$(speaks "$new") $new_token"
}
generation() { cat "$here/host.sh" "$here/bundle" | sha256sum | cut -d' ' -f1; }

install_all() {
    staged_env >"$here/host.env"
    new_sha=$(value binary_sha <"$here/host.env")
    mkdir -p $home/programs $etc
    if [ ! -e $home/programs/$new_sha/foggara ]; then
        echo "$new_sha  $here/foggara-$new_sha" | sha256sum --check --quiet || fail "the program has not arrived whole"
        mkdir -p $home/programs/$new_sha.new
        install -m 755 "$here/foggara-$new_sha" $home/programs/$new_sha.new/foggara
        rm -rf $home/programs/$new_sha
        mv $home/programs/$new_sha.new $home/programs/$new_sha
    fi
    rm -f "$here"/foggara-*
    if [ "$(value service_manager <"$here/host.env")" = systemd ]; then
        id foggara >/dev/null 2>&1 ||
            useradd --system --user-group --home-dir /var/lib/foggara --no-create-home --shell /usr/sbin/nologin foggara
        owner=foggara
    else
        owner=root
    fi
    # Kept while it is compared: what is in the old list and not in the new one goes.
    [ ! -e $home/files ] || cp $home/files $home/files.old
    : >$home/files
    while read -r mode path content; do
        mkdir -p "$(dirname "$path")"
        echo "$content" | base64 -d >"$path.new"
        chmod "$mode" "$path.new"
        mv "$path.new" "$path"
        echo "$path" >>$home/files
    done <"$here/bundle"
    if [ -e $home/files.old ]; then
        while read -r path; do grep -qxF "$path" $home/files || rm -f "$path"; done <$home/files.old
        rm $home/files.old
    fi
    # Not there when an install that was cut short is repeated.
    if [ -e "$here/cluster-token" ]; then
        install -m 600 -o $owner "$here/cluster-token" $etc/cluster-token.new
        mv $etc/cluster-token.new $etc/cluster-token
        rm "$here/cluster-token"
    fi
    if [ -e "$here/certificates" ]; then
        # The certificate last: by then its key is there.
        grep -v '^#' "$here/certificates" | while read -r mode path content; do
            (umask 077; echo "$content" | base64 -d >"$path.new")
            chown $owner "$path.new"
            chmod "$mode" "$path.new"
            mv "$path.new" "$path"
        done
        rm "$here/certificates"
    fi
    [ "$(value tls <"$here/host.env")" = yes ] || rm -f $etc/tls.crt $etc/tls.key $etc/ca.crt
    ln -sfn $home/programs/$new_sha/foggara $bin.new
    mv -T $bin.new $bin
    [ "$here" = $home ] || install -m 755 "$here/host.sh" $home/host.sh
    load_env
    if [ "$service_manager" = systemd ]; then systemctl daemon-reload; fi
}
# Only what has started everything may say that this machine runs the new generation.
applied() {
    generation >$home/generation
    # The program before this one stays, to go back to.
    ls -t $home/programs | tail -n +3 | while read -r old; do rm -rf "$home/programs/$old"; done
}

start_all() {
    load_env
    for process in $processes; do
        name=${process%%=*}
        note_life "$name"
        is_running "$name" || start_process "$name"
        say "started $name (${process#*=})"
    done
    applied
}

roll() {
    load_env
    before=$(mktemp)
    for noted in $home/running/*; do
        [ -e "$noted" ] || continue
        name=$(basename "$noted")
        case " $processes " in *" $name="*) continue ;; esac
        say "stopping $name: it is no longer wanted"
        stop_process "$name"
        rm "$noted"
    done
    for process in $processes; do
        name=${process%%=*}
        if ! is_running "$name"; then
            note_life "$name"
            start_process "$name"
            say "started $name (${process#*=})"
            continue
        fi
        [ "$(cat $home/running/"$name" 2>/dev/null)" != "$(life "$name")" ] || continue
        # Nothing else may be amiss while this one is away.
        whole=yes
        client --wait "$1" --json >"$before" || whole=no
        [ $whole = yes ] || [ "${2:-}" = force ] ||
            fail "$name is not restarted in a cluster that is not whole: see to it first, or apply with allow_interruption = true"
        note_life "$name"
        restart_process "$name"
        if [ $whole = yes ]; then
            client --wait "$1" --like "$before" --restarted "${process#*=}" >/dev/null ||
                fail "$name was restarted and the cluster is not what it was before; nothing else is touched"
        fi
        say "restarted $name (${process#*=})"
    done
    rm -f "$before"
    applied
}

remove() {
    [ ! -e $home/host.env ] || { load_env; stop_all; }
    if [ -e $home/files ]; then while read -r path; do rm -f "$path"; done <$home/files; fi
    rm -rf $bin $etc/cluster-token $etc/tls.crt $etc/tls.key $etc/ca.crt $home /run/foggara
    rmdir $etc 2>/dev/null || true
    if command -v systemctl >/dev/null 2>&1; then systemctl daemon-reload 2>/dev/null || true; fi
    if [ "${1:-}" = purge ]; then rm -rf /var/lib/foggara/coordinator /var/cache/foggara /var/log/foggara; fi
}

case ${1:-} in
plan) plan ;;
install) install_all ;;
start) start_all ;;
roll) roll "$2" "${3:-}" ;;
settled) load_env; client --wait "$2" --workers "$3" >/dev/null ;;
stop) load_env; stop_all; rm -rf $home/running ;;
remove) remove "${2:-}" ;;
*) fail "see the beginning of $0 for what it can do" ;;
esac
