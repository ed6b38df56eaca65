# Whole-program tests: real processes, real signals, real files.
add_test(NAME fault_whole_program COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/fault/whole_program_test.sh $<TARGET_FILE:transxssm>)
set_tests_properties(fault_whole_program PROPERTIES LABELS mpi TIMEOUT ${LIMIT_600} PROCESSORS 2 ENVIRONMENT OMP_NUM_THREADS=1)
