#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Set up this checkout for tests and run all of them: lint, types, layers, then pytest over
# everything in testing/. Exits with 0 only when all of it passed and nothing was skipped.
set -Eeuo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/test.sh [--fast] [arguments for pytest]

  --fast  leave out what boots guests or starts a browser

With a path among the arguments only pytest is run, on that path:
  scripts/test.sh testing/unit/core -k instances
TEXT
}

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly ROOT
readonly BIN=$ROOT/.venv/bin
# These kinds share nothing but the processor, so two at a time are almost twice as fast; guests
# and browsers use both cores by themselves and are run one after the other, but for the tests that
# mostly wait until somebody notices that a server died.
readonly PARALLEL_KINDS=(unit contract functional)
readonly SERIAL_KINDS=(system browser)
readonly WAITING=testing/system/test_crash_recovery.py
readonly WORKERS=2
# Sourced files are named there as the guest sees them.
readonly GUEST_SCRIPTS=scripts/guest_root

fast=no
failures=()
pytest_arguments=()

main() {
    parse_arguments "$@"
    cd -- "$ROOT"
    if [[ $fast == yes ]]; then
        ./scripts/setup.sh --dev --unchecked --quiet
    else
        ./scripts/setup.sh --dev --quiet
    fi
    reports=$(mktemp -d)
    trap 'rm -rf -- "$reports"' EXIT
    if names_a_path; then
        run_pytest chosen "${pytest_arguments[@]}"
    else
        run_checks
        run_tests
    fi
    summarize
}

parse_arguments() {
    while (($#)); do
        case $1 in
            --fast) fast=yes ;;
            -h | --help)
                usage
                exit 0
                ;;
            *) pytest_arguments+=("$1") ;;
        esac
        shift
    done
}

names_a_path() {
    local argument
    for argument in "${pytest_arguments[@]}"; do
        [[ $argument == -* || ! -e ${argument%%::*} ]] || return 0
    done
    return 1
}

run_checks() {
    check "shell lint" lint_shell_scripts
    check "lint" "$BIN/ruff" check --quiet .
    check "format" "$BIN/ruff" format --check --quiet .
    check "types" "$BIN/mypy"
    check "layers" "$BIN/lint-imports"
}

lint_shell_scripts() {
    local here guest
    mapfile -t here < <(shell_scripts | grep -v "^$GUEST_SCRIPTS/")
    mapfile -t guest < <(shell_scripts | grep "^$GUEST_SCRIPTS/")
    # The guest's shell is busybox's, which this version of shellcheck does not know; of those
    # that it knows, bash comes closest. 1091: one file is made by the builder. 2154: some
    # variables are set by the DHCP client and by the script that reads the file.
    shellcheck -- "${here[@]}" \
        && shellcheck --shell=bash --external-sources --source-path="$GUEST_SCRIPTS" \
            --exclude=SC1091,SC2154 -- "${guest[@]}"
}

# Prints the shell scripts that git tracks: by their names, or by their first lines.
shell_scripts() {
    local file first
    {
        git ls-files -- '*.sh'
        git grep --files-with-matches -I -E '^#!.*\b(ba|da)?sh\b' | while read -r file; do
            read -r first <"$file"
            [[ $first != '#!'* ]] || echo "$file"
        done
    } | sort -u
}

# check NAME COMMAND...: its output is worth reading only when it fails.
check() {
    local name=$1 begin=$SECONDS
    shift
    if "$@" >"$reports/check.log" 2>&1; then
        echo "$name: passed ($((SECONDS - begin)) s)"
    else
        cat -- "$reports/check.log"
        echo "$name: FAILED"
        failures+=("$name")
    fi
}

run_tests() {
    local parallel=() serial=() kind
    for kind in "${PARALLEL_KINDS[@]}"; do
        [[ ! -d testing/$kind ]] || parallel+=("testing/$kind")
    done
    for kind in "${SERIAL_KINDS[@]}"; do
        [[ ! -d testing/$kind ]] || serial+=("testing/$kind")
    done
    ((!${#parallel[@]})) \
        || run_pytest "without guests" -n "$WORKERS" "${parallel[@]}" "${pytest_arguments[@]}"
    [[ $fast == no ]] && ((${#serial[@]})) || return 0
    run_pytest "servers that die" -n "$WORKERS" "$WAITING" "${pytest_arguments[@]}"
    run_pytest "with guests and browser" \
        --ignore="$WAITING" "${serial[@]}" "${pytest_arguments[@]}"
}

run_pytest() {
    local name=$1 status=0
    shift
    echo "--- tests: $name"
    "$BIN/python" -m pytest --junit-xml="$reports/$name.xml" "$@" || status=$?
    # 5: nothing matched; that is a failure only where nothing matched anywhere, see summarize.
    ((status == 0 || status == 5)) || failures+=("tests $name")
}

# Adds up what pytest counted; a skipped test has proved nothing, so it counts as failed.
summarize() {
    local passed failed skipped
    read -r passed failed skipped < <("$BIN/python" - "$reports" <<'PYTHON'
import pathlib, sys
from xml.etree import ElementTree

total = failed = skipped = 0
for report in pathlib.Path(sys.argv[1]).glob("*.xml"):
    for suite in ElementTree.parse(report).iter("testsuite"):
        total += int(suite.get("tests"))
        failed += int(suite.get("failures")) + int(suite.get("errors"))
        skipped += int(suite.get("skipped"))
print(total - failed - skipped, failed, skipped)
PYTHON
)
    ((skipped == 0)) || failures+=("$skipped skipped tests")
    ((passed + failed + skipped)) || failures+=("no test was run")
    echo "---"
    if ((${#failures[@]})); then
        printf 'FAILED: %s\n' "${failures[@]}"
    fi
    echo "$passed passed, $((failed + skipped)) failed"
    ((${#failures[@]} == 0))
}

main "$@"
