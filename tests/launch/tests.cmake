if(TARGET test_launch)
  target_compile_definitions(test_launch PRIVATE SOURCE_TREE="${CMAKE_SOURCE_DIR}")
endif()
