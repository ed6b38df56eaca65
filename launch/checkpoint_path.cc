#include "launch/checkpoint_path.h"

#include <filesystem>
#include <system_error>

#include "launch/config_reader.h"
#include "runtime/file_system.h"

namespace transxssm {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;

std::string inside(const std::string& run_directory, const std::string& directory) {
  const std::filesystem::path path(directory);
  return path.is_absolute() ? directory : (std::filesystem::path(run_directory) / path).string();
}

}  // namespace

std::string checkpoints_directory(const TrainConfig& config) {
  return inside(config.log().run_directory(), config.checkpoint().directory());
}

std::string checkpoints_of_run(const std::string& run_directory) {
  const std::string file = run_directory + "/config.textproto";
  std::string text;
  try {
    text = read_file(posix_file_system(), file, kMaxConfigBytes);
  } catch (const std::system_error&) {
    return "";
  }
  // Of a run of another version some fields may be unknown; only this one is wanted.
  TrainConfig config;
  ConfigReader(config, file).read_textproto(text);
  return config.checkpoint().has_directory() ? inside(run_directory, config.checkpoint().directory()) : "";
}

}  // namespace transxssm
