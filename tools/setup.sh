#!/usr/bin/env bash
# Sets up everything the project needs: an environment in .venv with ROS 2 from wheels, cosmos3_msgs built against it and
# installed into it, and this repository importable from it. Does nothing if all of that is in place already.
#
# The environment is a complete ROS 2 prefix: its share/ holds the ament index, its lib/ the libraries.
# Variables: PYTHON, the Python 3.12 to use (default: python3.12, or python3 if that is 3.12).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly environment=.venv
readonly environment_stamp=$environment/.environment_complete
readonly workspace_stamp=$environment/.workspace_complete
readonly build=.build/cosmos3_msgs
readonly log=.build/setup.log
readonly site_packages=$environment/lib/python3.12/site-packages
# Compiled in place, beside their sources.
mapfile -t kernels < <(compgen -G 'cosmos3_ros/guard/kernels_*.pyx'; compgen -G 'engine/observation/kernels_*.pyx')
readonly kernels
# Software rendering for the simulated cameras, and the libraries that decode recorded video.
readonly libraries=(libegl1 libosmesa6 libgl1-mesa-dri libgles2 ffmpeg)

# A sourced ROS 2 installation, another environment, or an outer make must not leak into this one.
[ -z "${AMENT_PREFIX_PATH:-}" ] || unset LD_LIBRARY_PATH
unset AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH PYTHONHOME PYTHONPATH VIRTUAL_ENV _ROS_WHEELS_BOOTSTRAP_COMPLETE
unset PIP_PREFIX PIP_ROOT PIP_TARGET PIP_USER
unset MAKEFLAGS MFLAGS MAKELEVEL

say() { printf 'setup: %s\n' "$*" >&2; }

# --- what is in place ------------------------------------------------------------------------------------------------

# One line that changes whenever the contents or names of the given files do, or this checkout moves.
fingerprint() { { pwd; uname -m; cat tools/setup.sh; find "$@" -type f | LC_ALL=C sort | xargs sha256sum; } | sha256sum; }

environment_fingerprint() { fingerprint requirements; }
workspace_fingerprint() {
  fingerprint requirements cosmos3_msgs resource tools/ros_wheels.cmake setup.py setup.cfg "${kernels[@]}"
}

is_complete() { [ -x $environment/bin/python ] && [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }
environment_is_complete() { is_complete $environment_stamp "$(environment_fingerprint)"; }
workspace_is_complete() { kernels_are_built && is_complete $workspace_stamp "$(workspace_fingerprint)"; }

kernels_are_built() {
  local kernel
  for kernel in "${kernels[@]}"; do
    compgen -G "${kernel%.pyx}.*.so" > /dev/null || return 1
  done
}

# The last act of a stage. Written beside and moved, so that the stamp is whole or absent.
complete() { printf '%s\n' "$2" > "$1.new" && mv "$1.new" "$1"; }

# --- prerequisites ---------------------------------------------------------------------------------------------------

missing=()   # what is missing, for people
packages=()  # Debian and Ubuntu packages that bring it

lacks() { missing+=("$1 (package: $2)"); packages+=("$2"); }

python_312() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3; do
    # Running it tells more than finding it: a version manager's stand-in exists without the version behind it.
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2> /dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
    [ -z "${PYTHON:-}" ] || return 0
  done
}

check_python() {
  python=$(python_312)
  if [ -z "$python" ]; then
    lacks "Python 3.12${PYTHON:+, which PYTHON=$PYTHON is not} (one in an unusual place: make setup PYTHON=its-path)" python3.12
    lacks "Python 3.12's venv module" python3.12-venv
    lacks "Python 3.12's headers" python3.12-dev
    return
  fi
  "$python" -c 'import ensurepip, venv' 2> /dev/null || lacks "venv module of $python" python3.12-venv
  "$python" -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' ||
    lacks "headers of $python" python3.12-dev
}

check_cmake() {
  local version
  version=$(cmake --version 2> /dev/null | sed -n '1s/[^0-9]*//p') || version=
  if [ -z "$version" ]; then
    lacks 'cmake 3.21 or newer' cmake
  elif [ "$(printf '3.21\n%s\n' "$version" | sort -V | head -n 1)" != 3.21 ]; then
    lacks "cmake 3.21 or newer, found $version" cmake
  fi
}

check_prerequisites() {
  check_python
  check_cmake
  command -v make > /dev/null || lacks 'make' make
  command -v "${CC:-cc}" > /dev/null || lacks "a C compiler (${CC:-cc})" gcc
  command -v "${CXX:-c++}" > /dev/null || lacks "a C++ compiler (${CXX:-c++})" g++
  command -v flock > /dev/null || lacks 'flock' util-linux
  [ ${#missing[@]} -gt 0 ] || return 0
  say "this machine lacks:"
  printf '  - %s\n' "${missing[@]}" >&2
  say "on Debian or Ubuntu: sudo apt-get install ${packages[*]}"
  exit 1
}

# --- stages ----------------------------------------------------------------------------------------------------------

missing_libraries() {
  local library
  for library in "${libraries[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$library" 2> /dev/null) == ii* ]] || printf '%s\n' "$library"
  done
}

