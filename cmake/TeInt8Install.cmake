# Install rules, and the package that find_package(te_int8 CONFIG) reads.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(te_int8_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/te_int8)

install(TARGETS te_int8 EXPORT te_int8Targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/te_int8 DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN *.h)
install(EXPORT te_int8Targets NAMESPACE te_int8:: DESTINATION ${te_int8_package_dir})

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/te_int8Config.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/te_int8Config.cmake INSTALL_DESTINATION ${te_int8_package_dir})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/te_int8ConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/te_int8Config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/te_int8ConfigVersion.cmake
  ${PROJECT_SOURCE_DIR}/cmake/TeInt8Torch.cmake
  DESTINATION ${te_int8_package_dir})
