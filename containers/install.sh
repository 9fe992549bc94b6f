#!/bin/sh
# Install the checkout that holds this file, with the versions that the tests passed with:
#     sh containers/install.sh cpu      or cuda, or tpu
set -eu
cd "$(dirname "$0")/.."
device="${1:-cpu}"
case "$device" in
  cpu) extra="" ;;
  cuda | tpu) extra="[$device]" ;;
  *)
    echo "error: no device '$device': give cpu, cuda or tpu" >&2
    exit 2
    ;;
esac
python -m pip install --no-cache-dir -c constraints.txt ".$extra"
