#!/usr/bin/env bash
# Runs the ROS tests on ROS 2 Kilted: in a copy of this repository under .build/kilted, with an environment of its own
# (another 6 GB). Arguments are passed to pytest. What is tested is what is committed.
#
# The build packages of a distribution belong together, so that none of Jazzy's pins can be kept.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly copy=.build/kilted
readonly source=$PWD

if [ ! -d $copy ]; then
  git clone --quiet --no-hardlinks . $copy
fi
cd $copy
git fetch --quiet "$source" HEAD
git reset --quiet --hard FETCH_HEAD

sed -i -E 's/^ros-jazzy-([a-z-]+)==[0-9.]+/ros-kilted-\1/; s/^ros-rmw-fastrtps-cpp==[0-9.]+/ros-rmw-fastrtps-cpp<9.4/' \
  requirements/ros.txt
sed -i -E 's/^(ros-[a-z-]+)==[0-9.]+/\1/' requirements/ros-build.txt
echo 'ros-ament-cmake-ros-core          # split from ament_cmake_ros in Kilted' >> requirements/ros-build.txt
sed -i '/^ros-/d' requirements/constraints.txt

make test ARGS="tests/ros ${*@Q}"
