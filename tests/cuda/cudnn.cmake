# Paths are relative to tests/. Which graphs of attention the installed cuDNN takes; no GPU is needed.
find_path(CUDNN_HEADERS cudnn_graph.h HINTS ${CUDA_HEADERS})
find_library(CUDNN_LIBRARY NAMES libcudnn.so.9 HINTS ${CUDA_HEADERS}/../lib64 ${CUDA_HEADERS}/../lib)
find_file(CUDA_STUB libcuda.so HINTS ${CUDA_HEADERS}/.. PATH_SUFFIXES lib64/stubs lib/stubs)
if(NOT CUDA_HEADERS OR NOT CUDNN_HEADERS OR NOT CUDNN_LIBRARY)
  message(STATUS "cuDNN's plans are not tested: its headers and library are not installed")
  add_test(NAME cudnn_plan COMMAND ${CMAKE_COMMAND} -E true)
  set_tests_properties(cudnn_plan PROPERTIES LABELS cuda DISABLED TRUE)  # counted as not run
  return()
endif()
set(CUDNN_SOURCES ${CMAKE_SOURCE_DIR}/kernels/cuda/cudnn_library.cu ${CMAKE_SOURCE_DIR}/kernels/cuda/cudnn_graph.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/cudnn_attention_graphs.cu)
set_source_files_properties(${CUDNN_SOURCES} PROPERTIES LANGUAGE CXX)
add_executable(test_cudnn cuda/cudnn_plan_test.cc ${CUDNN_SOURCES})
target_include_directories(test_cudnn SYSTEM PRIVATE ${CUDA_HEADERS} ${CUDNN_HEADERS})
target_compile_definitions(test_cudnn PRIVATE CUDA_STUB="${CUDA_STUB}")
target_link_libraries(test_cudnn PRIVATE support runtime ${CMAKE_DL_LIBS} GTest::gtest GTest::gtest_main)
get_filename_component(CUDNN_DIRECTORY ${CUDNN_LIBRARY} DIRECTORY)
gtest_discover_tests(test_cudnn DISCOVERY_TIMEOUT 30
                     PROPERTIES LABELS cuda TIMEOUT ${LIMIT_120} ENVIRONMENT LD_LIBRARY_PATH=${CUDNN_DIRECTORY})
