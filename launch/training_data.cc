#include "launch/training_data.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "runtime/error.h"
#include "runtime/log.h"
#include "runtime/printable.h"

namespace transxssm {
namespace {

constexpr int64_t kScanBytes = int64_t{1} << 28;  // read between two words to the ranks that wait

std::vector<std::string> prefixes_of(const TrainConfig& config) {
  std::vector<std::string> prefixes;
  const auto add = [&](const std::string& prefix) {
    if (std::find(prefixes.begin(), prefixes.end(), prefix) == prefixes.end()) prefixes.push_back(prefix);
  };
  for (const auto& source : config.data().train()) add(source.prefix());
  if (!config.data().validation().empty()) add(config.data().validation());
  return prefixes;
}

// The lowest rank of every rank's host.
std::vector<int> leaders(Communicator& world) {
  using Name = std::array<char, 64>;
  std::vector<Name> names(static_cast<size_t>(world.size()), Name{});
  Name mine{};
  gethostname(mine.data(), mine.size() - 1);
  const auto bytes = static_cast<int64_t>(sizeof(Name));
  world.all_gather(Tensor(mine.data(), DType::u8, {bytes}),
                   Tensor(names.data(), DType::u8, {world.size() * bytes}));
  std::map<Name, int> first;
  std::vector<int> result;
  for (int rank = 0; rank < world.size(); ++rank)
    result.push_back(first.emplace(names[static_cast<size_t>(rank)], rank).first->second);
  return result;
}

// Reads the ids of files whose range is not known, a part at a time.
class Scan {
 public:
  explicit Scan(const TokenFile& file) : file_(file), known_(file.known_ids()) {}
  bool done() const { return known_ || at_ == file_.num_tokens(); }
  void go_on() {
    const int64_t count = std::min(file_.num_tokens() - at_, kScanBytes / file_.token_bytes());
    const IdRange part = file_.scan_ids(at_, count);
    ids_ = at_ == 0 ? part : IdRange{std::min(ids_.low, part.low), std::max(ids_.high, part.high)};
    at_ += count;
  }
  // Once done.
  IdRange finish() {
    if (known_) return *known_;
    file_.remember_ids(ids_);
    return ids_;
  }

