# Tests that need mpirun, label mpi. Paths are relative to tests/.
add_executable(test_communicator_mpi parallel/communicator_mpi.cc parallel/communicator_suite.cc
               parallel/toy_pipeline.cc)
target_link_libraries(test_communicator_mpi PRIVATE parallel GTest::gtest MPI::MPI_CXX)
foreach(RANKS 2 3 4 8)
  add_test(NAME communicator_mpi_${RANKS}
           COMMAND mpirun --oversubscribe --allow-run-as-root --bind-to none -n ${RANKS}
                   $<TARGET_FILE:test_communicator_mpi>)
  # The exit status is 0 only where every rank of a job of at least two has run the cases.
  set_tests_properties(communicator_mpi_${RANKS} PROPERTIES
    LABELS mpi TIMEOUT ${LIMIT_120} PROCESSORS 2
    ENVIRONMENT OMPI_MCA_btl_vader_single_copy_mechanism=none)
endforeach()

# Processes that reach one another by messages alone are ranks of other hosts.
add_executable(test_several_hosts_mpi parallel/several_hosts_mpi.cc parallel/communicator_suite.cc)
target_link_libraries(test_several_hosts_mpi PRIVATE parallel GTest::gtest MPI::MPI_CXX)
add_test(NAME several_hosts_mpi
         COMMAND mpirun --oversubscribe --allow-run-as-root --bind-to none --mca btl tcp,self -n 4
                 $<TARGET_FILE:test_several_hosts_mpi>)
set_tests_properties(several_hosts_mpi PROPERTIES LABELS mpi TIMEOUT ${LIMIT_120} PROCESSORS 2)
