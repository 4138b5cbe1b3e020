# SPDX-License-Identifier: Apache-2.0
# Reads the kernel's clock without starting a process.

# Sets $uptime to the hundredths of a second since the kernel started.
uptime_cs() {
    read -r uptime _ </proc/uptime
    uptime=${uptime%.*}${uptime#*.}
    # A leading zero would make the shell read the number as octal.
    while [ "${uptime#0}" != "$uptime" ] && [ -n "${uptime#0}" ]; do
        uptime=${uptime#0}
    done
}

# Prints hundredths of a second as seconds.
seconds() {
    printf '%d.%02d' $(($1 / 100)) $(($1 % 100))
}
