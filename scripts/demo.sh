#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Show what a cloudlet is: run one on this machine, and use it as a phone would. Installs what is
# missing, asks nothing, and cleans up after itself.
set -Eeuo pipefail

usage() {
    cat <<'TEXT'
Usage: scripts/demo.sh [--keep | --stop] [--fresh] [--file FILE]

  --keep       leave the servers up at the end; their URLs are printed
  --stop       stop the servers that an earlier run left up, and nothing else
  --fresh      add the service anew, so that the first start is from cold again
  --file FILE  let the service analyse this file (default: the LICENSE of pycloud)
  --record SVG also save what is shown as a picture; docs/demo.svg was made with --fresh and this

Everything is kept in ~/.cache/pycloud; a cloudlet that you run yourself is not touched.
TEXT
}

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

for argument in "$@"; do
    case $argument in
        -h | --help)
            usage
            exit 0
            ;;
    esac
done
"$ROOT/scripts/setup.sh" --quiet
exec "$ROOT/.venv/bin/python" "$ROOT/scripts/demo.py" "$@"
