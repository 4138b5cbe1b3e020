#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Lets avahi-daemon announce this cloudlet: writes a service file made from the template
# beside this script. Needed only where avahi-daemon owns UDP port 5353 for itself; set
# `pycloud.discovery = avahi` there. avahi-daemon notices the file by itself.
#
#   discovery/install.sh [--name NAME] [--port PORT] [--directory DIR]
#   discovery/install.sh --remove [--directory DIR]

set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name="$(uname -n)"
name="${name%%.*}"
port=9999
directory=/etc/avahi/services
remove=no

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case "$1" in
        --name | --port | --directory)
            [ $# -ge 2 ] || fail "$1 needs a value"
            declare "${1#--}=$2"
            shift 2
            ;;
        --remove)
            remove=yes
            shift
            ;;
        --help)
            sed -n '4,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) fail "unknown argument $1; see --help" ;;
    esac
done

target="$directory/pycloud.service"
if [ "$remove" = yes ]; then
    rm -f -- "$target"
    echo "removed $target"
    exit 0
fi

# Nothing that these patterns let through means anything to XML, to sed or to a phone.
[[ "$name" =~ ^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$ ]] ||
    fail "the name '$name' is not allowed: letters, digits, '_' and '-', at most 63"
[[ "$port" =~ ^[0-9]{1,5}$ ]] && [ "$port" -ge 1 ] && [ "$port" -le 65535 ] ||
    fail "the port '$port' is not one"
[ -d "$directory" ] || fail "$directory is missing; install the package avahi-daemon"
[ -w "$directory" ] || fail "$directory is not writable; run this with sudo"

temporary="$(mktemp -- "$directory/.pycloud.XXXXXX")"
trap 'rm -f -- "$temporary"' EXIT
sed -e "s/@NAME@/$name/g" -e "s/@PORT@/$port/g" "$here/pycloud.service.template" >"$temporary"
chmod 0644 -- "$temporary"
sync -- "$temporary"
mv -- "$temporary" "$target"
echo "avahi-daemon now announces the cloudlet '$name' on port $port ($target)"
echo "set pycloud.discovery = avahi and pycloud.name = $name, and restart pycloud"
