// The data that a configuration names.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/config.h"
#include "parallel/communicator.h"
#include "runtime/data/sampler.h"
#include "runtime/data/token_file.h"
#include "runtime/data/tokenizer.h"

namespace transxssm {

// The files of the section `data` that do not exist: {field, what is wrong}.
std::vector<std::pair<std::string, std::string>> missing_files(const TrainConfig& config);
// DataError that names all of them.
void require_files(const TrainConfig& config);

// Every token file of the section `data`, opened once: training and validation share them.
class DataFiles {
 public:
  // Collective. One rank a host checks each file and reads its ids where their range is not known; the others
  // open what it has checked. DataError: a file that is damaged, that has ids outside the vocabulary, that is
  // not the same on all hosts, or that was made with another tokenizer than `tokenizer` (null: none is given)
  // or than the other files.
  DataFiles(const TrainConfig& config, Communicator& world, const Tokenizer* tokenizer);
  std::shared_ptr<const TokenFile> at(const std::string& prefix) const { return files_.at(prefix); }

 private:
  std::map<std::string, std::shared_ptr<const TokenFile>> files_;
};

// The sources of data.train. DataError.
TrainingData open_training_data(const TrainConfig& config, const DataFiles& files);
// data.validation, or the held-out part of data.train; nothing with neither. DataError.
std::optional<ValidationSet> open_validation_set(const TrainConfig& config, const DataFiles& files,
                                                 const Tokenizer* tokenizer);

// Names the sources of data.train of which the first `rows` rows take none.
void warn_of_unused_sources(const TrainConfig& config, const TrainingData& data, int64_t rows);

}  // namespace transxssm
