# Every mesh equals one rank: as threads (unit: the awkward shape; slow: tiny's shape and the other kinds), and as processes under mpirun.
set(EQUIVALENCE ${CMAKE_CURRENT_SOURCE_DIR}/equivalence)
add_library(mesh_run OBJECT ${EQUIVALENCE}/mesh_run.cc)
target_link_libraries(mesh_run PUBLIC launch)

add_executable(test_equivalence ${EQUIVALENCE}/mesh_equivalence_test.cc)
target_link_libraries(test_equivalence PRIVATE mesh_run support GTest::gtest GTest::gtest_main GTest::gmock)
gtest_discover_tests(test_equivalence TEST_FILTER "-*Tiny*:*Kinds*" PROPERTIES LABELS unit TIMEOUT ${LIMIT_120} ENVIRONMENT
                     OMP_NUM_THREADS=1)
gtest_discover_tests(test_equivalence TEST_FILTER "*Tiny*:*Kinds*" TEST_SUFFIX .slow PROPERTIES LABELS slow TIMEOUT ${LIMIT_900}
                     ENVIRONMENT "OMP_NUM_THREADS=1;TEST_WATCHDOG_SECONDS=800")

add_executable(equivalence_mpi ${EQUIVALENCE}/equivalence_mpi.cc)
target_link_libraries(equivalence_mpi PRIVATE mesh_run MPI::MPI_CXX)
mpi_tests(equivalence_mpi "2;4")
