#!/usr/bin/env bash
# Resolves the requirement files into requirements/constraints.txt, which pins what they bring along.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly constraints=requirements/constraints.txt
inputs=()
for file in requirements/*.txt; do
  case $file in */bootstrap.txt | */test-no-deps.txt | "$constraints") ;; *) inputs+=("$file") ;; esac
done

resolved=$(.venv/bin/uv pip compile --quiet --python-version 3.12 --no-header --no-annotate "${inputs[@]}")
{
  echo '# What the other requirement files bring along, as resolved for Linux. Made by "make lock"; not edited by hand.'
  printf '%s\n' "$resolved"
} > "$constraints.new"
mv "$constraints.new" "$constraints"
