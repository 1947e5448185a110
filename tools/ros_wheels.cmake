# Repairs, while a package is configured, what ROS 2 packages from wheels export wrongly.
#
# Their imported targets carry the include directories of Python and numpy on the machine that built the wheels. CMake
# refuses to generate with an imported target whose include directory does not exist, so those that do not are dropped;
# the headers come from this environment's own Python, which the packages find by themselves.
#
# Use: cmake -DCMAKE_PROJECT_INCLUDE=<this file>. A package built against a ROS 2 installation does not need it.

function(drop_missing_include_directories)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT directories)
      continue()
    endif()
    set(existing "")
    foreach(directory IN LISTS directories)
      if(directory MATCHES "^\\$<" OR EXISTS "${directory}")
        list(APPEND existing "${directory}")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${existing}")
  endforeach()
endfunction()

cmake_language(DEFER CALL drop_missing_include_directories)
