#include "kernels/cuda/cudnn_library.h"

#include <dlfcn.h>

#include <type_traits>

#include "runtime/error.h"

namespace transxssm::cuda::cudnn {

namespace {

constexpr size_t kOldest = 91000;  // devices without a handle, masks of minus infinity, sums it clears itself

struct Loaded {
  Loaded() {
    void* const handle = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      missing = dlerror();
      return;
    }
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
      if (function == nullptr && missing.empty()) missing = std::string("libcudnn.so.9 lacks ") + name;
    };
    find(library.get_version, "cudnnGetVersion");
    find(library.get_error_string, "cudnnGetErrorString");
    find(library.get_last_error_string, "cudnnGetLastErrorString");
    find(library.create, "cudnnCreate");
    find(library.destroy, "cudnnDestroy");
    find(library.set_stream, "cudnnSetStream");
    find(library.create_descriptor, "cudnnBackendCreateDescriptor");
    find(library.destroy_descriptor, "cudnnBackendDestroyDescriptor");
    find(library.set_attribute, "cudnnBackendSetAttribute");
    find(library.get_attribute, "cudnnBackendGetAttribute");
    find(library.finalize, "cudnnBackendFinalize");
    find(library.execute, "cudnnBackendExecute");
    if (missing.empty() && library.get_version() < kOldest)
      missing = "cuDNN " + std::to_string(library.get_version()) + " is older than 9.10";
  }
  Library library{};
  std::string missing;
};

const Loaded& loaded() {
  static const Loaded once;
  return once;
}

}  // namespace

const std::string& missing() {
  return loaded().missing;
}

const Library& library() {
  if (!missing().empty()) throw DeviceError("cuDNN cannot be used: {}", missing());
  return loaded().library;
}

void check(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  char message[512] = "";
  library().get_last_error_string(message, sizeof(message));
  throw DeviceError("cuDNN: {}: {} {}", what, library().get_error_string(status), message);
}

}  // namespace transxssm::cuda::cudnn
