#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Install what pycloud needs on this machine: system packages that are missing, and .venv with the
# pinned requirements. Asks nothing, may be interrupted and run again at any time, and does nothing
# when everything is there.
set -Eeuo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/setup.sh [--dev [--unchecked]] [--quiet]

  --dev        also install what the tests need, and see that all of them can run here
  --unchecked  install only; tests with guests or a browser may not be able to run
  --quiet      say nothing when there is nothing to do

Settings from the environment:
  PYCLOUD_PYTHON      the interpreter to make .venv with (default: the first fit python3)
  PYCLOUD_TEST_CACHE  where tests keep what they fetch (default: ~/.cache/pycloud/testing)
TEXT
}

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly ROOT
readonly VENV=$ROOT/.venv
# Written last, so that an environment without it is not complete.
readonly STAMP=$VENV/.pycloud-installed
# There while packages are being installed; found at the start, it tells of an interruption.
readonly UNFINISHED=$VENV/.pycloud-installing
readonly PYTHON_MINIMUM=3.11
# Free space asked for before installing, about one and a half times what was seen to be used.
readonly APT_NEEDED_MIB=1500
readonly APT_TEST_NEEDED_MIB=2500
readonly VENV_NEEDED_MIB=600
# A machine that was just made installs its own updates at first, for minutes.
readonly LOCK_DEADLINE_S=300
readonly LOCK_POLL_S=2
# What apt-get update and dpkg say when another program is at work.
readonly HELD_LOCK='Could not get lock|locked by another process'
# Archives drop a version some time after the next one has come.
readonly LISTS_FRESH_DAYS=3

# As in testing/browser/chromium.py.
readonly BROWSERS=(chromium chromium-browser /snap/bin/chromium)

profile=run
checked=yes
quiet=no
scratch=
child=

main() {
    parse_arguments "$@"
    unset PYTHONHOME PYTHONPATH
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    local started=$SECONDS worked=no
    ! must_run_tests || require_namespaces
    if needs_work; then
        worked=yes
        take_lock
        scratch=$(mktemp -d)
        install_system_packages
    fi
    ! must_run_tests || require_browser
    [[ $worked == no ]] || install_environment
    allow_kvm
    if [[ $profile == dev ]]; then
        provide_test_servers
    fi
    if [[ $worked == yes ]]; then
        echo "pycloud is set up ($((SECONDS - started)) s)."
    elif [[ $quiet == no ]]; then
        echo "pycloud is set up; nothing was missing."
    fi
}

parse_arguments() {
    while (($#)); do
        case $1 in
            --dev) profile=dev ;;
            --unchecked) checked=no ;;
            --quiet) quiet=yes ;;
            -h | --help)
                usage
                exit 0
                ;;
            *)
                usage >&2
                fail "unknown argument: $1"
                ;;
        esac
        shift
    done
    environment_profile=$profile
    # Who has the tests' Python packages keeps them, whatever is asked for now.
    if [[ -r $STAMP && $(<"$STAMP") == dev* ]]; then
        environment_profile=dev
    fi
}

needs_work() {
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || ! have_package_lists || want_newer_lists || ! environment_is_current
}

# --- what tests need and cannot be installed ----------------------------------------------------

must_run_tests() {
    [[ $profile == dev && $checked == yes ]]
}

# Tests make networks and small disks in namespaces of their own, which root always may.
require_namespaces() {
    ! is_root || return 0
    local switch=kernel.apparmor_restrict_unprivileged_userns
    [[ $(cat "/proc/sys/${switch//.//}" 2>/dev/null) == 1 ]] || return 0
    # An AppArmor profile may let this user make them, and even then forbid their use.
    ! unshare --user --map-root-user --mount -- mount -t tmpfs tmpfs /mnt 2>/dev/null || return 0
    fail "this system lets only root use namespaces, which tests with guests need." \
        "Run the tests as root, or allow it until the next restart: sudo sysctl $switch=0"
}

