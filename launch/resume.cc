#include "launch/resume.h"

#include <fmt/format.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "runtime/error.h"
#include "runtime/format.h"

namespace transxssm {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

struct Change {
  std::string field;
  std::string before, after;  // as the configuration writes them
};

std::string value_text(const Message& message, const FieldDescriptor& field) {
  if (!field.is_repeated()) {
    std::string text;
    google::protobuf::TextFormat::PrintFieldValueToString(message, &field, -1, &text);
    return text;
  }
  std::string text;
  for (int i = 0; i < message.GetReflection()->FieldSize(message, &field); ++i) {
    const auto& source = static_cast<const proto::DataSource&>(
        message.GetReflection()->GetRepeatedMessage(message, &field, i));
    text += fmt::format("{}{} x {}", i == 0 ? "" : " + ",
                        value_text(source, *source.GetDescriptor()->FindFieldByName("weight")),
                        value_text(source, *source.GetDescriptor()->FindFieldByName("prefix")));
  }
  return text;
}

// Every setting that is another one, in the order of train_config.proto.
void collect_changes(const Message& before, const Message& after, const std::string& path,
                     std::vector<Change>& changes) {
  for (int i = 0; i < after.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *after.GetDescriptor()->field(i);
    const std::string child = path.empty() ? field.name() : path + "." + field.name();
    if (!field.is_repeated() && field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      collect_changes(before.GetReflection()->GetMessage(before, &field),
                      after.GetReflection()->GetMessage(after, &field), child, changes);
      continue;
    }
    Change change{child, value_text(before, field), value_text(after, field)};
    if (change.before != change.after) changes.push_back(std::move(change));
  }
}

// Settings without a consequence for the weights, and those that are told of elsewhere: the model must be the
// same, the mesh stands in the line that names the checkpoint, the tokenizer goes by its digest.
bool is_told(const std::string& field) {
  if (field == "parallel.global_batch" || field == "parallel.microbatch_size") return true;
  if (field == "data.tokenizer" || field == "schedule.rebase") return false;
  for (const char* section : {"model.", "parallel.", "checkpoint.", "log."})
    if (field.starts_with(section)) return false;
  return true;
}

// Settings that the learning rate depends on.
bool is_of_curve(const std::string& field) {
  return field == "optimizer.learning_rate" || field.starts_with("schedule.");
}

std::string rate_text(double rate) {
  return fmt::format("{:.4g}", rate);
}

// Both, in as many digits as tell them apart.
std::string from_to(double before, double after) {
  const std::string a = rate_text(before), b = rate_text(after);
  return a == b ? fmt::format("from {} to {}", before, after) : fmt::format("from {} to {}", a, b);
}

// The configuration that the checkpoint was saved with; nothing where this program cannot read it.
std::optional<TrainConfig> saved_config(const LoadedCheckpoint& checkpoint) {
  try {
    return parse_config(checkpoint.text.config_textproto, checkpoint.path, {}, 0);
  } catch (const UsageError&) {
    return std::nullopt;
  }
}

class Comparison {
 public:
  Comparison(const TrainConfig& config, const TrainState& now, const LoadedCheckpoint& checkpoint)
      : config_(config), now_(now), checkpoint_(checkpoint), saved_(checkpoint.state) {
    plan_.consumed = {.steps = saved_.step,
                      .updates = saved_.updates,
                      .rows = saved_.consumed_samples,
                      .tokens = saved_.consumed_tokens};
  }

  ResumePlan plan() {
    check_model();
    compare_tokenizers();
    plan_.last_step = saved_.step + steps_left(config_, plan_.consumed);
    if (saved_.step == 0) {  // weights, and no run yet
      plan_.learning_rate = settle_learning_rate(config_, plan_.consumed);
      return plan_;
    }
    before_ = saved_config(checkpoint_);
    if (before_)
      collect_changes(*before_, config_, "", changes_);
    else
      tell(
          fmt::format("{}/run/config.textproto cannot be read by this program: its settings are not compared",
                      checkpoint_.path));
    old_curve_ = saved_curve();
    plan_.learning_rate = curve();
    for (const Change& change : changes_)
      if (is_told(change.field) && !(change.field == "data.train" && same_data())) tell(change);
    if (!same_data() && !changed("data.train") && !changed("data.validation_fraction"))
      tell("the training data has other contents: " + next_row());
    check_rate();
    if (!plan_.differences.empty()) tell(outlook());
    return plan_;
  }