# Runs apt-get as root if that needs no password; fails if it does.
apt_get() {
  local as_root=()
  command -v apt-get > /dev/null || return 1
  if [ "$(id -u)" != 0 ]; then
    sudo -n true 2> /dev/null || return 1
    as_root=(sudo -n)
  fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" >> $log 2>&1 < /dev/null
}

# Never fails: everything but rendering and video works without these libraries.
install_libraries() {
  local wanted offered=() library
  mapfile -t wanted < <(missing_libraries)
  [ ${#wanted[@]} -gt 0 ] || return 0
  say "system libraries: ${wanted[*]}"
  if apt_get update; then
    for library in "${wanted[@]}"; do
      # A distribution may have dropped one of them; that must not keep the others from being installed.
      ! apt-cache show "$library" > /dev/null 2>&1 || offered+=("$library")
    done
    ! apt_get install -y --no-install-recommends "${offered[@]}" || return 0
  fi
  say 'they could not be installed without asking; rendering and video need them. Please run:'
  say "  sudo apt-get install ${wanted[*]}"
}

new_environment() {
  rm -rf $environment
  "$python" -m venv $environment
}

readonly without_dependencies=(--no-deps --requirement requirements/test-no-deps.txt)
requirements=()
for file in requirements/*.txt; do
  case $file in
    */bootstrap.txt | */test-no-deps.txt) ;;
    */constraints.txt) requirements+=(--constraint "$file") ;;
    *) requirements+=(--requirement "$file") ;;
  esac
done

uv_install() {
  local options=(--python "$environment/bin/python")
  [ -t 2 ] || options+=(--quiet)
  $environment/bin/python -m pip install --no-user --quiet --requirement requirements/bootstrap.txt >> $log 2>&1 &&
    $environment/bin/uv pip install "${options[@]}" "${requirements[@]}" &&
    $environment/bin/uv pip install "${options[@]}" "${without_dependencies[@]}"
}

# pip reads configuration that uv does not, such as a company's own index; a half-done attempt is thrown away first.
pip_install() {
  say 'uv could not do it; trying pip, which takes several minutes'
  new_environment
  $environment/bin/python -m pip install --no-user --progress-bar off --quiet "${requirements[@]}"
  $environment/bin/python -m pip install --no-user --progress-bar off --quiet "${without_dependencies[@]}"
}

build_environment() {
  say 'environment: Python packages and ROS 2 Jazzy into .venv (about 6 GB)'
  new_environment
  uv_install || pip_install
  complete $environment_stamp "$(environment_fingerprint)"
}

forget_interfaces() {
  rm -rf $build $environment/{include,share}/cosmos3_msgs $site_packages/cosmos3_msgs* $environment/lib/libcosmos3_msgs__*
}

build_interfaces() {
  local prefix=$PWD/$environment
  export AMENT_PREFIX_PATH=$prefix
  cmake -S cosmos3_msgs -B $build -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_PREFIX_PATH="$prefix" \
    -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF -DPython3_EXECUTABLE="$prefix/bin/python" \
    -DCMAKE_PROJECT_INCLUDE="$PWD/tools/ros_wheels.cmake" &&
    cmake --build $build --parallel "$(nproc)" &&
    cmake --install $build
}

# Where `ros2 launch`, `ros2 run` and the ament index look: as an installation would have it, but linked to the sources.
link_package() {
  local share=$environment/share/cosmos3_ros executables=$environment/lib/cosmos3_ros
  rm -rf $share $executables
  mkdir -p $share $executables $environment/share/ament_index/resource_index/packages
  ln -s "$PWD"/{package.xml,launch,config} $share
  ln -sf "$PWD/resource/cosmos3_ros" $environment/share/ament_index/resource_index/packages/cosmos3_ros
  # The nodes' names are too common for PATH; only the command line stays there.
  grep -l '^from cosmos3_ros\.' $environment/bin/* | grep -v '/cosmos3$' | xargs -I{} mv {} $executables
}

install_package() {
  local options=(--quiet --no-deps --no-build-isolation --editable .)
  if [ -x $environment/bin/uv ]; then
    $environment/bin/uv pip install --python $environment/bin/python "${options[@]}"
  else
    $environment/bin/python -m pip install --no-user "${options[@]}"
  fi
  link_package
}

build_workspace() {
  say 'workspace: cosmos3_msgs and this repository into .venv'
  rm -f $workspace_stamp
  forget_interfaces
  if ! build_interfaces >> $log 2>&1; then
    tail -n 40 $log >&2
    say "building cosmos3_msgs failed; all of its output is in $log"
    exit 1
  fi
  install_package
  complete $workspace_stamp "$(workspace_fingerprint)"
}

# --- main ------------------------------------------------------------------------------------------------------------

if environment_is_complete && workspace_is_complete; then
  exit 0
fi

check_prerequisites
mkdir -p .build
exec 9> .build/setup.lock
flock --nonblock 9 || { say 'another set-up of this checkout is running; waiting for it'; flock 9; }
trap 'exit 130' INT TERM
trap '[ $? = 0 ] || say "did not finish; run it again to start over where it stopped"' EXIT

if ! environment_is_complete; then
  : > $log
  install_libraries
  build_environment
fi
workspace_is_complete || build_workspace
say "complete after $SECONDS s"
