#!/bin/sh
# From what has been put on the machines to what they run, without ever taking more away than one process.
# Run by Terraform; what it needs is in the environment (main.tf).
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '%s\n' "$HOSTS" >"$work/hosts"
printf '%s\n' "$HOST_KEYS" >"$work/known"
if [ -n "$HOST_KEYS" ]; then checking=yes; else checking=no; fi

say() { echo "$*"; }
fail() { echo "error: $*" >&2; exit 1; }

# on ADDRESS PORT WORDS…: a word of host.sh, on a machine.
on() {
    address=$1 port=$2
    shift 2
    set -- ${SUDO}sh .foggara-staging/host.sh "$@"
    # Machines without a key of their own in `hosts` are taken as they are, as Terraform's own connections do.
    strict=$checking
    grep -qE "^(\[$address\]:$port|$address) " "$work/known" || strict=no
    ssh -n -T -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15 -o LogLevel=ERROR \
        -o StrictHostKeyChecking=$strict -o UserKnownHostsFile="$work/known" \
        ${SSH_KEY:+-i "$SSH_KEY" -o IdentitiesOnly=yes} -p "$port" "$SSH_USER@$address" "$@"
}

# What each machine is: coordinator, name, address, port, generation, state, old version and token, new ones.
: >"$work/plan"
while read -r coordinator name address port generation; do
    state=$(on "$address" "$port" plan) || fail "$name cannot be asked (ssh $SSH_USER@$address -p $port)"
    echo "$coordinator $name $address $port $state" >>"$work/plan"
done <"$work/hosts"

list() { awk -v state="$1" '$5 == state' "$work/plan"; }
fresh=$(list fresh | wc -l) changed=$(list changed | wc -l) current=$(list current | wc -l)
say "machines: $fresh new, $changed changed, $current as they should be"

# Releases that follow each other work together: one process after the other is restarted. Whether these do is told by what they
# say of themselves, VERSION:PROTOCOLS:FORMATS, which must have a protocol and a format of the replicated state in common.
awk '$5 != "fresh" { print $6 } { print $8 }' "$work/plan" | sort -u >"$work/versions"
[ "$(wc -l <"$work/versions")" -le 1 ] || say "versions: $(tr '\n' ' ' <"$work/versions")"
apart=$(awk -F: '
    function range(of, text) {
        split(text, ends, "-")
        if (NR == 1 || ends[1] + 0 > oldest[of]) oldest[of] = ends[1] + 0
        if (NR == 1 || ends[2] + 0 < newest[of]) newest[of] = ends[2] + 0
    }
    { range("protocol", $2); range("format", $3) }
    END {
        apart = oldest["protocol"] > newest["protocol"] || oldest["format"] > newest["format"]
        print (apart ? "yes" : "no")
    }
' "$work/versions")

# And processes take only others with their token, who speak TLS as they do or do not. What they do not take cannot be changed
# step by step. A new machine next to an old cluster must match it, too.
kinds() { awk '$5 != "fresh" { print $7 } { print $9 }' "$work/plan" | cut -d+ -f"$1" | sort -u | wc -l; }
tokens=$(kinds 1) speech=$(kinds 2)
together=no
if [ "$((changed + current))" -gt 0 ]; then
    reason=
    [ $apart = no ] || reason="a release that cannot work with the one that runs"
    [ "$tokens" -le 1 ] || reason="${reason:+$reason and }another cluster token"
    [ "$speech" -le 1 ] || reason="${reason:+$reason and }a change between plain text and TLS"
    if [ -n "$reason" ]; then
        [ "$ALLOW_INTERRUPTION" = yes ] ||
            fail "this is $reason: all processes must be restarted together, and nothing is served until the models are loaded again. Nothing has been touched. Apply again with allow_interruption = true"
        together=yes
        say "$reason: everything stops, and starts again"
    fi
fi

if [ $together = yes ]; then
    # Coordinators first: they let answers end.
    sort -r "$work/plan" >"$work/these"
    while read -r _ name address port state _; do
        [ "$state" = fresh ] || on "$address" "$port" stop || fail "$name does not stop"
    done <"$work/these"
    awk '$5 != "fresh" { $5 = "fresh" } { print }' "$work/plan" >"$work/all" && mv "$work/all" "$work/plan"
    changed=0
fi

# Machines that run nothing yet: all of them, since a coordinator alone of three is none.
for word in install start; do
    list fresh | sort -r >"$work/these"
    while read -r _ name address port _; do
        on "$address" "$port" $word || fail "$name: $word has failed"
    done <"$work/these"
done

first_coordinator=$(awk '$1 == 1 { print $3, $4; exit }' "$work/plan")
force=
[ "$ALLOW_INTERRUPTION" = no ] || force=force
list changed >"$work/these"
while read -r _ name address port _; do
    on "$address" "$port" install && on "$address" "$port" roll "$SETTLE_SECONDS" $force ||
        fail "$name: stopped there; the machines after it run what they ran"
done <"$work/these"
# One of the cluster's own machines says how it is.
on $first_coordinator settled "$SETTLE_SECONDS" "$WORKERS" || fail "the cluster is not whole; its logs say why"
say "the cluster is whole: $WORKERS workers"
