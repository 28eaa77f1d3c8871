# Installs the headers, the CMake package and the pkg-config file. All of it is independent of the architecture.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(package_dir "${CMAKE_INSTALL_DATADIR}/cmake/fastrope")
set(pkgconfig_dir "${CMAKE_INSTALL_DATADIR}/pkgconfig")

install(TARGETS fastrope_core fastrope EXPORT fastrope FILE_SET HEADERS)
if(TARGET fastrope_spectral)
  install(TARGETS fastrope_spectral EXPORT fastrope FILE_SET HEADERS)
endif()
install(EXPORT fastrope FILE fastrope-targets.cmake NAMESPACE fastrope:: DESTINATION "${package_dir}")

configure_package_config_file(cmake/fastrope-config.cmake.in fastrope-config.cmake
  INSTALL_DESTINATION "${package_dir}")
# Before 1.0 a minor version may break callers.
write_basic_package_version_file(fastrope-config-version.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES
  "${CMAKE_CURRENT_BINARY_DIR}/fastrope-config.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/fastrope-config-version.cmake"
  cmake/FindFFTW3.cmake
  DESTINATION "${package_dir}")

# The prefix is written relative to the .pc file, so that an installed tree can be moved.
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
  BASE_DIRECTORY "${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig" OUTPUT_VARIABLE pkgconfig_to_prefix)
configure_file(cmake/fastrope.pc.in fastrope.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/fastrope.pc" DESTINATION "${pkgconfig_dir}")

install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")
