#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Lets avahi-daemon announce this cloudlet: writes service files made from the templates
# beside this script. Needed only where avahi-daemon owns UDP port 5353 for itself; set
# `pycloud.discovery = avahi` there. avahi-daemon notices the files by itself. One of them
# tells load and services and is kept up to date by the server, so it belongs to USER, who
# runs the server (default: who runs this script, or called sudo).
#
#   discovery/install.sh [--name NAME] [--port PORT] [--owner USER] [--directory DIR]
#   discovery/install.sh --remove [--directory DIR]

set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name="$(uname -n)"
name="${name%%.*}"
port=9999
owner="${SUDO_USER:-$(id -un)}"
directory=/etc/avahi/services
remove=no

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case "$1" in
        --*=*)
            argument="$1"
            shift
            set -- "${argument%%=*}" "${argument#*=}" "$@"
            ;;
        --name | --port | --owner | --directory)
            [ $# -ge 2 ] || fail "$1 needs a value"
            declare "${1#--}=$2"
            shift 2
            ;;
        --remove)
            remove=yes
            shift
            ;;
        --help)
            sed -n '4,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) fail "unknown argument $1; see --help" ;;
    esac
done

if [ "$remove" = yes ]; then
    rm -f -- "$directory/pycloud.service" "$directory/pycloud-facts.service"
    echo "removed pycloud.service and pycloud-facts.service from $directory"
    exit 0
fi

# Nothing that these patterns let through means anything to XML, to sed or to a phone.
[[ "$name" =~ ^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$ ]] ||
    fail "the name '$name' is not allowed: letters, digits, '_' and '-', at most 63"
if ! [[ "$port" =~ ^[0-9]{1,5}$ ]] || [ "$port" -lt 1 ] || [ "$port" -gt 65535 ]; then
    fail "the port '$port' is not one"
fi
id -u -- "$owner" >/dev/null 2>&1 || fail "there is no user '$owner'"
[ -d "$directory" ] || fail "$directory is missing; install the package avahi-daemon"
[ -w "$directory" ] || fail "$directory is not writable; run this with sudo"

temporary="$(mktemp -- "$directory/.pycloud.XXXXXX")"
trap 'rm -f -- "$temporary"' EXIT

# put NAME OWNER: make this file of its template, whole or not at all.
put() {
    sed -e "s/@NAME@/$name/g" -e "s/@PORT@/$port/g" "$here/$1.template" >"$temporary"
    chmod 0644 -- "$temporary"
    [ "$2" = "$(id -un)" ] || chown -- "$2" "$temporary"
    sync -- "$temporary"
    mv -- "$temporary" "$directory/$1"
}

put pycloud-facts.service "$owner"
put pycloud.service "$(id -un)"
echo "avahi-daemon now announces the cloudlet '$name' on port $port ($directory/pycloud.service)"
echo "set pycloud.discovery = avahi and pycloud.name = $name, and restart pycloud as $owner"
