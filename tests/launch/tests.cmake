if(TARGET test_launch)
  target_compile_definitions(test_launch PRIVATE SOURCE_TREE="${CMAKE_SOURCE_DIR}")
endif()
add_test(NAME bench_sh COMMAND launch/bench_test.sh ${CMAKE_SOURCE_DIR} $<TARGET_FILE:transxssm>
         WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
set_tests_properties(bench_sh PROPERTIES LABELS mpi TIMEOUT ${LIMIT_120} PROCESSORS 2)
