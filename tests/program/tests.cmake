# The program as a user meets it: one script a kind of use, cases inside (lib.sh).
file(GLOB PROGRAM_TESTS CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/program/*_test.sh)
foreach(SCRIPT IN LISTS PROGRAM_TESTS)
  get_filename_component(NAME ${SCRIPT} NAME_WE)
  add_test(NAME program_${NAME} COMMAND ${SCRIPT} $<TARGET_FILE:transxssm>)
  set_tests_properties(program_${NAME} PROPERTIES LABELS mpi TIMEOUT ${LIMIT_600} PROCESSORS 2 SKIP_RETURN_CODE 77)
endforeach()
