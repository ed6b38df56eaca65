#include "launch/device.h"

#include <strings.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <utility>
#include <vector>

#include "parallel/device_transport.h"
#include "runtime/cpu_features.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

constexpr std::string_view kNumbered = "cuda:";

// N of "cuda:N".
std::optional<int> number_of(const std::string& choice) {
  if (!choice.starts_with(kNumbered)) return std::nullopt;
  int number = 0;
  const char* end = choice.data() + choice.size();
  const auto [stop, error] = std::from_chars(choice.data() + kNumbered.size(), end, number);
  if (error != std::errc() || stop != end || number < 0) return std::nullopt;
  return number;
}

}  // namespace

bool is_device_choice(const std::string& choice) {
  return choice == "auto" || choice == "cpu" || choice == "cuda" || number_of(choice).has_value();
}

Device choose_device(const std::string& choice, int local_rank) {
  if (!is_device_choice(choice))
    throw UsageError("device {} is not known; legal values are auto, cpu, cuda and cuda:N", choice);
  if (choice == "cpu" || (choice == "auto" && !has_device())) return {};
  const int count = device_runtime().num_devices();
  if (count == 0)
    throw DeviceError(
        "device {}: this host has no GPU that a driver serves; install the NVIDIA driver, or choose the "
        "device cpu",
        choice);
  const std::optional<int> number = number_of(choice);
  if (number && *number >= count)
    throw DeviceError("device {}: this host has {} GPU{}; choose {}, or cuda for each rank's own", choice,
                      count, count == 1 ? "" : "s",
                      count == 1 ? "cuda:0" : fmt::format("one of cuda:0 to cuda:{}", count - 1));
  return {DeviceKind::cuda, number.value_or(local_rank % count)};
}

std::string settle_compute(TrainConfig& config, const Device& device, Communicator& world) {
  std::string& compute = *config.mutable_precision()->mutable_compute();
  if (compute != "auto") return fmt::format("compute   {}, as configured", compute);
  float without = device.is_cpu() && !cpu_has_bf16() ? 1 : 0;
  const bool lacks = without != 0;
  world.all_reduce(Tensor(&without, DType::f32, {1}));
  compute = without == 0 ? "bf16" : "f32";
  if (without == 0)
    return fmt::format("compute   bf16: {}; precision.compute=f32 is exact and slower",
                       device.is_cpu() ? "every rank's processor has AVX512_BF16" : "on GPUs");
  return fmt::format("compute   f32: {} has no instructions for bf16",
                     lacks ? "this processor (" + cpu_level() + ")"
                           : fmt::format("the processor of {:.0f} of the {} ranks", without, world.size()));
}

std::string fix_order_of_sums(const std::function<const char*(const char*)>& get,
                              const std::function<void(const char*, const char*)>& set) {
  // A ring adds in the order of its ranks; trees are cut, and switches add (NVLS), as it happens.
  constexpr std::pair<const char*, const char*> kWanted[] = {{"NCCL_ALGO", "Ring"},
                                                             {"NCCL_NVLS_ENABLE", "0"}};
  std::vector<std::string> others;
  for (const auto& [name, value] : kWanted) {
    const char* given = get(name);
    if (given == nullptr) {
      set(name, value);
    } else if (::strcasecmp(given, value) != 0) {
      others.push_back(fmt::format("{}={} instead of {}", name, given, value));
    }
  }
  if (others.empty()) return "";
  return fmt::format(
      "precision.deterministic does not hold for sums over ranks: the environment has {}; unset it, or set "
      "precision.deterministic=false",
      fmt::join(others, " and "));
}

void use_device_of(Stream& stream, Worker& worker, bool deterministic) {
  const Device device = stream.device();
  if (device.is_cpu()) return;
  if (deterministic && worker.size() > 1) {
    const std::string doubt = fix_order_of_sums(
        [](const char* name) { return std::getenv(name); },
        [](const char* name, const char* value) { ::setenv(name, value, /*overwrite=*/0); });
    if (!doubt.empty()) log_warning("{}", doubt);
  }
  const std::string transport = attach_device(worker.world(), stream);
  const int count = device_runtime().num_devices();
  log_info("device    {}: {}{}", device.to_string(), device_runtime().describe(device.index),
           worker.num_local_ranks() > count
               ? fmt::format("; {} ranks of {} share {} GPUs", worker.num_local_ranks(), worker.host(), count)
               : "");
  if (worker.size() > 1) log_info("transport {}", transport);
}

}  // namespace transxssm