 private:
  void tell(const std::string& line) { plan_.differences.push_back(line); }
  void tell(const Change& change) {
    tell(fmt::format("{} {} -> {}: {}", change.field, change.before, change.after, consequence(change)));
  }
  bool changed(const std::string& field) const {
    return std::any_of(changes_.begin(), changes_.end(), [&](const Change& c) { return c.field == field; });
  }
  bool budget_changed() const { return !before_ || changed("schedule.steps") || changed("schedule.tokens"); }
  bool same_data() const { return saved_.data_digest == now_.data_digest; }
  int64_t left() const { return plan_.last_step - saved_.step; }
  int64_t tokens_then() const { return saved_.consumed_tokens + left() * tokens_per_step(config_); }

  void check_model() const {
    if (model_config_from_text(checkpoint_.text.model_config) == model_config(config_)) return;
    throw UsageError(
        "the model of {} is another one.\nThere:\n{}\nHere:\n{}\nChange the section model, or give "
        "another log.run_directory.",
        checkpoint_.path, checkpoint_.text.model_config, to_text(model_config(config_)));
  }

  void compare_tokenizers() {
    if (saved_.tokenizer_digest == now_.tokenizer_digest) return;
    const std::string& file = config_.data().tokenizer();
    if (checkpoint_.text.tokenizer_json.empty()) {
      tell(fmt::format("data.tokenizer none -> {}: taken, and kept in the checkpoints from now on", file));
    } else if (file.empty()) {
      tell(
          "data.tokenizer is no longer given: the checkpoint's own stays in the checkpoints; losses are not "
          "told "
          "in bits per byte");
    } else {
      throw UsageError(
          "{} was trained with another tokenizer (digest {}, data.tokenizer {} has {}): give the one it "
          "was trained with.",
          checkpoint_.path, saved_.tokenizer_digest, file, now_.tokenizer_digest);
    }
  }

  // As it was settled; a checkpoint that does not say so has the curve of its configuration.
  std::optional<LearningRateSchedule> saved_curve() const {
    if (!saved_.schedule.kind.empty()) return from_saved(saved_.schedule, checkpoint_.path);
    if (before_) return settle_learning_rate(*before_);
    return std::nullopt;
  }

  // The saved curve, with what today's configuration changes in it.
  LearningRateSchedule curve() const {
    const LearningRateSchedule anew = settle_learning_rate(config_, plan_.consumed);
    if (config_.schedule().rebase() || !old_curve_) return anew;
    LearningRateSchedule curve = *old_curve_;
    curve.kind = anew.kind;
    curve.peak = anew.peak;
    curve.min_fraction = anew.min_fraction;
    if (changed("schedule.warmup_fraction")) {
      curve.warmup_tokens = anew.warmup_tokens;
      curve.unit = anew.unit;
    }
    if (budget_changed() && !at_end_of_curve())
      curve.end_tokens = std::max(anew.end_tokens, curve.warmup_tokens);
    return curve;
  }

  bool at_end_of_curve() const {
    return old_curve_ && old_curve_->kind != LearningRateKind::constant &&
           saved_.consumed_tokens >= old_curve_->end_tokens &&
           saved_.consumed_tokens > old_curve_->warmup_tokens;
  }

  void check_rate() const {
    const double before = saved_.learning_rate, after = plan_.learning_rate.at(saved_.consumed_tokens);
    constexpr double kRounding = 1e-9;
    if (left() == 0 || config_.schedule().rebase() ||
        std::abs(after - before) <= kRounding * std::max(std::abs(after), std::abs(before)))
      return;
    std::string why;
    for (const Change& change : changes_)
      if (is_of_curve(change.field))
        why += fmt::format("{}{} {} -> {}", why.empty() ? " (" : ", ", change.field, change.before,
                           change.after);
    throw UsageError(
        "the learning rate would jump {} at step {}, {} tokens{}: keep the schedule that {} was saved with, "
        "or say "
        "that the jump is meant: --set schedule.rebase=true takes this configuration's curve for the whole "
        "run, "
        "the tokens consumed among them",
        from_to(before, after), saved_.step, format_count(saved_.consumed_tokens),
        why.empty() ? "" : why + ")", checkpoint_.path);
  }

  std::string next_row() const {
    return fmt::format("{} rows are consumed, and the run goes on at that row of the new data",
                       format_count(saved_.consumed_samples));
  }