# A package that is only the wrapper of a snap is there also where the snap cannot be.
require_browser() {
    local program
    for program in "${BROWSERS[@]}"; do
        ! timeout 60 "$program" --version >/dev/null 2>&1 || return 0
    done
    fail "there is no Chromium that runs, which tests of pages need. Ubuntu has it as a snap," \
        "for which snapd has to run: sudo apt-get install snapd && sudo snap install chromium"
}

# --- system packages ----------------------------------------------------------------------------

install_system_packages() {
    if ((!${#missing[@]})) && have_package_lists; then
        want_newer_lists && can_refresh_lists || return 0
    fi
    command -v apt-get >/dev/null \
        || fail "this machine has no apt-get; pycloud's set-up knows Debian and Ubuntu." \
            "Install by other means: ${missing[*]:-nothing}"
    become_root
    export DEBIAN_FRONTEND=noninteractive
    refresh_lists
    ((${#missing[@]})) || return 0
    local needed=$APT_NEEDED_MIB
    [[ $profile == run ]] || needed=$APT_TEST_NEEDED_MIB
    require_space /var "$needed"
    require_space /usr "$needed"
    # An interrupted dpkg refuses every installation until it is told to finish.
    when_unlocked "Finishing earlier installations" no_percent as_root finish_dpkg \
        || fail_with_log "dpkg --configure -a failed"
    with_progress "Installing ${#missing[@]} system packages" apt_percent \
        as_root apt_get install --yes --no-install-recommends -- "${missing[@]}" \
        || fail_with_log "apt-get could not install: ${missing[*]}"
}

refresh_lists() {
    when_unlocked "Refreshing the package lists" apt_percent as_root apt_get update && return
    have_package_lists || fail_with_log "apt-get update failed"
    echo "The package lists could not all be refreshed; going on with those that are there." >&2
}

# As with_progress, and again and again while another program holds a lock of apt's or dpkg's.
when_unlocked() {
    local deadline=$((SECONDS + LOCK_DEADLINE_S)) held told=no
    until with_progress "$@"; do
        held=$(grep -m 1 -E -- "$HELD_LOCK" "$log") && ((SECONDS < deadline)) || return 1
        if [[ $told == no ]]; then
            told=yes
            echo "Waiting up to $LOCK_DEADLINE_S s for another program that installs packages: ${held#E: }"
        fi
        sleep "$LOCK_POLL_S"
    done
}

# Prints the packages of the lists in use that are not installed.
missing_packages() {
    command -v dpkg-query >/dev/null || return 0
    local wanted installed
    wanted=$(wanted_packages)
    # dpkg-query fails when it knows nothing of some of them, and prints the others all the same.
    # shellcheck disable=SC2086 # one argument per name
    installed=$(dpkg-query --show --showformat='${Package} ${db:Status-Status}\n' $wanted 2>/dev/null \
        | sed -n 's/ installed$//p' || true)
    comm -23 <(sort -u <<<"$wanted") <(sort -u <<<"$installed")
}

# Prints the packages of the lists in use that are for this machine.
wanted_packages() {
    local lists=("$ROOT/scripts/packages-run.txt" "$ROOT/scripts/packages-guest.txt")
    [[ $profile == run ]] || lists+=("$ROOT/scripts/packages-test.txt")
    local here list line name only command
    here=" $(distribution) $(dpkg --print-architecture) "
    for list in "${lists[@]}"; do
        [[ -r $list ]] || continue
        while read -r line; do
            line=${line%%#*}
            [[ $line =~ ^[[:space:]]*([a-z0-9][a-z0-9.+-]+)([[:space:]]+\[([a-z0-9 ]+)\])?([[:space:]]+\(([^\)]+)\))?[[:space:]]*$ ]] \
                || continue
            name=${BASH_REMATCH[1]} only=${BASH_REMATCH[3]} command=${BASH_REMATCH[5]}
            if [[ -n $only ]] && ! any_word_in "$only" "$here"; then continue; fi
            if [[ -n $command ]] && command -v "$command" >/dev/null; then continue; fi
            echo "$name"
        done <"$list"
    done
}

distribution() {
    local ID='' ID_LIKE=''
    # shellcheck source=/dev/null
    [[ ! -r /etc/os-release ]] || . /etc/os-release
    if [[ " $ID $ID_LIKE " == *" ubuntu "* ]]; then echo ubuntu; else echo debian; fi
}

any_word_in() {
    local word
    for word in $1; do
        [[ $2 != *" $word "* ]] || return 0
    done
    return 1
}

# The guest builder downloads packages by their names in these lists, as an ordinary user.
have_package_lists() {
    command -v apt-get >/dev/null || return 0
    compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null
}

# Says whether what the builder will download may be gone from the archive by now.
want_newer_lists() {
    command -v apt-get >/dev/null || return 1
    ! compgen -G "${XDG_CACHE_HOME:-$HOME/.cache}/pycloud/guest-packages/packages-*.json" >/dev/null \
        || return 1
    # The lists themselves carry the archive's times; these folders tell when they last changed.
    local changed
    changed=$(stat --format=%Y -- /var/lib/apt/lists /var/lib/apt/lists/partial 2>/dev/null \
        | sort -n | tail -n 1) || true
    ((EPOCHSECONDS - ${changed:-0} > LISTS_FRESH_DAYS * 24 * 3600))
}

# Nobody is asked for a password for it, because old lists often do.
can_refresh_lists() {
    ! is_root && ! sudo -n true 2>/dev/null || return 0
    echo "The package lists are old. If the demo VM cannot be built, run: sudo apt-get update" >&2
    return 1
}

is_root() {
    (($(id -u) == 0))
}

become_root() {
    ! is_root || return 0
    local command="apt-get install ${missing[*]}"
    command -v sudo >/dev/null || fail "system packages are missing, and there is no sudo. As root: $command"
    sudo -n true 2>/dev/null && return
    [[ -t 0 ]] || fail "system packages are missing, and sudo wants a password. As root: $command"
    echo "Installing system packages needs sudo."
    sudo -v || fail "sudo refused. As root: $command"
}

# Runs a function of this script, alone in a shell of root's.
as_root() {
    local body
    # Messages in English, because some of them are looked for.
    body="set -euo pipefail; export DEBIAN_FRONTEND=noninteractive LC_ALL=C; $(declare -f "$1"); "
    body+="status=$(printf %q "$scratch/status"); $(printf '%q ' "$@")"
    if is_root; then
        bash -c "$body"
    else
        sudo -- bash -c "$body"
    fi
}

apt_get() {
    # A path through which apt tells its progress; sudo would close an inherited descriptor.
    apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o APT::Status-Fd=3 \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@" 3>"$status"
}

finish_dpkg() {
    dpkg --configure -a --force-confdef --force-confold
}

# --- the Python environment ---------------------------------------------------------------------

environment_is_current() {
    [[ -x $VENV/bin/python && -r $STAMP && ! -e $UNFINISHED ]] && [[ $(<"$STAMP") == "$(stamp)" ]]
}

# Prints what the environment is made from; a moved checkout needs a new one.
stamp() {
    local sources=("$ROOT/setup.py" "$ROOT/pyproject.toml" "$(requirements)")
    echo "$environment_profile $(cat -- "${sources[@]}" | sha256sum | cut -d' ' -f1) $ROOT"
}

requirements() {
    if [[ $environment_profile == dev ]]; then
        echo "$ROOT/requirements-dev.txt"
    else
        echo "$ROOT/requirements.txt"
    fi
}

install_environment() {
    ! environment_is_current || return 0
    require_space "$ROOT" "$VENV_NEEDED_MIB"
    make_environment
    rm -f -- "$STAMP"
    touch -- "$UNFINISHED"
    # What has no wheel is built with the pinned setuptools, not with the newest of the day.
    local pinned="$scratch/setuptools.txt"
    awk '/^[a-z]/ {wanted = /^setuptools==/} wanted' "$(requirements)" >"$pinned"
    pip_total=$(grep -c '^[a-z]' "$(requirements)")
    with_progress "Installing the build tool" no_percent pip_install --require-hashes -r "$pinned" \
        || fail_with_log "pip could not install setuptools"
    with_progress "Installing $pip_total Python packages" pip_percent \
        pip_install --require-hashes --no-build-isolation -r "$(requirements)" \
        || fail_with_log "pip could not install $(requirements)"
    with_progress "Installing pycloud itself" no_percent \
        pip_install --no-index --no-deps --no-build-isolation --editable "$ROOT" \
        || fail_with_log "pip could not install pycloud"
    stamp >"$STAMP.new"
    mv -- "$STAMP.new" "$STAMP"
    rm -f -- "$UNFINISHED"
}

make_environment() {
    if [[ ! -e $UNFINISHED ]] && usable_environment; then
        return
    fi
    find_python
    with_progress "Making $VENV with $("$python" -c 'import platform; print("Python", platform.python_version())')" \
        no_percent "$python" -m venv --clear "$VENV" || fail_with_log "$python cannot make $VENV"
}

# Says whether the environment there is one that pip can go on with.
usable_environment() {
    [[ -x $VENV/bin/python ]] || return 1
    # Scripts in it name the folder that it was made in.
    [[ ! -r $STAMP || $(<"$STAMP") == *" $ROOT" ]] || return 1
    fit_python "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1
}

# Sets $python to the first interpreter that is new enough and complete.
find_python() {
    local candidate found=()
    if [[ -n ${PYCLOUD_PYTHON:-} ]]; then
        fit_python "$PYCLOUD_PYTHON" \
            || fail "PYCLOUD_PYTHON=$PYCLOUD_PYTHON is not Python $PYTHON_MINIMUM or later with venv and headers"
        python=$PYCLOUD_PYTHON
        return
    fi
    for candidate in python3 /usr/bin/python3 python3.{11..19}; do
        command -v "$candidate" >/dev/null || continue
        if fit_python "$candidate"; then
            python=$candidate
            return
        fi
        found+=("$candidate ($("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo broken))")
    done
    fail "pycloud needs Python $PYTHON_MINIMUM or later with its venv module and C headers;" \
        "found: ${found[*]:-none}. Install one and name it in PYCLOUD_PYTHON."
}

fit_python() {
    local answer
    answer=$("$1" - "$PYTHON_MINIMUM" 2>/dev/null <<'PYTHON'
import ensurepip, pathlib, sys, sysconfig, venv
assert sys.version_info[:2] >= tuple(map(int, sys.argv[1].split(".")))
assert (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists()
print("fit")
PYTHON
    ) && [[ $answer == fit ]]
}

pip_install() {
    "$VENV/bin/python" -m pip --disable-pip-version-check --no-input install --progress-bar off "$@"
}

# --- the rest -----------------------------------------------------------------------------------

# libvirt probes QEMU anew before every call, 4 s each, while the device exists and cannot be
# used; elsewhere udev sets this group and mode.
allow_kvm() {
    is_root && [[ -c /dev/kvm && ! -e /run/udev/control ]] || return 0
    [[ $(stat -c '%U:%G %a' /dev/kvm) == "root:root 600" ]] || return 0
    getent group kvm >/dev/null || groupadd --system kvm
    if chown root:kvm /dev/kvm 2>/dev/null && chmod 0660 /dev/kvm 2>/dev/null; then
        echo "Gave /dev/kvm to the group kvm (root:kvm 0660), as udev would have done."
    else
        echo "Could not give /dev/kvm to the group kvm; starting VMs will be slow." >&2
    fi
}

# Servers that the tests run by themselves; none is installed, and none is left running.
provide_test_servers() {
    provide_test_server testing.mongo_server "the MongoDB-protocol server"
    provide_test_server testing.avahi "avahi-daemon"
}

provide_test_server() {
    local module=$1 name=$2
    [[ -r $ROOT/${module//.//}.py ]] || return 0
    [[ -n $scratch ]] || scratch=$(mktemp -d)
    with_progress "Providing $name" no_percent \
        env --chdir="$ROOT" "$VENV/bin/python" -m "$module" \
        || fail_with_log "$name could not be provided"
}

take_lock() {
    # The script itself is the lock: it is there, and each checkout has its own.
    exec 9<"${BASH_SOURCE[0]}"
    flock --nonblock 9 && return
    echo "Waiting for another set-up of this checkout to finish ..."
    flock 9
    mapfile -t missing < <(missing_packages)
}

require_space() {
    local free_mib
    free_mib=$(df --output=avail --block-size=1M -- "$1" | tail -n 1)
    ((free_mib >= $2)) || fail "not enough disk space: $1 has $free_mib MiB free, $2 MiB are needed."
}

# with_progress LABEL PERCENT COMMAND...: run the command with its output in a log; PERCENT is a
# function that prints how far it is, or nothing. Shows nothing for what takes under a second.
with_progress() {
    local label=$1 percent=$2 begin_us elapsed_s shown=-1 status=0
    shift 2
    # Not SECONDS, which counts a second for a moment between two of them.
    begin_us=${EPOCHREALTIME/[.,]/}
    log=$scratch/log
    : >"$log"
    : >"$scratch/status"
    # It inherits the lock, which so outlasts a set-up that is killed while, say, pip goes on.
    "$@" >"$log" 2>&1 </dev/null &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.1
        elapsed_s=$(((${EPOCHREALTIME/[.,]/} - begin_us) / 1000000))
        if ((elapsed_s >= 1 && elapsed_s != shown)); then
            shown=$elapsed_s
            show_progress "$label" "$("$percent")" "$elapsed_s"
        fi
    done
    wait "$child" || status=$?
    child=
    if ((shown >= 0)); then
        end_progress "$label" "$elapsed_s" "$status"
    fi
    return "$status"
}

show_progress() {
    local label=$1 done_percent=$2 elapsed_s=$3 bar=
    if [[ ! -t 1 ]]; then
        # A log gets a line now and then, so that nobody takes the silence for a hang.
        ((elapsed_s == 1 || elapsed_s % 15 == 0)) || return 0
        echo "$label ... ${done_percent:+$done_percent % }($elapsed_s s)"
        return
    fi
    if [[ -n $done_percent ]]; then
        printf -v bar '%*s' $((done_percent / 4)) ''
        printf -v bar '[%-25s] %3d %%' "${bar// /#}" "$done_percent"
    fi
    printf '\r\033[K%s %s %d s' "$label" "$bar" "$elapsed_s"
}

end_progress() {
    local label=$1 elapsed_s=$2 outcome=finished
    (($3 == 0)) || outcome=failed
    [[ ! -t 1 ]] || printf '\r\033[K'
    echo "$label: $outcome ($elapsed_s s)"
}

no_percent() { :; }

# apt first downloads, then unpacks and configures, and counts each from 0 to 100.
apt_percent() {
    tail -n 1 -- "$scratch/status" \
        | awk -F: '$1 == "dlstatus" {print int($3 / 2)} $1 == "pmstatus" {print 50 + int($3 / 2)}'
}

# pip names each package once while it resolves, and then installs them all.
pip_percent() {
    awk -v total="$pip_total" '
        /^(Collecting|Requirement already)/ {seen++}
        /^Installing collected/ {installing = 1}
        END {share = seen / total; print int(installing ? 85 : 80 * (share > 1 ? 1 : share))}' "$log"
}

fail() {
    echo "setup.sh: $*" >&2
    exit 1
}

fail_with_log() {
    echo "----- the end of its output:" >&2
    tail -n 25 -- "$log" >&2
    echo "-----" >&2
    fail "$1"
}

clean_up() {
    local status=$?
    if [[ -n $child ]]; then
        kill "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    [[ -z $scratch ]] || rm -rf -- "$scratch"
    exit "$status"
}

main "$@"
