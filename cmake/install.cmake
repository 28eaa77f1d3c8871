# Installs the headers, the CMake package and the pkg-config file, which are independent of the architecture, and the
# library of the compiled form where it is built.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(package_dir "${CMAKE_INSTALL_DATADIR}/cmake/fastrope")
set(pkgconfig_dir "${CMAKE_INSTALL_DATADIR}/pkgconfig")

install(TARGETS fastrope_core fastrope EXPORT fastrope FILE_SET HEADERS)
if(TARGET fastrope_spectral)
  install(TARGETS fastrope_spectral EXPORT fastrope FILE_SET HEADERS)
endif()
if(TARGET fastrope_mpi)
  install(TARGETS fastrope_mpi EXPORT fastrope FILE_SET HEADERS)
endif()
if(FASTROPE_BUILD_COMPILED)
  # With targets of its own: who links it needs none of the headers' dependencies.
  install(TARGETS fastrope_compiled EXPORT fastrope_compiled FILE_SET HEADERS)
  install(EXPORT fastrope_compiled FILE fastrope-compiled-targets.cmake NAMESPACE fastrope::
    DESTINATION "${package_dir}")
endif()
install(EXPORT fastrope FILE fastrope-targets.cmake NAMESPACE fastrope:: DESTINATION "${package_dir}")

configure_package_config_file(cmake/fastrope-config.cmake.in fastrope-config.cmake
  INSTALL_DESTINATION "${package_dir}")
# Before 1.0 a minor version may break callers.
set(independent ARCH_INDEPENDENT)
if(FASTROPE_BUILD_COMPILED)
  set(independent "")
endif()
write_basic_package_version_file(fastrope-config-version.cmake COMPATIBILITY SameMinorVersion ${independent})
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
if(FASTROPE_BUILD_COMPILED)
  configure_file(cmake/fastrope-compiled.pc.in fastrope-compiled.pc @ONLY)
  install(FILES "${CMAKE_CURRENT_BINARY_DIR}/fastrope-compiled.pc" DESTINATION "${pkgconfig_dir}")
endif()

install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")