  std::string consequence(const Change& change) const {
    const std::string& field = change.field;
    if (field == "parallel.global_batch")
      return fmt::format("a step takes {} tokens instead of {}; {} rows are consumed, the next one follows",
                         format_count(tokens_per_step(config_)), format_count(tokens_per_step(*before_)),
                         format_count(saved_.consumed_samples));
    if (field == "data.sequence_length")
      return fmt::format(
          "a step takes {} tokens instead of {}; documents are cut anew, so that tokens seen may come again; "
          "validation losses are over other rows",
          format_count(tokens_per_step(config_)), format_count(tokens_per_step(*before_)));
    if (field == "data.train" || field == "data.validation_fraction") return next_row();
    if (field == "schedule.steps" || field == "schedule.tokens") return budget_consequence();
    if (field == "schedule.warmup_fraction")
      return fmt::format("the warm-up ends at {} tokens", format_count(plan_.learning_rate.warmup_tokens));
    static const std::map<std::string, const char*> known = {
        {"data.validation", "validation losses are over other text"},
        {"data.pack_documents", "documents of one row see, or no longer see, each other"},
        {"optimizer.learning_rate", "the peak of the learning rate"},
        {"optimizer.beta1", "from the next update on, with the moments as they are"},
        {"optimizer.beta2", "from the next update on, with the moments as they are"},
        {"optimizer.eps", "from the next update on"},
        {"optimizer.weight_decay", "from the next update on"},
        {"optimizer.clip_norm", "from the next update on"},
        {"schedule.kind", "the shape of the learning rate from here on"},
        {"schedule.min_lr_fraction", "where the learning rate ends"},
        {"parallel.microbatch_size", "sums in another order: the same numbers but for rounding"},
        {"precision.compute", "the same weights, rounded differently in every step"},
        {"precision.residual", "the same weights, rounded differently in every step"},
        {"precision.deterministic", "sums may come in another order"},
        {"seed", "rows come in another order, so that tokens seen may come again"}};
    const auto found = known.find(field);
    return found == known.end() ? "from the next step on" : found->second;
  }

  std::string budget_consequence() const {
    const std::string end = fmt::format("the run ends at step {}", plan_.last_step);
    if (config_.schedule().rebase() || !old_curve_ || plan_.learning_rate.kind == LearningRateKind::constant)
      return end;
    if (at_end_of_curve())
      return fmt::format(
          "{}; the learning rate has come to its end and stays {}; a curve over the whole run needs "
          "schedule.rebase=true",
          end, rate_text(plan_.learning_rate.at(saved_.consumed_tokens)));
    if (saved_.consumed_tokens > plan_.learning_rate.warmup_tokens) return end;
    return fmt::format("{}; the warm-up stays as it was settled, to {} tokens", end,
                       format_count(plan_.learning_rate.warmup_tokens));
  }

  // What all changes come to.
  std::string outlook() const {
    if (left() == 0) return "nothing is left to do";
    const LearningRateSchedule& rate = plan_.learning_rate;
    std::string text = fmt::format(
        "so {} steps of {} tokens are left, to step {} and {} tokens; learning rate {} at step {}{}, {} at "
        "the end",
        format_count(left()), format_count(tokens_per_step(config_)), plan_.last_step,
        format_count(tokens_then()), rate_text(rate.at(saved_.consumed_tokens)), saved_.step,
        config_.schedule().rebase() ? fmt::format(" (was {})", rate_text(saved_.learning_rate)) : "",
        rate_text(rate.at(tokens_then())));
    const bool decays = rate.kind != LearningRateKind::constant;
    if (decays && config_.schedule().steps() > 0 && rate.end_tokens != tokens_then() && !at_end_of_curve())
      text += fmt::format("; its curve ends at {} tokens: schedule.tokens={} trains so many",
                          format_count(rate.end_tokens), rate.end_tokens);
    return text;
  }

  const TrainConfig& config_;
  const TrainState& now_;
  const LoadedCheckpoint& checkpoint_;
  const TrainState& saved_;
  std::optional<TrainConfig> before_;
  std::optional<LearningRateSchedule> old_curve_;
  std::vector<Change> changes_;
  ResumePlan plan_;
};

}  // namespace

ResumePlan plan_start(const TrainConfig& config) {
  return {.consumed = {},
          .learning_rate = settle_learning_rate(config),
          .last_step = steps_left(config),
          .differences = {}};
}

ResumePlan plan_resume(const TrainConfig& config, const TrainState& now, const LoadedCheckpoint& checkpoint) {
  return Comparison(config, now, checkpoint).plan();
}

}  // namespace transxssm
