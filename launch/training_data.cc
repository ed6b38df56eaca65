#include "launch/training_data.h"

namespace transxssm {

std::vector<std::pair<std::string, std::string>> missing_files(const TrainConfig& config) {
  std::vector<std::pair<std::string, std::string>> missing;
  const auto check = [&](const std::string& field, const std::string& path) {
    if (!posix_file_system().exists(path)) missing.emplace_back(field, path + " does not exist");
  };
  const auto check_tokens = [&](const std::string& field, const std::string& prefix) {
    if (prefix.empty()) return;
    for (const char* suffix : {".bin", ".idx"}) check(field, prefix + suffix);
  };
  const auto& data = config.data();
  for (int i = 0; i < data.train_size(); ++i)
    check_tokens(fmt::format("data.train[{}].prefix", i), data.train(i).prefix());
  check_tokens("data.validation", data.validation());
  if (!data.tokenizer().empty()) check("data.tokenizer", data.tokenizer());
  return missing;
}

TrainingData open_training_data(const TrainConfig& config) {
  std::string missing;
  for (const auto& [field, what] : missing_files(config))
    missing += fmt::format("{}{}: {}", missing.empty() ? "" : "; ", field, what);
  if (!missing.empty()) throw DataError("{}", missing);
  TrainingDataSpec spec{
      .validation_fraction = config.data().validation().empty() ? config.data().validation_fraction() : 0,
      .seed = config.seed(),
      .tokens = config.data().sequence_length(),
      .vocab_size = config.model().vocab_size(),
      .pack_documents = config.data().pack_documents()};
  for (const auto& source : config.data().train()) spec.sources.push_back({source.prefix(), source.weight()});
  return TrainingData(spec);
}

}  // namespace transxssm
