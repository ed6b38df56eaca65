#include "launch/validation.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <numbers>
#include <numeric>

#include "launch/progress.h"
#include "runtime/format.h"
#include "runtime/log.h"

namespace transxssm {
namespace {

using Clock = std::chrono::steady_clock;
constexpr double kReportSeconds = 15;  // between two lines about a long validation

// The last part of a path, fit for the name of a metric.
std::string name_of(const std::string& prefix) {
  std::string name = prefix.substr(prefix.find_last_of('/') + 1);
  for (char& c : name)
    if (std::string_view("._-").find(c) == std::string_view::npos &&
        !std::isalnum(static_cast<unsigned char>(c)))
      c = '_';
  return name;
}

std::vector<std::string> names_of(const ValidationSet& set) {
  std::vector<std::string> names;
  for (int i = 0; i < set.num_sources(); ++i) {
    std::string name = name_of(set.prefix(i));
    if (std::find(names.begin(), names.end(), name) != names.end()) name += fmt::format(".{}", i);
    names.push_back(name);
  }
  return names;
}

int64_t total(const std::vector<int64_t>& rows) {
  return std::accumulate(rows.begin(), rows.end(), int64_t{0});
}

}  // namespace

Validation::Validation(const TrainConfig& config, const DataFiles& files, const Tokenizer* tokenizer)
    : set_(open_validation_set(config, files, tokenizer)),
      rows_(config.log().validation_rows()),
      final_rows_(config.log().final_validation_rows()) {
  if (!set_) return;
  names_ = names_of(*set_);
  if (tokenizer == nullptr) return;
  for (int32_t id = 0; id < config.model().vocab_size(); ++id)
    bytes_of_id_.push_back(tokenizer->has_token(id) && !tokenizer->is_special(id)
                               ? static_cast<int32_t>(tokenizer->token_bytes(id).size())
                               : 0);
}

// Adds rows [from, to) of every source. A part has at most a step's rows, dealt out a microbatch at a time:
// replicas beyond the last microbatch have nothing to do.
AgreedSignal Validation::add_rows(Trainer& trainer, const std::vector<int64_t>& from,
                                  const std::vector<int64_t>& to, std::vector<Sums>& sums,
                                  const std::function<AgreedSignal()>& signal) {
  const Clock::time_point begin = Clock::now();
  Clock::time_point reported = begin;
  const Batch& batch = trainer.batch();
  const int64_t microbatch = trainer.microbatch_rows();
  const MeshShape& shape = trainer.mesh().shape();
  const int64_t replica = trainer.mesh().coordinate().dp;
  const int64_t all = total(to) - total(from);
  std::vector<int64_t> next = from;
  std::vector<int> source_of(static_cast<size_t>(batch.rows()));
  size_t source = 0;
  AgreedSignal seen;
  for (int64_t done = 0; done < all;) {
    const int64_t rows = std::min(all - done, batch.rows() * shape.dp);
    int64_t mine = 0;  // microbatches of this replica
    std::fill(source_of.begin(), source_of.end(), -1);
    for (int64_t q = 0; q < rows; ++q) {
      while (next[source] == to[source]) ++source;
      const int64_t row = next[source]++, number = q / microbatch;
      if (number % shape.dp != replica) continue;
      const int64_t i = number / shape.dp * microbatch + q % microbatch;
      set_->fill(static_cast<int>(source), row, batch, i);
      source_of[static_cast<size_t>(i)] = static_cast<int>(source);
      mine = number / shape.dp + 1;
    }
    for (int64_t i = 0; i < batch.rows(); ++i)
      if (source_of[static_cast<size_t>(i)] < 0) set_->fill_nothing(batch, i);
    const std::vector<double>& losses = trainer.evaluate(mine);
    for (int64_t i = 0; i < mine * microbatch; ++i) {
      if (source_of[static_cast<size_t>(i)] < 0) continue;
      Sums& sum = sums[static_cast<size_t>(source_of[static_cast<size_t>(i)])];
      sum.loss += losses[static_cast<size_t>(i)];
      for (int64_t t = 0; t < batch.tokens(); ++t) sum.targets += batch.valid.at<uint8_t>({i, t});
      if (!bytes_of_id_.empty()) sum.bytes += static_cast<double>(text_bytes(bytes_of_id_, batch, i));
    }
    done += rows;
    publish_progress(trainer.steps_done(), fmt::format("validate {}/{}", done, all));
    if (done == all) break;
    const double elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
    if (std::chrono::duration<double>(Clock::now() - reported).count() > kReportSeconds) {
      reported = Clock::now();
      log_info("validation: {} of {} rows, {} left", format_count(done), format_count(all),
               format_duration(elapsed * static_cast<double>(all - done) / static_cast<double>(done)));
    }
    const AgreedSignal now = signal();
    if (now.request > seen.request) seen = now;
    if (seen.request == StopRequest::save_and_exit) {
      log_info("{} on rank {}: the validation stops after {} of {} rows", signal_name(seen.signal), seen.rank,
               format_count(done), format_count(all));
      break;
    }
  }
  return seen;
}

// Collective.
Validation::Figures Validation::figures(Trainer& trainer, std::vector<Sums> sums) const {
  // The ranks of a replica know the same targets; one of them, which knows the loss too, speaks.
  if (!trainer.knows_loss()) std::fill(sums.begin(), sums.end(), Sums{});
  trainer.mesh().world().all_reduce(
      Tensor(sums.data(), DType::f64, {static_cast<int64_t>(sums.size() * sizeof(Sums) / sizeof(double))}));
  Figures figures;
  double loss = 0, bytes = 0, share = 0;  // per target, by weight
  for (size_t i = 0; i < sums.size(); ++i) {
    const Sums& s = sums[i];
    figures.targets += s.targets;
    figures.of_source.push_back(s.targets > 0 ? s.loss / s.targets : NAN);
    if (s.targets == 0) continue;
    const double weight = sums.size() == 1 ? 1 : set_->share(static_cast<int>(i));
    share += weight;
    loss += weight * (s.loss / s.targets);
    bytes += weight * (s.bytes / s.targets);
  }
  figures.loss = share > 0 ? loss / share : NAN;
  figures.bits_per_byte = bytes > 0 ? loss / std::numbers::ln2 / bytes : NAN;
  return figures;
}

void Validation::append(std::vector<Metric>& metrics, const char* prefix, const Figures& figures) const {
  metrics.push_back({fmt::format("eval/{}loss", prefix), figures.loss});
  metrics.push_back({fmt::format("eval/{}bits_per_byte", prefix), figures.bits_per_byte});
  if (names_.size() == 1) return;
  for (size_t i = 0; i < names_.size(); ++i)
    metrics.push_back({fmt::format("eval/{}loss/{}", prefix, names_[i]), figures.of_source[i]});
}

std::string Validation::describe(const Figures& figures) const {
  std::string text = fmt::format(
      "{:.4f} nats per token{} over {} tokens", figures.loss,
      std::isnan(figures.bits_per_byte) ? "" : fmt::format(", {:.4f} bits per byte", figures.bits_per_byte),
      format_count(static_cast<int64_t>(figures.targets)));
  if (names_.size() == 1) return text;
  for (size_t i = 0; i < names_.size(); ++i)
    text += fmt::format("{} {} {:.4f}", i == 0 ? ";" : ",", names_[i], figures.of_source[i]);
  return text;
}

AgreedSignal Validation::run(Trainer& trainer, bool final, MetricsWriter* metrics,
                             const std::function<AgreedSignal()>& signal) {
  if (!set_) return {};
  publish_progress(trainer.steps_done(), "validate");
  const std::vector<int64_t> none(names_.size(), 0),
      sample = set_->choose(rows_), whole = set_->choose(final_rows_ == 0 ? set_->num_rows() : final_rows_);
  const bool has_sample = !final || total(sample) <= total(whole);
  std::vector<Sums> sums(names_.size());
  std::vector<Metric> record;
  AgreedSignal seen;
  const auto say = [&](const char* what, const Figures& f) {
    if (f.targets == 0)
      log_warning("validation: no target in the first rows; documents of one token?");
    else
      log_info("validation at step {}{}: {}", trainer.steps_done(), what, describe(f));
  };
  // The sample is a part of the final rows: what it takes is not computed twice.
  std::optional<Figures> of_sample;
  if (has_sample) {
    seen = add_rows(trainer, none, sample, sums, signal);
    if (seen.request == StopRequest::save_and_exit) return seen;
    of_sample = figures(trainer, sums);
    append(record, "", *of_sample);
  }
  if (final) {
    const AgreedSignal later = add_rows(trainer, has_sample ? sample : none, whole, sums, signal);
    if (later.request > seen.request) seen = later;
    if (seen.request == StopRequest::save_and_exit) return seen;
    const Figures of_whole = figures(trainer, sums);
    append(record, "final_", of_whole);
    if (metrics == nullptr) return seen;
    if (of_sample && total(sample) < total(whole)) say("", *of_sample);
    say(total(whole) == set_->num_rows() ? ", all rows" : ", final", of_whole);
  } else if (metrics != nullptr) {
    say("", *of_sample);
  }
  if (metrics != nullptr) metrics->write(trainer.steps_done(), record);
  return seen;
}

}  // namespace transxssm
