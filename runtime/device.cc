#include "runtime/device.h"

#include <fmt/format.h>

#include "runtime/error.h"

namespace transxssm {
namespace {

DeviceRuntime* registered = nullptr;

}  // namespace

std::string Device::to_string() const {
  return is_cpu() ? "cpu" : fmt::format("cuda:{}", index);
}

void use_device_runtime(DeviceRuntime* runtime) {
  registered = runtime;
}

bool has_device() {
  return registered != nullptr && registered->num_devices() > 0;
}

DeviceRuntime& device_runtime() {
  if (registered == nullptr)
    throw DeviceError("this program was built without CUDA: build the preset cuda, or choose the device cpu");
  return *registered;
}

}  // namespace transxssm
