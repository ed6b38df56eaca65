// cuDNN's graph interface, loaded when it is first asked for: the program runs without the library too.
#pragma once

#include <cudnn_graph.h>

#include <string>

namespace transxssm::cuda::cudnn {

// The functions of libcudnn.so.9 that are used here.
struct Library {
  decltype(&cudnnGetVersion) get_version;
  decltype(&cudnnGetErrorString) get_error_string;
  decltype(&cudnnGetLastErrorString) get_last_error_string;
  decltype(&cudnnCreate) create;
  decltype(&cudnnDestroy) destroy;
  decltype(&cudnnSetStream) set_stream;
  decltype(&cudnnBackendCreateDescriptor) create_descriptor;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor;
  decltype(&cudnnBackendSetAttribute) set_attribute;
  decltype(&cudnnBackendGetAttribute) get_attribute;
  decltype(&cudnnBackendFinalize) finalize;
  decltype(&cudnnBackendExecute) execute;
};

// Why there is no library; empty where there is one.
const std::string& missing();
// DeviceError where there is none.
const Library& library();

// Throws DeviceError that says what was tried and what cuDNN answered, unless it succeeded.
void check(cudnnStatus_t status, const char* what);

}  // namespace transxssm::cuda::cudnn
