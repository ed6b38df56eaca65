#include "launch/training_data.h"

namespace transxssm {

TrainingData open_training_data(const TrainConfig& config) {
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
