# SPDX-License-Identifier: Apache-2.0
# What the service does; /srv/connection calls one of these for a request. Each ends with a reply.

MEMORY_RESERVE_MIB=24
BLOCKS_PER_WRITE=16
LOCK_TRIES=1500

describe() {
    uptime_cs
    read -r boot_id </proc/sys/kernel/random/boot_id
    reply '200 OK' "{
  \"service\": \"$GUEST_NAME\",
  \"does\": \"computes checksums and statistics of what is posted to /analyse\",
  \"hostname\": \"$(hostname)\",
  \"boot_id\": \"$boot_id\",
  \"uptime_s\": $(seconds "$uptime"),
  \"kernel\": \"$(uname -r)\",
  \"vcpus\": $(nproc),
  \"memory_mib\": $(($(memory_kib MemTotal) / 1024)),
  \"resources\": [\"/\", \"/health\", \"/time\", \"/visits\", \"/memory\", \"/analyse\"]
}"
}

health() {
    reply '200 OK' '{"status": "ok"}'
}

tell_time() {
    uptime_cs
    now=$(date -u +'%Y-%m-%dT%H:%M:%SZ %s')
    reply '200 OK' \
        "{\"utc\": \"${now% *}\", \"epoch_s\": ${now#* }, \"uptime_s\": $(seconds "$uptime")}"
}

# Adds one to the counter on the data disk; it is on the disk before the client hears of it.
count_visit() {
    lock visits
    visits=0
    [ ! -s /data/visits ] || read -r visits </data/visits
    visits=$((visits + 1))
    if echo "$visits" >/data/visits.new && mv /data/visits.new /data/visits && sync; then
        unlock
        reply '200 OK' "{\"visits\": $visits}"
    fi
    unlock
    refuse '507 Insufficient Storage' 'the data disk is full or read-only'
}

# Holds touch_mib MiB of written memory until the next call says another number.
hold_memory() {
    case "&$query&" in
    *"&touch_mib="*) wanted_mib="&$query&" ;;
    *) report_memory ;;
    esac
    wanted_mib=${wanted_mib#*&touch_mib=}
    wanted_mib=${wanted_mib%%&*}
    case $wanted_mib in
    '' | *[!0-9]* | 0?* | ???????*) refuse '400 Bad Request' 'touch_mib must be a number of MiB' ;;
    esac
    lock memory
    : >/run/held/pages
    free_mib=$(($(memory_kib MemAvailable) / 1024 - MEMORY_RESERVE_MIB))
    if [ "$wanted_mib" -gt "$free_mib" ]; then
        unlock
        refuse '507 Insufficient Storage' "only $free_mib MiB can be held"
    fi
    write_pages "$wanted_mib"
    unlock
    report_memory
}

# Fills pages with bytes that neither a zero-page check nor a compressor can shrink away unnoticed.
write_pages() {
    [ -s /run/held/block ] || head -c 1048576 /dev/urandom >/run/held/block
    blocks=
    for _ in $(seq "$BLOCKS_PER_WRITE"); do
        blocks="$blocks /run/held/block"
    done
    left=$1
    while [ "$left" -ge "$BLOCKS_PER_WRITE" ]; do
        # shellcheck disable=SC2086 # The list is meant to split into file names.
        cat $blocks >>/run/held/pages
        left=$((left - BLOCKS_PER_WRITE))
    done
    while [ "$left" -gt 0 ]; do
        cat /run/held/block >>/run/held/pages
        left=$((left - 1))
    done
}

report_memory() {
    held=0
    [ ! -e /run/held/pages ] || held=$(stat -c %s /run/held/pages)
    reply '200 OK' "{\"held_mib\": $((held / 1048576)), \
\"total_mib\": $(($(memory_kib MemTotal) / 1024)), \
\"available_mib\": $(($(memory_kib MemAvailable) / 1024))}"
}

analyse() {
    uptime_cs
    started=$uptime
    # Independent passes, so that a second virtual processor helps.
    md5sum <"$upload" >"$results.md5" &
    sha256sum <"$upload" >"$results.sha256" &
    /srv/histogram "$upload" "$size_bytes" >"$results.histogram" &
    counts=$(wc <"$upload")
    wait
    # shellcheck disable=SC2086 # wc prints lines, words and bytes, parted by spaces.
    set -- $counts
    read -r md5 _ <"$results.md5"
    read -r sha256 _ <"$results.sha256"
    histogram=$(cat "$results.histogram")
    uptime_cs
    reply '200 OK' "{
  \"size_bytes\": $size_bytes,
  \"lines\": $1,
  \"words\": $2,
  \"md5\": \"$md5\",
  \"sha256\": \"$sha256\",
$histogram,
  \"time_taken_s\": $(seconds $((uptime - started)))
}"
}

# memory_kib FIELD: prints a field of /proc/meminfo.
memory_kib() {
    while read -r field amount _; do
        if [ "$field" = "$1:" ]; then
            echo "$amount"
            return
        fi
    done </proc/meminfo
}

# A directory can be made once only, which makes it a lock; busybox may come without flock. The lock
# goes with the process: see the trap in /srv/connection.
lock() {
    tries=0
    until mkdir "/run/lock-$1" 2>/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -le "$LOCK_TRIES" ] || refuse '503 Service Unavailable' 'too many are waiting'
        usleep 20000
    done
    locked=/run/lock-$1
}

unlock() {
    [ -z "$locked" ] || rmdir "$locked"
    locked=
}