 private:
  const TokenFile& file_;
  std::optional<IdRange> known_;
  IdRange ids_;
  int64_t at_ = 0;
};

std::string maker_of(const TokenFile& file) {
  return fmt::format("{} (digest {})", printable(file.facts()->tokenizer), file.facts()->tokenizer_digest);
}

bool names_tokenizer(const TokenFile& file) {
  return file.facts() && !file.facts()->tokenizer_digest.empty();
}

// That all files were made with the tokenizer, as far as they say.
void check_tokenizers(const std::vector<std::shared_ptr<const TokenFile>>& files,
                      const std::vector<IdRange>& ids, const std::string& tokenizer_file,
                      const Tokenizer* tokenizer) {
  const std::string digest = tokenizer != nullptr ? tokenizer->digest() : "";
  const TokenFile* other = nullptr;
  for (size_t i = 0; i < files.size(); ++i) {
    const TokenFile& file = *files[i];
    if (!file.facts_problem().empty()) log_warning("{}.", file.facts_problem());
    if (!names_tokenizer(file)) {
      if (tokenizer == nullptr) continue;
      if (ids[i].high >= tokenizer->vocab_size())
        log_warning("{} has ids up to {}, but the tokenizer {} has {} tokens: it was made with another one.",
                    file.prefix(), ids[i].high, tokenizer_file, tokenizer->vocab_size());
      else
        log_info("{} does not say which tokenizer made it; {} is taken for it.", file.prefix(),
                 tokenizer_file);
      continue;
    }
    if (tokenizer != nullptr && file.facts()->tokenizer_digest != digest)
      throw DataError(
          "{} was made with the tokenizer {}, but data.tokenizer is {} (digest {}): its ids mean other text; "
          "give the tokenizer it was made with, or tokenize the text again.",
          file.prefix(), maker_of(file), tokenizer_file, digest);
    if (other != nullptr && other->facts()->tokenizer_digest != file.facts()->tokenizer_digest)
      throw DataError(
          "{} was made with the tokenizer {}, but {} with {}: their ids mean different text; tokenize one of "
          "them again.",
          other->prefix(), maker_of(*other), file.prefix(), maker_of(file));
    other = &file;
  }
}

}  // namespace

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

void require_files(const TrainConfig& config) {
  std::string missing;
  for (const auto& [field, what] : missing_files(config))
    missing += fmt::format("{}{}: {}", missing.empty() ? "" : "; ", field, what);
  if (!missing.empty()) throw DataError("{}", missing);
}

DataFiles::DataFiles(const TrainConfig& config, Communicator& world, const Tokenizer* tokenizer) {
  require_files(config);
  const std::vector<std::string> prefixes = prefixes_of(config);
  const std::vector<int> leader_of = leaders(world);
  const int leader = leader_of[static_cast<size_t>(world.rank())];
  std::vector<std::shared_ptr<const TokenFile>> files;
  std::vector<Scan> scans;
  std::vector<TokenFileSummary> summaries(prefixes.size());
  if (leader == world.rank()) {
    for (size_t i = 0; i < prefixes.size(); ++i) {
      files.push_back(std::make_shared<const TokenFile>(prefixes[i]));
      scans.emplace_back(*files.back());
      summaries[i] = files.back()->summary();
    }
  }
  // A host may have to read terabytes: the ranks that wait hear of it before their time limit.
  size_t next = 0;
  for (double unfinished = 1; unfinished > 0;) {
    while (next < scans.size() && scans[next].done()) ++next;
    if (next < scans.size()) scans[next].go_on();
    while (next < scans.size() && scans[next].done()) ++next;
    unfinished = next < scans.size() ? 1 : 0;
    world.all_reduce(Tensor(&unfinished, DType::f64, {1}));
  }
  std::vector<IdRange> ids;
  for (size_t i = 0; i < scans.size(); ++i) {
    ids.push_back(scans[i].finish());
    files[i]->check_vocabulary(config.model().vocab_size(), ids[i]);
  }
  if (world.rank() == 0) check_tokenizers(files, ids, config.data().tokenizer(), tokenizer);

  std::vector<TokenFileSummary> all(prefixes.size() * static_cast<size_t>(world.size()));
  const auto bytes = static_cast<int64_t>(prefixes.size() * sizeof(TokenFileSummary));
  world.all_gather(Tensor(summaries.data(), DType::u8, {bytes}),
                   Tensor(all.data(), DType::u8, {world.size() * bytes}));
  for (size_t i = 0; i < prefixes.size(); ++i) {
    const auto of = [&](int rank) -> const TokenFileSummary& {
      return all[static_cast<size_t>(rank) * prefixes.size() + i];
    };
    for (const int rank : leader_of)
      if (of(rank) != of(0))
        throw DataError("{} on the host of rank {} is not the file that rank 0 has: copy it again.",
                        prefixes[i], rank);
    files_[prefixes[i]] =
        leader == world.rank() ? files[i] : std::make_shared<const TokenFile>(prefixes[i], of(leader));
  }
}

TrainingData open_training_data(const TrainConfig& config, const DataFiles& files) {
  TrainingDataSpec spec{
      .validation_fraction = config.data().validation().empty() ? config.data().validation_fraction() : 0,
      .seed = config.seed(),
      .tokens = config.data().sequence_length(),
      .vocab_size = config.model().vocab_size(),
      .pack_documents = config.data().pack_documents()};
  for (const auto& source : config.data().train())
    spec.sources.push_back({source.prefix(), source.weight(), files.at(source.prefix())});
  return TrainingData(spec);
}

std::optional<ValidationSet> open_validation_set(const TrainConfig& config, const DataFiles& files,
                                                 const Tokenizer* tokenizer) {
  const auto& d = config.data();
  ValidationSpec spec{.tokens = d.sequence_length(),
                      .vocab_size = config.model().vocab_size(),
                      .end_of_document = tokenizer != nullptr ? tokenizer->end_of_document().value_or(0) : 0,
                      .pack_documents = d.pack_documents()};
  if (!d.validation().empty()) {
    spec.sources = {{d.validation(), 1, files.at(d.validation())}};
  } else if (d.validation_fraction() > 0) {
    spec.fraction = d.validation_fraction();
    for (const auto& source : d.train())
      spec.sources.push_back({source.prefix(), source.weight(), files.at(source.prefix())});
  } else {
    return std::nullopt;
  }
  return std::optional<ValidationSet>(std::in_place, spec);
}

void warn_of_unused_sources(const TrainConfig& config, const TrainingData& data, int64_t rows) {
  const std::vector<int64_t> counts = data.blend().counts(rows);
  for (int i = 0; i < config.data().train_size(); ++i)
    if (counts[static_cast<size_t>(i)] == 0)
      log_warning("data.train[{}] ({}) has weight {}, so small that none of the {} rows of this run is its.",
                  i, config.data().train(i).prefix(), config.data().train(i).weight(), rows);
}

}  // namespace transxssm
